"""Check the import rules of the house; prints each breach and leaves with 1.

* Code is imported as ``dynaflip.<folder>.<module>``, never as ``losses`` or ``eval``:
  that would load a second copy of each class, or the wrong module.
* ``jobs → platform → {eval, encoders, losses}``, ``eval → encoders``; nothing imports jobs.
* ``losses/``, ``encoders/`` and ``eval/`` know no Ray, MLflow or Optuna, and MLflow is
  known to ``platform/tracking/`` alone.
* No folder named ``platform`` holds an ``__init__.py``: it would shadow the standard module.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("losses", "encoders", "platform", "eval", "jobs")
MAY_IMPORT = {
    "losses": {"losses"},
    "encoders": {"encoders"},
    "eval": {"eval", "encoders", "losses"},
    "platform": {"platform", "eval", "encoders", "losses"},
    "jobs": {"jobs", "platform", "eval", "encoders", "losses"},
    # `load_encoder` is the one door from the package's front into the platform.
    "dynaflip": {"platform", "encoders"},
}
CLUSTER = {"ray", "mlflow", "optuna"}
MLFLOW_FOLDER = "platform/tracking/"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level


def breaches(path: Path) -> Iterator[str]:
    """What a file imports and may not."""
    relative = path.relative_to(ROOT).as_posix()
    folder = relative.split("/")[0]
    for line, name in imports(path):
        where = f"{relative}:{line}"
        top, *rest = name.split(".")
        if top in FOLDERS and not (top == "platform" and not rest[1:]):
            yield f"{where}: import dynaflip.{name}, not {name}"
        allowed = MAY_IMPORT.get(folder, set(FOLDERS))
        if top == "dynaflip" and rest and rest[0] in FOLDERS and rest[0] not in allowed:
            yield f"{where}: {folder}/ may not import {name}"
        if top in CLUSTER and folder in ("losses", "encoders", "eval"):
            yield f"{where}: {folder}/ knows no {top}"
        if top == "mlflow" and folder in FOLDERS and not relative.startswith(MLFLOW_FOLDER):
            yield f"{where}: only {MLFLOW_FOLDER} may import mlflow"
        if not top and folder in FOLDERS:
            yield f"{where}: write the whole name, dynaflip.{folder}.…"


def main() -> int:
    files = [
        path
        for folder in (*FOLDERS, "dynaflip", "tests", "infra")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    found = [line for path in files for line in breaches(path)]
    found += [
        f"{path.relative_to(ROOT)}: shadows the standard module platform"
        for path in ROOT.glob("**/platform/__init__.py")
        if ".venv" not in path.parts
    ]
    for line in found:
        print(line)
    print(f"imports: {len(files)} files, {len(found)} breaches")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
