"""The checkout's Python files, parsed once for all rules of ``infra/ci/check_house.py``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FOLDERS = ("losses", "encoders", "platform", "eval", "jobs")
ALL_FOLDERS = (*FOLDERS, "dynaflip", "infra", "examples", "tests")


@dataclass(frozen=True)
class Breach:
    """A place that breaks a rule."""

    rule: str
    file: str  # below the root
    line: int  # from 1; 0 for the file as a whole
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message} [{self.rule}]"


@dataclass(frozen=True)
class Source:
    """A Python file."""

    path: Path
    name: str  # below the root, with /

    @property
    def folder(self) -> str:
        """The top-level folder that it lies in."""
        return self.name.split("/")[0]

    @cached_property
    def text(self) -> str:
        """Its content."""
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, self.name)

    @cached_property
    def module(self) -> str:
        """Its import name, e.g. ``dynaflip.losses.simplex``."""
        name = self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return name if self.folder == "dynaflip" else f"dynaflip.{name}"

    @property
    def is_package(self) -> bool:
        """Whether it is a package's ``__init__.py``."""
        return self.path.name == "__init__.py"

    def is_library(self) -> bool:
        """Whether it belongs to the library or its jobs, and not to the tests or to CI."""
        return self.folder in (*FOLDERS, "dynaflip")


def read_sources(root: Path) -> list[Source]:
    """All Python files of the checkout."""
    return [
        Source(path, path.relative_to(root).as_posix())
        for folder in ALL_FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
    ]


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, ast.Attribute]]:
    """Every call of an attribute (``a.b(…)``) with that attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node, node.func


def is_name(node: ast.AST, *names: str) -> bool:
    """Whether an expression is one of these plain names."""
    return isinstance(node, ast.Name) and node.id in names
