"""The search space: ``KEY=log(a,b)`` for any dotted setting of pretraining."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from dynaflip.errors import UserError
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.platform.config_loader import (
    entry_of,
    flatten,
    load_config,
    setting_type,
    to_dict,
    with_entry,
)
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.renames import UNTIL, current_key, rescaled, warn_once

if TYPE_CHECKING:
    from optuna.trial import Trial

KINDS = ("uniform", "log", "int", "choice")
SEED = "train.seed"
_SPEC = re.compile(r"(?P<key>[\w.:-]+)=(?P<kind>\w+)\((?P<inside>.*)\)")
# Settings that the sweep itself decides.
_RESERVED = {
    SEED: "the confirmation varies it",
    "train.steps": "trials are compared at equal length",
    "train.epochs": "trials are compared at equal length",
    "triplets": "trials are compared on the same data",
    "tracking.experiment": "--sweep.experiment names it",
    "tracking.model_name": "one model gets the versions",
}


@dataclass(frozen=True)
class Dimension:
    """One searched setting."""

    key: str  # dotted
    kind: str  # one of KINDS
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Trial) -> Any:
        """The trial's value: the one it already has, or a new one from the study's sampler."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.key, self.choices)
        if self.kind == "int":
            return trial.suggest_int(self.key, int(self.low), int(self.high))
        return trial.suggest_float(self.key, self.low, self.high, log=self.kind == "log")

    def text(self) -> str:
        """The dimension as on the command line."""
        if self.kind == "choice":
            return f"{self.key}=choice({','.join(_shown(c) for c in self.choices)})"
        return f"{self.key}={self.kind}({_shown(self.low)},{_shown(self.high)})"


def parse_space(specs: Sequence[str]) -> tuple[Dimension, ...]:
    """Read ``--search`` specifications.

    Raises:
        UserError: an unknown key, an empty range, log of 0, two specifications of one key, …
    """
    if not specs:
        raise UserError(
            "--search: nothing to search; give for example objective.volume=log(0.1,10)"
        )
    dimensions: list[Dimension] = []
    for spec in specs:
        dimension = _parse(spec)
        if any(d.key == dimension.key for d in dimensions):
            raise UserError(f"--search: {dimension.key} is given twice")
        dimensions.append(dimension)
    return tuple(dimensions)


def paper_values(space: Sequence[Dimension], base: PretrainConfig) -> dict[str, Any]:
    """Values of trial 0: the paper's objective, and for other settings those of ``base``.

    Raises:
        UserError: a choice that does not offer that value, or a logarithmic range where it is 0.
    """
    others = {k: v for k, v in flatten(to_dict(base)).items() if not k.startswith("objective.")}
    current = others | {
        f"objective.{key}": value for key, value in flatten(to_dict(ObjectiveConfig())).items()
    }
    values = {}
    for d in space:
        # Only a mapping's entries can be missing: the paper has no extra terms, so weight 0.
        values[d.key] = current.get(d.key, 0.0)
        if d.kind == "choice" and values[d.key] not in d.choices:
            raise UserError(
                f"--search {d.text()}: trial 0 has {_shown(values[d.key])}, which is not among "
                f"the choices; add it"
            )
        if d.kind == "log" and values[d.key] <= 0:
            raise UserError(
                f"--search {d.text()}: trial 0 has the paper's {_shown(values[d.key])}, which has "
                f"no logarithm; use {d.key}=uniform(0,{_shown(d.high)})"
            )
    return values


def with_values(base: PretrainConfig, values: dict[str, Any]) -> PretrainConfig:
    """Settings with some dotted keys replaced.

    Raises:
        ValueError: a value that its setting refuses.
    """
    changed: Any = base
    for key, value in values.items():
        entry = entry_of(type(base), key)
        if entry is not None:
            key = entry[0]
            value = with_entry(_value_of(changed, key), entry[1], value)
        changed = _replaced(changed, key.split("."), value)
    return changed


def short_names(space: Sequence[Dimension]) -> list[str]:
    """Column titles: the last word of each key where that is unique."""
    last = [d.key.rsplit(".", 1)[-1] for d in space]
    return [d.key if last.count(name) > 1 else name for d, name in zip(space, last, strict=True)]


def _value_of(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _replaced(config: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    if rest:
        value = _replaced(getattr(config, name), rest, value)
    return dataclasses.replace(config, **{name: value})


def _parse(spec: str) -> Dimension:
    match = _SPEC.fullmatch(spec.replace(" ", ""))
    if match is None or match["kind"] not in KINDS:
        raise UserError(
            f"--search {spec}: write KEY=log(a,b), KEY=uniform(a,b), KEY=int(a,b) or "
            f"KEY=choice(a,b,…)"
        )
    key, kind = current_key(PretrainConfig, match["key"]), match["kind"]
    if rescaled(PretrainConfig, match["key"], 1.0) != 1.0:
        raise UserError(f"--search {spec}: {match['key']} is now {key}, in other units")
    if key != match["key"]:
        warn_once(f"--search {match['key']} is now {key}; the old name works until {UNTIL}")
    expected = setting_type(PretrainConfig, key)
    if expected is None:
        _check(spec, {key: 0})  # refuses, and names the nearest key
    if key in _RESERVED:
        raise UserError(f"--search {spec}: {key} cannot be searched: {_RESERVED[key]}")
    words = [word for word in match["inside"].split(",") if word]
    choice = kind == "choice"
    dimension = _choice(spec, key, words) if choice else _range(spec, key, kind, words, expected)
    for end in dimension.choices if choice else (dimension.low, dimension.high):
        _check(spec, {key: int(end) if kind == "int" else end})
    return dimension


def _check(spec: str, values: dict[str, Any]) -> None:
    """Check values with the settings' own validation and messages."""
    try:
        load_config(PretrainConfig, None, values)
    except UserError as error:
        said = str(error).removeprefix("command line: ")
        raise UserError(f"--search {spec}: {said}") from None


def _choice(spec: str, key: str, words: list[str]) -> Dimension:
    choices = tuple(map(_value, words))
    if len(choices) < 2 or len(set(map(str, choices))) < len(choices):
        raise UserError(f"--search {spec}: give at least two different choices")
    return Dimension(key, "choice", choices=choices)


def _range(spec: str, key: str, kind: str, words: list[str], expected: Any) -> Dimension:
    try:
        low, high = (float(word) for word in words)
    except ValueError:
        raise UserError(f"--search {spec}: {kind} takes two numbers, {kind}(low,high)") from None
    types = {expected, *typing.get_args(expected)}
    if not types & {int, float}:
        raise UserError(f"--search {spec}: {key} is no number; use {key}=choice(a,b,…)")
    if float not in types and kind != "int":
        raise UserError(f"--search {spec}: {key} is a whole number; use {key}=int(low,high)")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise UserError(f"--search {spec}: int takes two whole numbers")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"--search {spec}: the range is empty: {low:g} is not below {high:g}")
    if kind == "log" and low <= 0:
        raise UserError(f"--search {spec}: the logarithm of {low:g} does not exist; begin above 0")
    return Dimension(key, kind, low, high)


def _value(word: str) -> Any:
    """The value of a word, as in a settings file; plain YAML 1.1 would read 1e-3 as text."""
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return yaml.safe_load(word)


def _shown(value: Any) -> str:
    """Text that reads back as exactly this value: a resumed study refuses another space."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value)
