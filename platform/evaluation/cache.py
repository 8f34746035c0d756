"""Finished policies and cells below ``DYNAFLIP_HOME/evaluation``: whole or absent.

A killed evaluation that is started again finds here what it finished.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynaflip.files import write_file
from dynaflip.platform.evaluation.plan import Cell, PolicySpec
from dynaflip.platform.evaluation.worker import CellResult
from dynaflip.platform.paths import home


def has_policy(spec: PolicySpec) -> bool:
    """Whether the policy is fitted already."""
    return _policy_path(spec.digest()).is_file()


def save_policy(digest: str, weights: dict[str, Any]) -> None:
    """Keep a fitted head's state dict."""
    from safetensors.torch import save

    plain = {name: tensor.contiguous() for name, tensor in weights.items()}
    write_file(_policy_path(digest), save(plain))


def load_policy(digest: str) -> dict[str, Any]:
    """A fitted head's state dict."""
    from safetensors.torch import load_file

    return load_file(_policy_path(digest))


def save_result(cell: Cell, result: CellResult) -> None:
    """Keep a cell's outcomes; its animation first, so that a result is never without it."""
    if result.animation is not None:
        write_file(animation_path(cell), result.animation)
    values = {k: v for k, v in asdict(result).items() if k != "animation"}
    values["episodes"] = [asdict(start) for start in cell.starts]
    values |= {"arm": cell.arm, "task": cell.task, "condition": cell.condition.name}
    write_file(_cell_path(cell), json.dumps(values, indent=1).encode())


def load_result(cell: Cell) -> CellResult | None:
    """A cell's outcomes, or None where it has not run (or its file is damaged)."""
    try:
        values = json.loads(_cell_path(cell).read_text())
        return CellResult(
            values["success_ever"],
            values["success_last"],
            values["steps"],
            values["seconds"],
            animation=None,
        )
    except (OSError, json.JSONDecodeError, KeyError):
        return None


def animation_path(cell: Cell) -> Path:
    """Where a recorded cell's GIF lies."""
    return _cell_path(cell).with_suffix(".gif")


def _policy_path(digest: str) -> Path:
    return home() / "evaluation" / "policies" / f"{digest}.safetensors"


def _cell_path(cell: Cell) -> Path:
    return home() / "evaluation" / "cells" / f"{cell.digest()}.json"
