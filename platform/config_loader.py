"""Settings: nested dataclasses, filled from YAML and from dotted overrides.

Defaults live in the dataclasses alone. A key that no dataclass has is an error
that names the key and the nearest one there is; so is a value of the wrong type
or out of range (each dataclass checks itself in ``__post_init__``).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dynaflip.errors import UserError
from dynaflip.renames import (
    UNTIL,
    current_key,
    current_settings,
    current_value,
    first_settings,
    quiet,
    rescaled,
    warn_once,
)

C = TypeVar("C")


def load_config(
    cls: type[C],
    yaml_path: str | None,
    overrides: dict[str, Any],
    *,
    saved: bool = False,
    below: Mapping[str, Any] | None = None,
) -> C:
    """Build settings from defaults, then a YAML file, then dotted overrides.

    Old names (:mod:`dynaflip.renames`) are read as the present ones.

    Args:
        cls: a frozen dataclass, whose fields may be dataclasses themselves.
        yaml_path: a file with some of the settings, or None.
        overrides: dotted key to value; text is read as YAML (``"0.5"`` is a number), and
            for a list also as words with commas between (``none``: an empty one).
        saved: the program wrote the file itself, so old names in it are no warning.
        below: settings as YAML has them (a named protocol's) that the file overrides.

    Raises:
        UserError: the file is missing or damaged, a key does not exist or is given by its old
            and its new name, or a value is of the wrong type or out of range.
    """
    warn = quiet if saved else warn_once
    where = yaml_path or "settings"
    values: dict[str, Any] = read_yaml(yaml_path) if yaml_path else {}
    values = current_settings(cls, values, where=where, warn=warn)
    _refuse_unknown(cls, values, prefix="", where=where)
    if below is not None:
        named = current_settings(cls, below, where="protocol", warn=warn)
        _refuse_unknown(cls, named, prefix="", where="protocol")
        values = merged(cls, named, values)
    known = dict(flat_fields(cls))
    for given, value in overrides.items():
        key = current_key(cls, given)
        expected = setting_type(cls, key)
        if expected is None:
            raise UserError(_unknown(key, list(known), "command line"))
        if key != given:
            if key in overrides:
                raise UserError(f"command line: --{given} is the old name of --{key}; give one")
            warn(f"--{given} is now --{key}; the old name works until {UNTIL}")
        if isinstance(value, str):
            value = _parse_text(value, expected)
        value = rescaled(cls, given, value)
        if (entry := entry_of(cls, key)) is not None:
            _set_entry(values, *entry, value)
            continue
        _set(values, key, current_value(cls, key, value, f"--{key}", warn))
    if not saved:  # a saved file has all settings
        values = _with_defaults_of_sections(cls, values)
    # Here, so that a GPU machine without it can train.
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        raise UserError("; ".join(_explain(problem) for problem in error.errors())) from None


def merged(cls: Any, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over others, section by section; a list or mapping is replaced whole.

    Args:
        cls: their dataclass.
        below: as YAML has them.
        above: the same; they win.
    """
    types = typing.get_type_hints(cls)
    result = {**below, **above}
    for key in below.keys() & above.keys():
        sections = isinstance(below[key], Mapping) and isinstance(above[key], Mapping)
        if sections and dataclasses.is_dataclass(types.get(key)):
            result[key] = merged(types[key], below[key], above[key])
    return result


def flat_fields(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a dataclass with the type of its value."""
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(types[field.name]):
            yield from flat_fields(types[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, types[field.name]


def entry_of(cls: Any, key: str) -> tuple[str, str] | None:
    """The setting and the name of its entry, where a dotted key names an entry of a mapping.

    ``objective.extra_terms.class:my.losses:Smooth`` is the entry ``class:my.losses:Smooth``: all
    after the setting's key is the name, dots included.
    """
    for field, expected in flat_fields(cls):
        if typing.get_origin(expected) is dict and key.startswith(f"{field}."):
            return field, key.removeprefix(f"{field}.")
    return None


def setting_type(cls: Any, key: str) -> Any | None:
    """The type of a dotted key's value, an entry of a mapping included; None: no such setting."""
    known = dict(flat_fields(cls))
    if (entry := entry_of(cls, key)) is not None:
        return typing.get_args(known[entry[0]])[1]
    return known.get(key)


def with_entry(mapping: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A mapping with one entry replaced; of one that is a section a plain value is the weight."""
    before = mapping.get(name)
    if isinstance(before, dict) and not isinstance(value, dict):
        value = {**before, "weight": value}
    return {**mapping, name: value}


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved settings as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def to_yaml(config: Any) -> str:
    """The resolved settings as YAML that :func:`load_config` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def config_digest(config: Any) -> str:
    """A short digest that is equal for equal settings, whatever their names were at the time.

    Args:
        config: settings, or a dictionary from :func:`dynaflip.renames.first_settings`.
    """
    text = json.dumps(first_settings(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _GivenTwice(yaml.constructor.ConstructorError):
    """A key that a section has twice: the last one would win unseen."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, without keys that are given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise _GivenTwice(None, None, f"gives {key.value} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str, flag: str = "--config") -> dict[str, Any]:
    """A file of settings as nested dictionaries.

    Args:
        path: of the file.
        flag: by which the user named it, for errors.

    Raises:
        UserError: it is missing, damaged, or gives a key twice.
    """
    try:
        values = yaml.load(Path(path).read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"{flag}: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag}: cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f", line {line + 1}" if line is not None else ""
        twice = getattr(error, "problem", "") if isinstance(error, _GivenTwice) else ""
        raise UserError(f"{flag}: {path}{where} {twice or 'is not valid YAML'}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{flag}: {path} must hold `key: value` lines")
    return values


def _refuse_unknown(cls: Any, values: dict[str, Any], prefix: str, where: str) -> None:
    types = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key, value in values.items():
        if key not in names:
            raise UserError(_unknown(prefix + str(key), [prefix + n for n in names], where))
        if dataclasses.is_dataclass(types[key]):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {prefix}{key} is a section; give `key: value` below it")
            _refuse_unknown(types[key], value, f"{prefix}{key}.", where)
        for inner in typing.get_args(types[key]):  # a list of sections
            if dataclasses.is_dataclass(inner):
                items = value if isinstance(value, list) else [None]
                for number, item in enumerate(items):
                    if not isinstance(item, dict):
                        raise UserError(f"{where}: {prefix}{key} is a list of sections")
                    _refuse_unknown(inner, item, f"{prefix}{key}.{number}.", where)


def _with_defaults_of_sections(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Given settings, with what a section's place sets otherwise than the section's own class.

    ``policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(chunk=16))`` has chunk 16
    also where another of its settings is given.
    """
    types = typing.get_type_hints(cls)
    result = dict(values)
    for field in dataclasses.fields(cls):
        section, given = types[field.name], values.get(field.name)
        if not dataclasses.is_dataclass(section) or not isinstance(given, dict):
            continue
        if field.default_factory is not dataclasses.MISSING and field.default_factory != section:
            here, usual = to_dict(field.default_factory()), to_dict(section())  # type: ignore[operator]
            result[field.name] = given = _other_values(here, usual) | given
        result[field.name] = _with_defaults_of_sections(section, given)
    return result


def _other_values(here: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """The plain values that differ; sections within are looked at in their own place."""
    return {
        key: value
        for key, value in here.items()
        if value != usual.get(key) and not isinstance(value, dict)
    }


def _unknown(key: str, known: list[str], where: str) -> str:
    near = difflib.get_close_matches(key, known, n=1) or [
        name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]
    ]
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
    return f"{where}: there is no setting {key}{hint}"


def _parse_text(text: str, expected: Any) -> Any:
    if typing.get_origin(expected) is tuple and not text.lstrip().startswith("["):
        return [_parse_text(word, typing.get_args(expected)[0]) for word in _words(text)]
    if expected is str:
        return text
    if text == "" and type(None) not in typing.get_args(expected):
        return text
    try:
        # YAML 1.1 reads 1e-4 as text; JSON reads it as the number that is meant.
        return json.loads(text)
    except json.JSONDecodeError:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text


def _words(text: str) -> list[str]:
    """``a,b`` as a list; ``none`` is an empty one, and ``name=a,b`` one word with a comma."""
    if "=" in text:
        return [text]
    words = [word.strip() for word in text.split(",")]
    return [word for word in words if word] if words != ["none"] else []


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[last] = value


def _set_entry(values: dict[str, Any], key: str, name: str, value: Any) -> None:
    *sections, field = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    mapping = values.get(field)
    values[field] = with_entry(mapping if isinstance(mapping, dict) else {}, name, value)


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    if problem["type"] == "value_error":  # raised in a __post_init__: it names the value itself
        return f"{where}.{message}" if where else message
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {message[0].lower()}{message[1:]}{shown}"
