"""Mutants: break the code on purpose, one place at a time; the tests that are named must notice.

    make mutants                                  # all of them
    python infra/ci/mutants.py --only "clip_norm ignored"
    python infra/ci/mutants.py --list

Each entry of mutants.toml replaces a text that stands once in a file. It is applied in a copy of
the checkout, and the tests that it names run there: a failing test kills the mutant. Leaves with 1
where one survives, where a text is no longer found, or where the tests fail without any mutant.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutants.toml")
# pytest's exit codes: 0 passed, 1 some test failed; others mean that it could not test at all.
PASSED, FAILED = 0, 1


@dataclass(frozen=True)
class Mutant:
    """One change, and the tests that must fail with it."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def applied(self, root: Path) -> str:
        """The file's text with the change.

        Raises:
            ValueError: the text does not stand there exactly once, or the result is not Python.
        """
        path = root / self.file
        text = path.read_text() if path.is_file() else ""
        if (count := text.count(self.before)) != 1:
            raise ValueError(
                f"{self.name}: its text stands {count} times in {self.file}, not once; "
                f"bring {LIST.name} up to date"
            )
        changed = text.replace(self.before, self.after)
        try:
            ast.parse(changed)
        except SyntaxError as error:
            raise ValueError(f"{self.name}: {self.file} would not be Python: {error}") from None
        return changed


def read_mutants(path: Path = LIST) -> list[Mutant]:
    """The list; names are unique."""
    entries = tomllib.loads(path.read_text())["mutant"]
    mutants = [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
    names = [mutant.name for mutant in mutants]
    assert len(set(names)) == len(names), "two mutants have one name"
    return mutants


def main(argv: list[str] | None = None) -> int:
    """Apply each mutant and run its tests; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants alone")
    parser.add_argument("--list", action="store_true", help="show the names and leave")
    args = parser.parse_args(argv)
    mutants = [m for m in read_mutants() if not args.only or m.name in args.only]
    if args.list:
        print("\n".join(mutant.name for mutant in mutants))
        return 0
    if not mutants:
        print(f"no mutant has one of the names {args.only}")
        return 1
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = copy_checkout(Path(folder) / "checkout")
        everything = sorted({test for mutant in mutants for test in mutant.tests})
        print(f"{len(mutants)} mutants; first {len(everything)} tests without any", flush=True)
        if run_tests(copy, everything, show=True) != PASSED:
            print("the tests fail without any mutant: nothing can be said")
            return 1
        verdicts = []
        for mutant in mutants:
            verdict = verdict_of(copy, mutant)
            print(f"[{_clock(began)}] {verdict:<9} {mutant.name} ({mutant.file})", flush=True)
            verdicts.append((mutant, verdict))
    wrong = [mutant.name for mutant, verdict in verdicts if verdict != "killed"]
    print(f"{len(mutants) - len(wrong)} of {len(mutants)} killed in {_clock(began)}")
    for name in wrong:
        print(f"not killed: {name}")
    return 1 if wrong else 0


def verdict_of(copy: Path, mutant: Mutant) -> str:
    """``killed``, ``survived``, or why it could not be told; the copy is as before afterwards."""
    path = copy / mutant.file
    try:
        changed = mutant.applied(copy)
    except ValueError as error:
        return f"stale: {error}"
    original = path.read_text()
    path.write_text(changed)
    try:
        code = run_tests(copy, mutant.tests)
    finally:
        path.write_text(original)
    return {PASSED: "survived", FAILED: "killed"}.get(code, f"pytest's exit code {code}")


def run_tests(root: Path, tests: Sequence[str], *, show: bool = False) -> int:
    """pytest's exit code for some tests of a checkout, stopped at the first that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",  # a change within the same second would not be seen
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command,
        cwd=root,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if show and done.returncode != PASSED:
        print(done.stdout[-4000:])
    return done.returncode


def copy_checkout(target: Path) -> Path:
    """Copy the files that git knows, or would add; returns the copy's folder."""
    for name in _files():
        path = ROOT / name
        if path.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name)
    return target


def _files() -> Iterator[str]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    done = subprocess.run([*command, "--exclude-standard"], check=True, capture_output=True)
    yield from filter(None, done.stdout.decode().split("\0"))


def _clock(began: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    return f"{minutes}:{seconds:02d}"


if __name__ == "__main__":
    sys.exit(main())
