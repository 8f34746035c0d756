"""Lengths: a file tells one story and a function does one thing, each on a few screens."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from python_files import Breach, Source

FILE_LINES = 400
# Of what is behind signature, docstring and delayed imports, which are as long as they need to be.
FUNCTION_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_file_lengths(sources: list[Source]) -> Iterator[Breach]:
    """Files that are too long to tell one story; tests are lists of stories."""
    for source in sources:
        lines = source.text.count("\n")
        if source.folder != "tests" and lines > FILE_LINES:
            message = f"{lines} lines, at most {FILE_LINES}: split it by what its parts are about"
            yield Breach("length", source.name, 0, message)


def check_function_lengths(sources: list[Source]) -> Iterator[Breach]:
    """Functions whose body is too long to be read at once."""
    for source in sources:
        if source.folder == "tests":
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, Function) and (lines := _body_lines(node)) > FUNCTION_LINES:
                message = f"the body of {node.name} has {lines} lines, at most {FUNCTION_LINES}"
                yield Breach("length", source.name, node.lineno, message)


def _body_lines(node: Function) -> int:
    body = node.body[ast.get_docstring(node) is not None :]
    while body and isinstance(body[0], ast.Import | ast.ImportFrom):
        body = body[1:]
    last = node.end_lineno or 0
    return last - body[0].lineno + 1 if body else 0
