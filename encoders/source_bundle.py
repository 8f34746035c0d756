"""One Python file from the source of some definitions and of all that they need.

An exported folder has to work without this package, and its code must not drift from ours: it is
cut out of our modules when a folder is exported. Definitions of the same installed package are
copied, in the order in which they need one another; imports of other packages stay imports.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Collection, Iterator, Mapping, Sequence

from dynaflip.errors import UserError

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


def bundle(
    roots: Sequence[str],
    *,
    omit: Collection[str] = (),
    imported: Mapping[str, str] | None = None,
) -> str:
    """The source of a file that defines the roots and all that they need.

    Args:
        roots: definitions as ``module:name``; their packages' definitions are copied.
        omit: methods to leave out, as ``Class.method``.
        imported: name → the import line that the file has in place of its definition.

    Raises:
        UserError: some source is not available, or two modules define one name.
    """
    bundler = _Bundler({root.split(".")[0].split(":")[0] for root in roots}, omit, imported or {})
    for root in roots:
        module, _, name = root.partition(":")
        bundler.add(module, name)
    return bundler.text()


class _Module:
    """The top-level definitions and imports of a module."""

    def __init__(self, name: str) -> None:
        spec = importlib.util.find_spec(name)
        get_source = getattr(spec.loader, "get_source", None) if spec is not None else None
        source = get_source(name) if get_source is not None else None
        if source is None:
            raise UserError(f"export: the source of {name} is not available; put it into a file")
        self.name = name
        self.lines = source.splitlines()
        self.definitions: dict[str, _Definition] = {}
        self.imports: dict[str, tuple[str, str]] = {}  # name → (module, attribute or "")
        self.import_lines: dict[str, str] = {}
        for node in _statements(ast.parse(source)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name_here = alias.asname or alias.name.split(".")[0]
                    self.imports[name_here] = (alias.name, "")
                    self.import_lines[name_here] = f"import {ast.unparse(alias)}"
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    name_here = alias.asname or alias.name
                    self.imports[name_here] = (node.module, alias.name)
                    line = f"from {node.module} import {ast.unparse(alias)}"
                    self.import_lines[name_here] = line
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name):
                            self.definitions[part.id] = node

    def source_of(self, node: _Definition, omit: Collection[str]) -> str:
        """The text of a definition with the comments above it, without some methods."""
        first = _first_line(node)
        while first > 1 and self.lines[first - 2].startswith("#"):
            first -= 1
        dropped: set[int] = set()
        for method in _omitted(node, omit):
            start = _first_line(method)
            # The blank lines below a method go with it.
            end = method.end_lineno or start
            while end < len(self.lines) and not self.lines[end].strip():
                end += 1
            dropped |= set(range(start, end + 1))
        last = node.end_lineno or first
        lines = [self.lines[n - 1] for n in range(first, last + 1) if n not in dropped]
        return "\n".join(lines).rstrip()


class _Bundler:
    def __init__(
        self, ours: Collection[str], omit: Collection[str], imported: Mapping[str, str]
    ) -> None:
        self._ours = {*ours, "dynaflip"}
        self._omit = omit
        self._imported = imported
        self._modules: dict[str, _Module] = {}
        self._home: dict[str, str] = {}  # name in the file → the module that it is from
        self._lines: set[str] = set()
        self._texts: list[str] = []
        self._written: set[tuple[str, int]] = set()

    def add(self, module_name: str, name: str) -> None:
        """Add a definition, after all that it needs."""
        if name in self._imported:
            self._lines.add(self._imported[name])
            return
        module = self._modules.setdefault(module_name, _Module(module_name))
        node = module.definitions.get(name)
        if node is None:
            if name in module.imports:
                self._add_import(module, name)
                return
            raise UserError(f"export: {module_name} has no definition of {name} to copy")
        if self._home.setdefault(name, module_name) != module_name:
            raise UserError(f"export: {self._home[name]} and {module_name} both define {name}")
        key = (module_name, node.lineno)
        if key in self._written:
            return
        self._written.add(key)
        for needed in sorted(_names(node, self._omit)):
            # Any other name is a builtin, an argument or a local variable.
            if needed in module.definitions:
                self.add(module_name, needed)
            elif needed in module.imports:
                self._add_import(module, needed)
        self._texts.append(module.source_of(node, self._omit))

    def text(self) -> str:
        """The whole file."""
        imports = "\n".join(sorted(self._lines, key=lambda line: (line.split()[1], line)))
        return (
            "\n\n\n".join([f"from __future__ import annotations\n\n{imports}", *self._texts]) + "\n"
        )

    def _add_import(self, module: _Module, name: str) -> None:
        target, attribute = module.imports[name]
        if target.split(".")[0] not in self._ours:
            self._lines.add(module.import_lines[name])
        elif name != attribute:
            raise UserError(
                f"export: {module.name} must import {name} by its own name from {target}"
            )
        else:
            self.add(target, attribute)


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """The top-level statements, those below ``if TYPE_CHECKING`` among them."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from node.body
        else:
            yield node


def _first_line(node: ast.AST) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])  # type: ignore[attr-defined]


def _omitted(node: ast.AST, omit: Collection[str]) -> list[ast.stmt]:
    if not isinstance(node, ast.ClassDef):
        return []
    return [n for n in node.body if f"{node.name}.{getattr(n, 'name', '')}" in omit]


def _names(node: ast.AST, omit: Collection[str]) -> set[str]:
    """All names that a definition reads, but for its omitted methods."""
    skipped = _omitted(node, omit)
    names: set[str] = set()
    waiting = [node]
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.Name):
            names.add(part.id)
        waiting += [child for child in ast.iter_child_nodes(part) if child not in skipped]
    return names
