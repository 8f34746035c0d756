"""The tests with the marker ``gpu``, under pytest where it imports and else by a plain runner."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import SkipTest

from part import Part

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "gpu"


@dataclass(frozen=True)
class Outcome:
    """One test on one device."""

    name: str
    seconds: float
    kind: str  # passed | skipped | failed
    reason: str = ""


def run(part: Part) -> None:
    """A row for all tests, one for each that failed, one for each reason to skip some.

    Without a GPU their variants for the CPU run, but for the slow ones.
    """
    with_pytest = has_pytest()
    outcomes = list(under_pytest(part) if with_pytest else plainly(part))
    count = {k: sum(o.kind == k for o in outcomes) for k in ("passed", "skipped", "failed")}
    part.add(
        "all under pytest" if with_pytest else "all by the plain runner (no pytest here)",
        value=count["passed"],
        unit="passed",
        note=f"{count['failed']} failed, {count['skipped']} skipped",
        failed=count["passed"] == 0,
    )
    for outcome in outcomes:
        if outcome.kind == "failed":
            part.add(outcome.name, note=outcome.reason[:160], failed=True)
    reasons = Counter(outcome.reason for outcome in outcomes if outcome.kind == "skipped")
    for reason, number in reasons.items():
        part.add(f"{number} skipped", note=reason[:160])


def has_pytest() -> bool:
    """Whether pytest imports here."""
    try:
        import pytest  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def under_pytest(part: Part) -> Iterator[Outcome]:
    """Run the folder in a process without plug-ins, caches, and the other tests' conftest."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        marker = "not slow and not integration" if part.dry else "gpu"
        command = [
            *(sys.executable, "-m", "pytest", str(TESTS), "-m", marker, "-q", "--color=no"),
            *("-p", "no:cacheprovider", "--rootdir", str(ROOT), "--confcutdir", str(TESTS)),
            *("-c", os.devnull, "--tb=short", f"--junitxml={report}", "-W", "ignore"),
        ]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
        done = subprocess.run(command, cwd=ROOT, env=environment)
        if not report.exists():
            raise RuntimeError(f"pytest ended with exit code {done.returncode} and no report")
        yield from _read(report)


def _read(report: Path) -> Iterator[Outcome]:
    """The outcomes in a JUnit report."""
    for case in ElementTree.parse(report).iter("testcase"):
        kind, reason = "passed", ""
        for tag, meaning in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            found = case.find(tag)
            if found is not None:
                kind, reason = meaning, found.get("message", "").splitlines()[0]
        name, seconds = case.get("name", "?"), float(case.get("time", 0))
        if "cuda" in name or kind != "skipped":
            yield Outcome(name, seconds, kind, reason)


def plainly(part: Part) -> Iterator[Outcome]:
    """Run the same tests in this process, one after the other."""
    sys.path.insert(0, str(TESTS))
    for path in sorted(TESTS.glob("test_*.py")):
        module = importlib.import_module(path.stem)
        for name, test in list(vars(module).items()):
            if not name.startswith("test_"):
                continue
            for device in test.devices:
                if device == "cuda" or (part.dry and not test.cpu_markers):
                    yield _call(part, name, test, device)


def _call(part: Part, name: str, test: object, device: str) -> Outcome:
    assert callable(test)
    began, kind, reason = time.perf_counter(), "passed", ""
    try:
        test(device)
    except SkipTest as skipped:
        kind, reason = "skipped", str(skipped)
    except Exception as error:
        traceback.print_exc()
        kind, reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
    took = time.perf_counter() - began
    part.say(f"{name}[{device}] {kind} ({took:.1f} s)")
    return Outcome(f"{name}[{device}]", took, kind, reason)
