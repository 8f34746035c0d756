"""The list of mutants is about the code of today; `make mutants` itself runs them."""

from __future__ import annotations

import re
from pathlib import Path

import mutants
import pytest
from checkout import REPOSITORY

LIST = mutants.read_mutants()


@pytest.mark.parametrize("mutant", LIST, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_a_text_that_stands_once_and_names_tests_that_exist(
    mutant: mutants.Mutant,
) -> None:
    assert mutant.applied(REPOSITORY) != (REPOSITORY / mutant.file).read_text()
    for test in mutant.tests:
        file, _, name = test.partition("::")
        text = (REPOSITORY / file).read_text()
        function, case = re.fullmatch(r"(\w*)(?:\[(.*)\])?", name).groups()  # type: ignore[union-attr]
        assert f"def {function}" in text, test
        assert case is None or f'"{case}"' in text, test


def test_a_text_that_is_no_longer_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1\n")
    gone = mutants.Mutant("m", "code.py", "b = 1", "c", ())
    with pytest.raises(ValueError, match=r"stands 0 times in code\.py, not once"):
        gone.applied(tmp_path)
    broken = mutants.Mutant("m", "code.py", "a = 1", "a = ", ())
    with pytest.raises(ValueError, match="would not be Python"):
        broken.applied(tmp_path)


def test_a_copy_is_mutated_tested_and_put_back(tmp_path: Path) -> None:
    (tmp_path / "code_under_test.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "test_code.py").write_text(
        "from code_under_test import double\n\ndef test_double():\n    assert double(3) == 6\n"
    )
    tests = ("test_code.py",)

    def verdict(before: str, after: str) -> str:
        return mutants.verdict_of(
            tmp_path, mutants.Mutant("m", "code_under_test.py", before, after, tests)
        )

    original = (tmp_path / "code_under_test.py").read_text()
    assert verdict("2 * x", "3 * x") == "killed"
    assert verdict("2 * x", "x * 2") == "survived"
    assert verdict("gone", "x").startswith("stale")
    assert (tmp_path / "code_under_test.py").read_text() == original
