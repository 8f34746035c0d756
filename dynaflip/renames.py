"""Old names of settings, flags and values: they work for a minor version, with one warning line.

A settings dataclass lists what it renamed in two class variables::

    RENAMED: ClassVar[dict[str, str]] = {"old_field": "new_field"}
    RENAMED_VALUES: ClassVar[dict[str, dict[str, str]]] = {"field": {"old": "new"}}

Where the new field counts in other units, a third one has the new value of 1 of the old::

    RESCALED: ClassVar[dict[str, float]] = {"old_field": 0.1}

A field may be a section, and a value one word or a list of words. YAML keys, dotted flags and
saved settings all pass through here; defaults, errors and lists of what is known have the new
names only.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

from dynaflip.errors import UserError

# The release in which old names end.
UNTIL = "0.3"

Warn = Callable[[str], None]
_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Print a warning line to stderr, once per process."""
    if message not in _warned:
        _warned.add(message)
        print(f"warning: {message}", file=sys.stderr)


def quiet(message: str) -> None:
    """Print nothing: for settings that the program saved itself."""


def current_key(cls: Any, key: str) -> str:
    """A dotted key with the present names of its sections and of its field.

    Args:
        cls: the dataclass of the whole settings.
        key: dotted key; parts that no dataclass has stay as they are.
    """
    parts: list[str] = []
    for part in key.split("."):
        part = _renamed(cls).get(part, part)
        parts.append(part)
        cls = _section(cls, part)
    return ".".join(parts)


def rescaled(cls: Any, old_key: str, value: Any) -> Any:
    """The value of a setting given by its old dotted key, in the units of the present one."""
    *sections, field = old_key.split(".")
    for section in sections:
        cls = _section(cls, _renamed(cls).get(section, section))
    factor = getattr(cls, "RESCALED", {}).get(field)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if factor is None or not number else value * factor


def current_value(cls: Any, key: str, value: Any, where: str, warn: Warn = warn_once) -> Any:
    """A setting's value in its present words.

    Args:
        cls: the dataclass of the whole settings.
        key: dotted key, with present names.
        value: as parsed; words and lists of words are translated.
        where: what the warning begins with: the flag, or the file and the key.
        warn: what to do with the warning line.
    """
    *sections, field = key.split(".")
    for section in sections:
        cls = _section(cls, section)
    return _translate(getattr(cls, "RENAMED_VALUES", {}).get(field, {}), value, where, warn)


def current_settings(
    cls: Any, values: Mapping[str, Any], *, where: str = "", warn: Warn = quiet
) -> dict[str, Any]:
    """Nested settings with the present names of sections, fields and values.

    Args:
        cls: their dataclass.
        values: as read from YAML or JSON; keys that no dataclass has stay as they are.
        where: the file, for warnings and errors.
        warn: :func:`warn_once` for what a user wrote; by default nothing is printed.

    Raises:
        UserError: a setting stands under its old and its new name.
    """
    return _current(cls, values, "", f"{where}: " if where else "", warn)


def first_settings(config: Any) -> Any:
    """Settings as nested dictionaries under the first names that they had.

    What was digested under an old name has the same digest after the renaming. So has what was
    digested before a setting existed: a field that its dataclass lists in
    ``ADDED: ClassVar[tuple[str, ...]]`` is left out while it has its default.
    """
    if isinstance(config, list | tuple):
        return [first_settings(item) for item in config]
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    old_names = _inverse(_renamed(type(config)))
    renamed_values = getattr(type(config), "RENAMED_VALUES", {})
    first: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in getattr(type(config), "ADDED", ()) and value == _default(field):
            continue
        if field.name in renamed_values:
            value = _translate(_inverse(renamed_values[field.name]), value, "", quiet)
        old_name = old_names.get(field.name, field.name)
        if factor := getattr(type(config), "RESCALED", {}).get(old_name):
            before = value / factor
            value = round(before) if abs(before - round(before)) < 1e-9 else before
        first[old_name] = first_settings(value)
    return first


def current_flags(argv: list[str], renamed: Mapping[str, str]) -> list[str]:
    """A command line with the present names of a job's own flags.

    Args:
        argv: words of the command line.
        renamed: old to new name, both without dashes: ``{"arm": "variant"}``.

    Raises:
        UserError: a flag is given by its old and by its new name.
    """
    given = {word.partition("=")[0] for word in argv}
    words = []
    for word in argv:
        flag, equals, value = word.partition("=")
        new = renamed.get(flag.removeprefix("--")) if flag.startswith("--") else None
        if new is not None:
            if f"--{new}" in given:
                raise UserError(f"command line: {flag} is the old name of --{new}; give one")
            warn_once(f"{flag} is now --{new}; the old name works until {UNTIL}")
            word = f"--{new}{equals}{value}"
        words.append(word)
    return words


def current_word(flag: str, value: str, renamed: Mapping[str, str]) -> str:
    """The present name of a flag's value, with one warning line where it is an old one."""
    return _translate(renamed, value, flag, warn_once)


def _current(
    cls: Any, values: Mapping[str, Any], prefix: str, where: str, warn: Warn
) -> dict[str, Any]:
    renamed = _renamed(cls)
    result: dict[str, Any] = {}
    for key, value in values.items():
        new = renamed.get(key, key)
        full = f"{where}{prefix}{new}"
        if new != key:
            if new in values:
                raise UserError(f"{where}{prefix}{key} is the old name of {prefix}{new}; give one")
            value = rescaled(cls, key, before := value)
            same = value == before
            given, now = (key, new) if same else (f"{key} {before}", f"{new} {value:g}")
            warn(f"{where}{prefix}{given} is now {prefix}{now}; the old name works until {UNTIL}")
        section = _section(cls, new)
        if section is not None and isinstance(value, Mapping):
            value = _current(section, value, f"{prefix}{new}.", where, warn)
        elif section is not None and isinstance(value, list):
            value = [
                _current(section, item, f"{prefix}{new}.{number}.", where, warn)
                if isinstance(item, Mapping)
                else item
                for number, item in enumerate(value)
            ]
        else:
            words = getattr(cls, "RENAMED_VALUES", {}).get(new, {})
            value = _translate(words, value, full, warn)
        result[new] = value
    return result


def _translate(words: Mapping[str, str], value: Any, where: str, warn: Warn) -> Any:
    if isinstance(value, list | tuple):
        return [_translate(words, item, where, warn) for item in value]
    if not isinstance(value, str) or value not in words:
        return value
    warn(f"{where} {value} is now {words[value]}; the old value works until {UNTIL}")
    return words[value]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _renamed(cls: Any) -> dict[str, str]:
    return getattr(cls, "RENAMED", {})


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    """New to old; of several old names the first listed."""
    return {new: old for old, new in reversed(list(names.items()))}


def _section(cls: Any, field: str) -> Any:
    """The dataclass of a field, or of a list's items; None for a plain value."""
    if not dataclasses.is_dataclass(cls):
        return None
    expected = typing.get_type_hints(cls).get(field)
    for kind in (expected, *typing.get_args(expected)):
        if dataclasses.is_dataclass(kind):
            return kind
    return None
