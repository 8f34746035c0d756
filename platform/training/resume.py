"""Checkpoints of a running pretraining: everything to go on from exactly this step.

A checkpoint folder holds ``model.safetensors``, ``optimizer.safetensors`` and
``state.json`` (counters, schedule, optimizer settings, seed, the run's full config).
Nothing is pickled. Random numbers need no state of their own: each is a function of
the seed and these counters (:func:`seed_step`, :mod:`.data`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

FORMAT = 1


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step of one rank (negatives, dropout), so that order is all that counts.

    Weights are initialised under step 0 of rank 0, alike everywhere.
    """
    # SeedSequence mixes the three numbers, so that neighbouring steps are unrelated.
    mixed = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed))


def save_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    *,
    step: int,
    steps_per_epoch: int,
    config: dict[str, Any],
) -> None:
    """Write a checkpoint into an existing folder.

    Args:
        folder: to write into.
        model: the bare model, not its DDP wrapper.
        optimizer: AdamW.
        schedule: of the learning rate.
        step: steps done.
        steps_per_epoch: of this run; epoch and position in it follow from step.
        config: the resolved settings.
    """
    save_model(model, str(folder / "model.safetensors"))
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    for index, slots in state["state"].items():
        for name, value in slots.items():
            tensors[f"{index}.{name}"] = value.contiguous()
    save_file(tensors, str(folder / "optimizer.safetensors"))
    rates = schedule.state_dict()
    document = {
        "format": FORMAT,
        "step": step,
        "steps_per_epoch": steps_per_epoch,
        "epoch": step // steps_per_epoch,
        "batch_in_epoch": step % steps_per_epoch,
        "random": {"kind": "counter", "seed": config["train"]["seed"], "next_step": step},
        "optimizer_groups": state["param_groups"],
        "schedule": {key: value for key, value in rates.items() if key != "lr_lambdas"},
        "config": config,
    }
    (folder / "state.json").write_text(json.dumps(document, indent=1))


def load_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> int:
    """Restore a checkpoint in place; returns the steps done.

    Raises:
        ValueError: the folder was written in another format.
    """
    document = read_state(folder)
    load_model(model, str(folder / "model.safetensors"))
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
    return document["step"]


def read_state(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's ``state.json``: counters and config, without the tensors."""
    document = json.loads((folder / "state.json").read_text())
    if document.get("format") != FORMAT:
        raise ValueError(f"{folder} holds a checkpoint of format {document.get('format')}")
    return document
