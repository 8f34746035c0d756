"""The folder of a fitted policy: ``policy.json``, ``policy.safetensors``, ``encoder/``.

``encoder/`` is a plain folder of :mod:`dynaflip.encoders.checkpoint`. Where several policies share
an encoder, it lies once beside theirs, as ``encoder-DIGEST``. Nothing is pickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.eval.policies.recipe import PolicyRecipe

if TYPE_CHECKING:
    from dynaflip.eval.metrics.action_scale import ActionScale

FORMAT_VERSION = 1
DESCRIPTION, TENSORS, ENCODER = "policy.json", "policy.safetensors", "encoder"
WORDS = "task_words"  # tensor (tasks, C): the tasks' captions, so that use needs no text model
UNITS_PREFIX = "action_units."  # tensors of an ActionScale, where actions are a data set's own
_DIGEST = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class PolicyDescription:
    """Description of a policy, as ``policy.json`` has it: its data, inputs and actions."""

    head: str
    head_settings: dict[str, Any]
    readout: str
    readout_settings: dict[str, Any]
    adaptation: str  # of the encoder: frozen, lora or full
    seed: int
    environment: str  # empty where it was fitted on a data set
    tasks: tuple[str, ...]
    captions: tuple[str, ...]  # of the tasks
    demonstrations: int  # episodes a task
    image_px: int  # side of the images that it was fitted on; of a data set's, the short side
    proprioception: tuple[str, ...]  # entries that it reads; empty where it reads none
    actions: tuple[str, ...]  # entries that it gives
    control_hz: float  # actions a second
    encoder: str  # as the user named it
    encoder_digest: str  # of weights and preprocessing
    dynaflip_version: str
    data: str = ""  # the data set that it was fitted on, where it was no environment
    cameras: tuple[str, ...] = ()  # that it sees, in this order; empty: the environment's one
    precision: str = "float32"  # of the features that it was fitted on; in use they are float32

    @property
    def recipe(self) -> PolicyRecipe:
        """Recipe from features to actions."""
        return PolicyRecipe(
            self.head,
            self.head_settings,
            self.readout,
            self.readout_settings,
            bool(self.proprioception),
        )


def shared_encoder(digest: str) -> str:
    """Name of an encoder's folder beside those of the policies that share it."""
    return f"{ENCODER}-{digest}"


def write_policy(
    folder: Path,
    description: PolicyDescription,
    tensors: Mapping[str, Any],
    words: Any = None,
    units: ActionScale | None = None,
) -> None:
    """Write a policy's own two files; its encoder is the caller's to put in place.

    Args:
        folder: made if it is missing.
        description: of it.
        tensors: of head and read-out, as the fit gives them.
        words: (tasks, C) float32 of the tasks' captions, where there are several.
        units: of the actions, where they are a data set's own.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    written = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if words is not None:
        written[WORDS] = torch.from_numpy(words)
    if units is not None:
        parts = asdict(units).items()
        written |= {UNITS_PREFIX + name: torch.from_numpy(part) for name, part in parts}
    save_file(written, folder / TENSORS)
    (folder / TENSORS).chmod(0o644)  # it is to be shared
    described = {"format_version": FORMAT_VERSION, **asdict(description)}
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def read_description(folder: Path) -> PolicyDescription:
    """The description in a policy's folder.

    Raises:
        UserError: there is none, it cannot be read, or it is of another format.
    """
    path = folder / DESCRIPTION
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"holds no {DESCRIPTION}" if folder.is_dir() else "does not exist"
        raise UserError(f"policy: folder {folder} {what}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"policy: {path} cannot be read ({error})") from None
    version = described.get("format_version") if isinstance(described, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"policy: {path} has format {version}; this code reads {FORMAT_VERSION}, use the "
            "release that wrote it"
        )
    needed = [field.name for field in fields(PolicyDescription) if field.default is MISSING]
    if missing := [name for name in needed if name not in described]:
        raise UserError(f"policy: {path} lacks {', '.join(missing)}; the file is incomplete")
    if not _DIGEST.fullmatch(str(described["encoder_digest"])):
        raise UserError(f"policy: {path}: encoder_digest is no digest; the file is damaged")
    known = [field.name for field in fields(PolicyDescription) if field.name in described]
    values = {name: described[name] for name in known}
    lists = ("tasks", "captions", "proprioception", "actions", "cameras")
    values |= {name: tuple(values[name]) for name in lists if name in values}
    return PolicyDescription(**values)
