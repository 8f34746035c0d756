"""Settings with all that is known of them: type, choices, default and meaning.

Nothing is written down twice: names, types and defaults are the dataclasses' fields, choices and
limits are those that their checks apply (:mod:`dynaflip.checks`), and the meaning is the string
below each field, read from the source file.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dynaflip.checks import Limits, limits_of

_REQUIRED = "(required)"
_TYPES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Any: "any value",
}


@dataclass(frozen=True)
class Setting:
    """One setting of a job."""

    key: str  # dotted
    type: str  # in words: "number", "list of text"
    choices: tuple[str, ...]
    limits: str  # "at least 0"
    default: str  # as it can be typed
    meaning: str  # one paragraph

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    def facts(self) -> str:
        """Type or choices, limits and default in one line."""
        kind = " | ".join(self.choices) if self.choices else self.type
        if self.choices and self.type.startswith("list"):
            kind = f"list of {kind}"
        if self.choices and self.type.endswith("or none"):
            kind += " or none"
        default = self.default if self.default == _REQUIRED else f"default {self.default}"
        return "; ".join(filter(None, (kind, self.limits, default)))


@dataclass(frozen=True)
class Section:
    """The settings of one dataclass in its place among a job's settings."""

    key: str  # dotted; empty for the job's own settings
    cls: type
    meaning: str
    settings: tuple[Setting, ...]


def sections(cls: type) -> list[Section]:
    """All sections of a job's settings, the outermost first, in the order of the fields."""
    return list(_sections(cls, _defaults(cls), "", meaning_of(cls)))


def undocumented(cls: type) -> list[str]:
    """Dotted keys of settings without a docstring."""
    return [one.key for section in sections(cls) for one in section.settings if not one.meaning]


def meaning_of(cls: type) -> str:
    """The first paragraph of a class's docstring."""
    return _paragraph((inspect.getdoc(cls) or "").split("\n\n")[0])


def shown(value: Any) -> str:
    """A setting's value as it can be typed."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if value is dataclasses.MISSING:
        return _REQUIRED
    if dataclasses.is_dataclass(value):
        return "{…}"
    if value == "":
        return '""'
    return "none" if value is None else str(value)


@cache
def field_meanings(cls: type) -> dict[str, str]:
    """Field name to the docstring below the field, those of base classes included."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            meanings |= _module_meanings(base.__module__).get(base.__qualname__, {})
    return meanings


@cache
def _module_meanings(module: str) -> dict[str, dict[str, str]]:
    """Docstrings of all fields of a module's classes, by qualified name of the class."""
    source = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    return dict(_class_meanings(ast.parse(source).body, ""))


def _class_meanings(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, dict[str, str]]]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield from _class_meanings(node.body, f"{prefix}{node.name}.<locals>.")
        if not isinstance(node, ast.ClassDef):
            continue
        meanings = {}
        for field, below in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                meanings[field.target.id] = _paragraph(below.value.value)
        yield prefix + node.name, meanings
        yield from _class_meanings(node.body, f"{prefix}{node.name}.")


def _sections(cls: type, default: dict[str, Any], prefix: str, meaning: str) -> Iterator[Section]:
    hints = typing.get_type_hints(cls)
    meanings, limits = field_meanings(cls), limits_of(cls)
    own, inner = [], []
    for field in dataclasses.fields(cls):
        hint, value = hints[field.name], default[field.name]
        said = meanings.get(field.name, "")
        if dataclasses.is_dataclass(hint):
            inner.append((field.name, typing.cast(type, hint), value, said))
        else:
            known = limits.get(field.name, Limits())
            own.append(
                Setting(
                    prefix + field.name,
                    _type_words(hint),
                    known.choices,
                    known.text,
                    shown(value),
                    said,
                )
            )
    yield Section(prefix.rstrip("."), cls, meaning, tuple(own))
    for name, section, value, said in inner:
        values = value if isinstance(value, dict) else _values(value)
        yield from _sections(section, values, f"{prefix}{name}.", said or meaning_of(section))


def _values(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _defaults(cls: Any) -> dict[str, Any]:
    """Each field's default; ``MISSING`` for one that must be given."""
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        factory: Any = field.default_factory
        made = factory is not dataclasses.MISSING
        defaults[field.name] = factory() if made else field.default
    hints = typing.get_type_hints(cls)
    for name, value in defaults.items():
        if value is dataclasses.MISSING and dataclasses.is_dataclass(hints[name]):
            defaults[name] = _defaults(hints[name])
    return defaults


def _type_words(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        words = [_type_words(kind) for kind in inner if kind is not type(None)]
        return " or ".join([*words, "none"] if type(None) in inner else words)
    if origin in (tuple, list):
        return "list of " + _plural(_type_words(inner[0]))
    if origin is dict:
        return f"map of name to {_type_words(inner[1])}"
    if dataclasses.is_dataclass(hint):
        return "section"
    return _TYPES.get(hint, getattr(hint, "__name__", str(hint)))


def _plural(words: str) -> str:
    return words if words in ("text", "true or false") else words + "s"


def _paragraph(text: str) -> str:
    """A docstring in one line, without the marks of its markup."""
    text = re.sub(r"(?<=\w-)\n\s*(?=\w)", "", text)  # a line may end inside a compound
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").split())
