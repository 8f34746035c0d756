"""A policy's folder, read for use: its encoder is checked, and no name in it chooses the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from dynaflip.encoders.checkpoint import CONFIG, load_for_use, weights_digest
from dynaflip.encoders.checkpoint import ENCODER as WEIGHTS
from dynaflip.errors import UserError
from dynaflip.eval.metrics.action_scale import ActionScale
from dynaflip.eval.policies.kept_policy import KeptPolicy
from dynaflip.eval.policies.policy_folder import (
    DESCRIPTION,
    ENCODER,
    TENSORS,
    UNITS_PREFIX,
    WORDS,
    PolicyDescription,
    read_description,
    shared_encoder,
)
from dynaflip.eval.policies.recipe import assemble, split_tensors
from dynaflip.eval.policies.registry import HEADS, READOUTS
from dynaflip.plugins import CLASS_PREFIX


def load_policy_folder(
    folder: str | Path,
    *,
    device: str | None = None,
    backbone: str | None = None,
    head: str | None = None,
    readout: str | None = None,
) -> KeptPolicy:
    """A policy for use, with its encoder.

    Args:
        folder: of a policy, with its encoder inside or beside it.
        device: of the encoder; the CPU by default.
        backbone, head, readout: your own class (``class:MODULE:NAME``) that the folder names.

    Raises:
        UserError: something is missing, damaged or of another encoder, or the folder names a class
            that is neither built in nor installed.
    """
    folder = Path(folder).expanduser().absolute()
    description = read_description(folder)
    _check_code(folder, description, head, readout)
    tensors = _read_tensors(folder)
    words, units = tensors.pop(WORDS, None), _pop_units(folder, tensors)
    at = _encoder_folder(folder, description)
    encoder = load_for_use(at, description.encoder, device=device, backbone=backbone)
    by_task = {}
    for index, task in enumerate(description.tasks):
        context = None if words is None else words[index].numpy()
        try:
            by_task[task] = assemble(
                description.recipe,
                split_tensors(tensors),
                encoder,
                context,
                cameras=max(len(description.cameras), 1),
            )
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"policy: {folder / TENSORS} does not fit {DESCRIPTION} ({reason})"
            ) from None
    return KeptPolicy(description, by_task, units)


def _check_code(
    folder: Path, description: PolicyDescription, head: str | None, readout: str | None
) -> None:
    """Refuse a head or read-out that is neither built in, nor installed, nor the caller's own."""
    for setting, saved, given, point in (
        ("head", description.head, head, HEADS),
        ("readout", description.readout, readout, READOUTS),
    ):
        if given is not None and given != saved:
            raise UserError(f"{setting}: the policy in {folder} has {saved}, not {given}")
        if given is None and saved.startswith(CLASS_PREFIX):
            raise UserError(
                f"{setting}: {folder} names {saved}, and a folder may not choose which code runs; "
                f"if it is yours, name it: load_policy(folder, {setting}={saved!r})"
            )
        point.check(saved, setting)


def _read_tensors(folder: Path) -> dict[str, Any]:
    path = folder / TENSORS
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"policy: {path} is missing; the folder is incomplete") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"policy: {path} cannot be read ({error})") from None


def _pop_units(folder: Path, tensors: dict[str, Any]) -> ActionScale | None:
    """Take the units of the actions out of a policy's tensors; None: they are in [-1, 1]."""
    names = [name for name in tensors if name.startswith(UNITS_PREFIX)]
    if not names:
        return None
    parts = {name.removeprefix(UNITS_PREFIX): tensors.pop(name).numpy() for name in names}
    try:
        return ActionScale(**parts)
    except TypeError:
        raise UserError(
            f"policy: {folder / TENSORS} lacks units of the actions ({', '.join(parts)} are there)"
        ) from None


def _encoder_folder(folder: Path, description: PolicyDescription) -> Path:
    """The encoder that the policy was fitted on, and no other."""
    wanted = description.encoder_digest
    for place in (folder / ENCODER, folder.parent / shared_encoder(wanted)):
        if not ((place / CONFIG).is_file() and (place / WEIGHTS).is_file()):
            continue
        found = weights_digest(place)
        if found != wanted:
            raise UserError(
                f"policy: {place} is the encoder {found}, and the policy in {folder} was fitted "
                f"on {wanted}; its actions would mean nothing"
            )
        return place
    raise UserError(
        f"policy: {folder} has no encoder: neither {ENCODER}/ in it nor {shared_encoder(wanted)}/ "
        f"beside it; copy that of {description.encoder} there"
    )
