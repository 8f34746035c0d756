"""Checkpoint format: everything needed to resume from exactly this step.

The folder has a safetensors file for each module (``model``, ``average`` where weights are
averaged, ``objective`` where its terms have parameters or buffers), ``optimizer.safetensors``,
``position.safetensors`` (the examples of the epoch so far) and ``state.json`` (counters,
schedule, optimizer settings, seed, the run's full config, the newest metrics, and the version of
the code that orders the examples). Nothing is
pickled. Random numbers need no state of their own: each is a function of the seed and
these counters (:func:`seed_step`, :mod:`.data`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FORMAT = 2
STATE = "state.json"


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step of one rank (dropout), so that a resumed step draws the same.

    Weights are initialised under step 0 of rank 0, alike everywhere.
    """
    # SeedSequence mixes the three numbers, so that neighbouring steps are unrelated.
    mixed = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed))


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state on the CPU, which a thread can write while training continues."""

    tensors: dict[str, dict[str, Tensor]]  # file's stem to its tensors
    document: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the files into an existing folder."""
        for stem, tensors in self.tensors.items():
            save_file(tensors, str(folder / f"{stem}.safetensors"))
        (folder / STATE).write_text(json.dumps(self.document, indent=1))


class HostBuffers:
    """Memory on the host for the copies of a snapshot.

    A copy from a GPU goes to pinned memory, which is several times faster and costs much to
    allocate: it is kept for the next snapshot. So a snapshot must be written before the next one is
    taken. From a CPU it is a plain copy.
    """

    def __init__(self) -> None:
        """Allocate nothing yet."""
        self._pinned: dict[str, Tensor] = {}

    def copy(self, name: str, value: Tensor) -> Tensor:
        """Begin a copy of a tensor in the ordinary memory order, which safetensors wants."""
        value = value.detach()
        if not value.is_cuda:
            return value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        buffer = self._pinned.get(name)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._pinned[name] = buffer
        return buffer.copy_(value, non_blocking=True)

    def finish(self) -> None:
        """Wait for the copies from the GPU."""
        if self._pinned:
            torch.cuda.synchronize()


def take_snapshot(
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    *,
    buffers: HostBuffers | None = None,
    position: Mapping[str, Tensor],
    document: Mapping[str, Any],
) -> Snapshot:
    """Copy everything that training changes.

    Args:
        modules: name to bare module, not its DDP wrapper; those without state make no file.
        optimizer: AdamW.
        schedule: of the learning rate.
        buffers: that the snapshot before no longer needs; None allocates new ones.
        position: tensors of the position in the data.
        document: the rest of ``state.json``: counters, config, metrics; JSON values.
    """
    buffers = buffers or HostBuffers()
    tensors = {}
    for name, module in modules.items():
        if state := module.state_dict():
            tensors[name] = {k: buffers.copy(f"{name}.{k}", v) for k, v in state.items()}
    state = optimizer.state_dict()
    tensors["optimizer"] = {
        f"{index}.{name}": buffers.copy(f"optimizer.{index}.{name}", value)
        for index, slots in state["state"].items()
        for name, value in slots.items()
    }
    tensors["position"] = {name: buffers.copy(name, value) for name, value in position.items()}
    buffers.finish()
    rates = schedule.state_dict()
    plain = {key: value for key, value in rates.items() if key != "lr_lambdas"}
    groups = json.loads(json.dumps(state["param_groups"]))
    return Snapshot(
        tensors,
        {"format": FORMAT, **document, "optimizer_groups": groups, "schedule": dict(plain)},
    )


def restore(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore a checkpoint in place; returns the document and the position's tensors.

    Raises:
        ValueError: the folder was written in another format.
    """
    document = read_state(folder)
    for name, module in modules.items():
        if module.state_dict():
            module.load_state_dict(load_file(str(folder / f"{name}.safetensors")))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(str(folder / "optimizer.safetensors")).items():
        index, _, name = key.partition(".")
        like = parameters[int(index)]
        if value.shape == like.shape:
            # The parameter's own memory order (channels_last): a fused step walks both at once.
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        slots.setdefault(int(index), {})[name] = value
    groups = document["optimizer_groups"]
    for group in groups:  # JSON has no tuples
        group["betas"] = tuple(group["betas"])
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    schedule.load_state_dict({**schedule.state_dict(), **document["schedule"]})
    return document, load_file(str(folder / "position.safetensors"))


def read_state(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's ``state.json``: counters and config, without the tensors."""
    document = json.loads((folder / STATE).read_text())
    if document.get("format") != FORMAT:
        raise ValueError(f"{folder} holds a checkpoint of format {document.get('format')}")
    return document
