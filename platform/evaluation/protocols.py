"""Evaluation protocols by name: a YAML file each, and what a run may call itself.

A protocol names its question, what it may be used for and what not, and the settings of a suite. A
run bears its name alone where nothing that matters was changed; otherwise the name with what was.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.config_loader import load_config, merged, read_yaml, to_dict
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoder_entries import read_entries

# Beside the jobs, in a checkout and in an installed package.
FOLDER = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "protocols"
_KEYS = ("about", "suite", "extends", "settings")
_ABOUT = ("question", "for", "not_for", "pretraining")
# What no result depends on, and which encoders are compared.
_FREE = {
    "encoder", "encoders", "experiment", "backbone",
    "environments", "keep_policies", "check_harness", "protocol", "fits", "encoder_actor",
}  # fmt: skip
# Sections that are read by one head, read-out or adaptation: compared as these are asked for.
_SECTIONS = ("behaviour_cloning", "diffusion", "attentive", "spatial_softmax", "end_to_end")


@dataclass(frozen=True)
class Protocol:
    """A named evaluation."""

    name: str  # of the file
    path: Path
    question: str
    use: str  # what it may be used for
    not_for: str
    pretraining: str  # which configurations make an encoder for it
    suite: str
    settings: dict[str, Any]  # of the suite, as YAML has them


def protocol_names() -> list[str]:
    """Names of the protocols that come with the package, today's headline first."""
    return sorted((path.stem for path in FOLDER.glob("*.yaml")), key=lambda n: (n != "headline", n))


def read_protocol(name: str) -> Protocol:
    """Read a protocol by its name, or a user's own YAML file.

    Raises:
        UserError: there is none of that name, or the file is no protocol.
    """
    own = name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if own else FOLDER / f"{name}.yaml"
    if not path.is_file() or ("/" in name and not own):
        raise UserError(
            f"--protocol: there is no {name}; known: {', '.join(protocol_names())}; or give a "
            "YAML file of your own"
        )
    values = read_yaml(str(path), "--protocol")
    for key in values:
        if key not in _KEYS:
            raise UserError(f"--protocol: {path}: there is no key {key}; known: {', '.join(_KEYS)}")
    about = values.get("about")
    if not isinstance(about, dict) or set(about) != set(_ABOUT):
        raise UserError(f"--protocol: {path}: about must hold {', '.join(_ABOUT)}")
    settings = _section(values, "settings", path)
    if (below := values.get("extends")) is not None:
        extended = read_yaml(str(path.parent / str(below)), "--protocol")
        settings = merged(RolloutConfig, extended, settings)
    text = {key: " ".join(str(about[key]).split()) for key in _ABOUT}
    return Protocol(
        path.stem,
        path.absolute(),
        text["question"],
        text["for"],
        text["not_for"],
        text["pretraining"],
        str(values.get("suite", "rollouts")),
        settings,
    )


def settings_below(protocol: Protocol, name: str) -> dict[str, Any]:
    """The protocol's settings, with its name as the user gave it: what other settings override."""
    own = str(protocol.path) if name.endswith((".yaml", ".yml")) else name
    return {**protocol.settings, "protocol": own}


def changes(config: RolloutConfig, suite: str = "rollouts") -> dict[str, tuple[Any, Any]]:
    """Differences from the protocol that settings name: dotted key → its value, the protocol's.

    Raises:
        UserError: the protocol is gone, or does not fit the settings' environment.
    """
    protocol = read_protocol(config.protocol)
    different: dict[str, tuple[Any, Any]] = {}
    if suite != protocol.suite:
        different["suite"] = suite, protocol.suite
    # In the environment of the settings, so that its defaults are no further changes.
    there = str(protocol.settings.get("environment") or RolloutConfig.environment)
    if there != config.environment:
        different["environment"] = config.environment, there
    same = {"encoder": config.encoder, "environment": config.environment}
    named = protocol.settings
    if there != config.environment:
        named = {k: v for k, v in named.items() if k not in ("tasks", "factors", "horizon_steps")}
    meant = load_config(RolloutConfig, None, same, below=named)
    ours, theirs = _compared(config), _compared(meant)
    for key in theirs:
        if ours[key] != theirs[key] and (key != "baselines" or _lacks_baseline(config, meant)):
            different[key] = ours[key], theirs[key]
    return different


def label_of(config: RolloutConfig, suite: str = "rollouts") -> str:
    """Name of a run of these settings: ``NAME``, or ``NAME, changed: …``; or nothing.

    Args:
        config: of the evaluation.
        suite: that it is run by.
    """
    if not config.protocol:
        return ""
    name, different = Path(config.protocol).stem, changes(config, suite)
    return f"{name}, changed: {', '.join(different)}" if different else name


def change_lines(config: RolloutConfig, suite: str = "rollouts") -> list[str]:
    """Differences from the named protocol, a line a setting."""
    return [
        f"changed: {key} is {_text(ours)}, {Path(config.protocol).stem} has {_text(theirs)}"
        for key, (ours, theirs) in changes(config, suite).items()
    ]


def described(protocol: Protocol) -> list[str]:
    """A protocol as a listing has it: its question, what it is for, and what it runs."""

    def shown(key: str) -> str:
        value = protocol.settings.get(key, getattr(RolloutConfig, key, None))
        return _text(value) if value not in ([], (), None) else "the environment's"

    numbers = [*protocol.settings.get("fewer_demonstrations", []), shown("demonstrations")]
    return [
        protocol.name,
        f"  {protocol.question}",
        f"  for: {protocol.use}",
        f"  not for: {protocol.not_for}",
        f"  pretrain with: {protocol.pretraining}",
        f"  split {shown('split')}, {shown('environment')}, tasks {shown('tasks')}, "
        f"factors {shown('factors')}, level {shown('levels')}",
        f"  {shown('seeds')} seeds, {shown('episodes')} episodes a job, "
        f"{', '.join(map(str, numbers))} demonstrations a task, baselines {shown('baselines')}",
    ]


def _section(values: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    section = values.get(key)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise UserError(f"--protocol: {path}: {key} must hold `key: value` lines")
    return section


def _compared(config: RolloutConfig) -> dict[str, Any]:
    """What results depend on."""
    from dynaflip.eval.envs.registry import environment

    spec, values = environment(config.environment), to_dict(config)
    plain = {key: value for key, value in values.items() if key not in {*_FREE, *_SECTIONS}}
    plain["environment"] = None  # compared by name
    # Where images are encoded is free; in which precision is not.
    plain["encoder_actor.precision"] = config.encoder_actor.precision
    # A set of tasks is its tasks, and all factors are all factors.
    plain["tasks"] = sorted(spec.tasks_of(config.tasks))
    plain["factors"] = sorted(config.factors or spec.factors)
    for key in ("levels", "proprioception", "fewer_demonstrations", "baselines"):
        plain[key] = sorted(plain[key])
    plain["head_settings"] = {}
    plain |= {f"{config.head}.{k}": v for k, v in config.settings_of_head().items()}
    plain["readout_settings"] = {}
    plain |= {f"{config.readout}.{k}": v for k, v in config.settings_of_readout().items()}
    if config.adaptation != "frozen":
        tuned = dataclasses.asdict(config.end_to_end)
        plain |= {f"end_to_end.{key}": value for key, value in tuned.items()}
    return plain


def _lacks_baseline(config: RolloutConfig, meant: RolloutConfig) -> bool:
    """True if a baseline of the protocol is missing; more of them change no result."""
    named = {entry.baseline for entry in read_entries(config.encoders)}
    return not set(meant.baselines) <= {*config.baselines, *named}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
