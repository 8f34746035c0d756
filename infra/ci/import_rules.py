"""Which module may import which.

* Code is imported as ``dynaflip.<folder>.<module>``, never as ``losses`` or ``eval``:
  that would load a second copy of each class, or the wrong module.
* ``jobs → platform → {eval, encoders, losses}``, ``eval → {encoders, losses}``; nothing imports
  jobs.
* ``losses/``, ``encoders/`` and ``eval/`` import no Ray, MLflow or Optuna, and MLflow is
  imported by ``platform/tracking/`` alone.
* No circles, not even through imports inside functions or under ``TYPE_CHECKING``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from python_files import FOLDERS, Breach, Source

MAY_IMPORT = {
    "losses": {"losses"},
    "encoders": {"encoders"},
    "eval": {"eval", "encoders", "losses"},
    "platform": {"platform", "eval", "encoders", "losses"},
    "jobs": {"jobs", "platform", "eval", "encoders", "losses"},
    # `load_encoder` and `load_policy` are the doors from the package's front.
    "dynaflip": {"platform", "eval", "encoders"},
}
CLUSTER = {"ray", "mlflow", "optuna"}
MLFLOW_FOLDER = "platform/tracking/"


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in a file, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level


def check_direction(sources: list[Source]) -> Iterator[Breach]:
    """Imports by the wrong name, against the direction, or of a library that is not allowed."""
    for source in sources:
        for line, name in imports(source.tree):
            for message in _forbidden(source, name):
                yield Breach("imports", source.name, line, message)


def _forbidden(source: Source, name: str) -> Iterator[str]:
    folder = source.folder
    top, *rest = name.split(".")
    if top in FOLDERS and not (top == "platform" and not rest[1:]):
        yield f"import dynaflip.{name}, not {name}"
    allowed = MAY_IMPORT.get(folder, set(FOLDERS))
    if top == "dynaflip" and rest and rest[0] in FOLDERS and rest[0] not in allowed:
        yield f"{folder}/ may not import {name}"
    if top in CLUSTER and folder in ("losses", "encoders", "eval"):
        yield f"{folder}/ may not import {top}"
    if top == "mlflow" and folder in FOLDERS and not source.name.startswith(MLFLOW_FOLDER):
        yield f"only {MLFLOW_FOLDER} may import mlflow"
    if not top and folder in FOLDERS:
        yield f"write the whole name, dynaflip.{folder}.…"


def check_circles(sources: list[Source]) -> Iterator[Breach]:
    """Modules that import one another, directly or through others."""
    modules = {source.module: source for source in sources if source.is_library()}
    graph = {name: _imported_modules(source, modules) for name, source in modules.items()}
    for circle in circles(graph):
        first = modules[circle[0]]
        yield Breach("circle", first.name, 0, f"import circle: {' → '.join([*circle, circle[0]])}")


def _imported_modules(source: Source, modules: Mapping[str, Source]) -> set[str]:
    """Modules of the library that a module imports."""
    found = set()
    for _, name in imports(source.tree):
        while name and name not in modules:
            name = name.rpartition(".")[0]  # `from module import object`
        # Packages are imported before what lies in them, by those outside of them.
        while name:
            if name in modules and not f"{source.module}.".startswith(f"{name}."):
                found.add(name)
            name = name.rpartition(".")[0]
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """One shortest circle for each group of nodes that reach one another."""
    found: list[list[str]] = []
    done: set[str] = set()
    for start in sorted(graph):
        if start in done:
            continue
        circle = _shortest_way_back(graph, start)
        if circle:
            found.append(circle)
            done |= set(circle)
    return found


def _shortest_way_back(graph: Mapping[str, set[str]], start: str) -> list[str]:
    ways = [[start]]
    seen: set[str] = set()
    while ways:
        way = ways.pop(0)
        for name in sorted(graph.get(way[-1], ())):
            if name == start:
                return way
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []
