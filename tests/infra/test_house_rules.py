"""The rules that `make check` enforces: each one finds a breach and passes what is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import check_house
import pytest
from checkout import REPOSITORY
from import_rules import circles


def messages(root: Path, files: dict[str, str]) -> list[str]:
    """The breaches in a checkout that consists of these files (path → content)."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return [str(breach) for breach in check_house.breaches(root)]


def test_the_checkout_keeps_the_rules() -> None:
    command = [sys.executable, str(REPOSITORY / "infra" / "ci" / "check_house.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("platform/a.py", "import losses", "import dynaflip.losses, not losses"),
        ("platform/a.py", "from encoders.image import X", "import dynaflip.encoders.image.X"),
        ("losses/a.py", "def f():\n    import ray", "losses/ may not import ray"),
        ("encoders/a.py", "import dynaflip.eval.metrics.probes", "encoders/ may not import"),
        ("eval/a.py", "from dynaflip.platform import home", "eval/ may not import"),
        ("platform/a.py", "import dynaflip.jobs.pretrain", "platform/ may not import"),
        ("platform/a.py", "import mlflow", "only platform/tracking/ may import mlflow"),
        ("platform/a.py", "from . import b", "write the whole name"),
        ("platform/__init__.py", "", "shadows the standard module"),
        ("tests/platform/__init__.py", "", "shadows the standard module"),
        ("eval/statistics.py", "", "statistics is the name of a standard module"),
        ("eval/logging/a.py", "", "logging is the name of a standard module"),
        ("jobs/torch.py", "", "hides the installed module torch"),
        ("eval/a.py", "# as in the metaworld suite", "metaworld belongs to the simulator's files"),
        ("eval/envs/base.py", "ACTION_DIM = 4", "ACTION_DIM belongs to"),
        ("platform/a.py", "TASK = 'reach-v3'", "-v3 belongs to"),
        ("platform/a.py", "def f(t):\n    t.client().get_run(1)", ".client(…): only"),
        ("platform/a.py", "import sys\nsys.modules['mlflow.tracking']", "'mlflow.tracking': only"),
        ("jobs/a.py", "def f(mlflow):\n    mlflow.start_run()", "mlflow.start_run: only"),
        (
            "jobs/a.py",
            "from dynaflip.platform.tracking.runs import client",
            "import of client: only platform/tracking/",
        ),
        (
            "platform/tracking/__init__.py",
            "from dynaflip.platform.tracking.runs import *",
            "exports no client, and lists",
        ),
        ("platform/a.py", "def f(p):\n    p.replace('b')", "Path.replace; use the one atomic"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, file: str, line: str, message: str) -> None:
    (found,) = messages(tmp_path, {file: line})
    assert message in found
    assert found.startswith(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import boto3\nboto3.client('s3')", "boto3.client(…) is called in more than one place"),
        ("import os\nos.replace('a', 'b')", "os.replace is called in more than one place"),
        ("def f(path):\n    path.rename('b')", ".rename(…) is called in more than one place"),
    ],
)
def test_a_second_home_is_found(tmp_path: Path, line: str, message: str) -> None:
    assert not messages(tmp_path, {"platform/a.py": line})
    found = messages(tmp_path, {"encoders/b.py": line})
    assert [message in breach for breach in found] == [True, True]


def test_an_import_circle_is_found_inside_functions_too(tmp_path: Path) -> None:
    (found,) = messages(
        tmp_path,
        {
            "platform/a.py": "from dynaflip.platform.deep import b",
            "platform/deep/b.py": "from dynaflip.platform.c import THING",
            "platform/c.py": "def f():\n    import dynaflip.platform.a\nTHING = 1",
        },
    )
    assert "a → dynaflip.platform.deep.b → dynaflip.platform.c → dynaflip.platform.a" in found


def test_each_circle_is_reported_once() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"d"}, "e": {"a"}}
    assert circles(graph) == [["a", "b", "c"], ["d"]]


def test_two_files_of_tests_with_one_name_are_found(tmp_path: Path) -> None:
    files = dict.fromkeys(("tests/a/conftest.py", "tests/conftest.py", "tests/a/test_b.py"), "")
    assert not messages(tmp_path, files)
    (found,) = messages(tmp_path, {"tests/c/test_b.py": ""})
    assert "test_b.py is also the name of tests/a/test_b.py" in found


def test_what_is_too_long_is_found_outside_of_tests(tmp_path: Path) -> None:
    long = "def f():\n" + '    """Doc."""\n    import g\n' + 60 * "    g()\n"
    file = 400 * "g()\n"
    assert not messages(
        tmp_path, {"jobs/a.py": long, "eval/b.py": file, "tests/c.py": 2 * file + 2 * long}
    )
    found = messages(tmp_path, {"jobs/a.py": f"{long}    g()\n", "eval/b.py": f"{file}g()\n"})
    assert found == [
        "eval/b.py: 401 lines, at most 400: split it by what its parts are about [length]",
        "jobs/a.py:1: the body of f has 61 lines, at most 60 [length]",
    ]


def test_what_is_right_passes(tmp_path: Path) -> None:
    assert not messages(
        tmp_path,
        {
            "eval/envs/metaworld.py": "ACTION_DIM = 4",
            "eval/envs/base.py": (
                'TABLE = {\n    "metaworld": "dynaflip.eval.envs.metaworld:MetaWorld",\n}\n'
            ),
            "platform/tracking/runs.py": "import mlflow\nmlflow.start_run()",
            "platform/a.py": (
                "import dataclasses\nimport platform\n"
                "def f(words, table, config, folder):\n"
                "    words.replace('a', 'b')\n"
                "    dataclasses.replace(config, a=1)\n"
                "    table.rename({'a': 'b'}).rename(columns={})\n"
                "    return folder / 'mlflow.db'\n"
            ),
            "tests/test_a.py": "import losses_of_mine\nTASK = 'reach-v3'",
        },
    )
