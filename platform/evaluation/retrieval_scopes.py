"""Retrieval scopes that say nothing about an encoder: they are named, and not shown as scores."""

from __future__ import annotations

from typing import Any

from dynaflip.eval.plots import SCOPE_NAMES
from dynaflip.platform.training.config import PretrainConfig


def drop_meaningless(retrieval: dict[str, dict[str, float]], info: dict[str, Any]) -> list[str]:
    """Take scores that mean nothing out of the metrics, in place; a note for each.

    Arguments as of :func:`meaningless_scopes`.
    """
    notes = []
    for scope, reason in meaningless_scopes(retrieval, info).items():
        notes.append(f"retrieval, {SCOPE_NAMES[scope]}, is not shown: {reason}")
        for metrics in retrieval.values():
            for key in [key for key in metrics if key.startswith(f"retrieval/{scope}/")]:
                del metrics[key]
    return notes


def meaningless_scopes(
    retrieval: dict[str, dict[str, float]], info: dict[str, Any]
) -> dict[str, str]:
    """Scopes of retrieval whose score means nothing, with the reason.

    Among windows of one clip that all overlap, retrieval is chance by construction where the
    pretraining left overlapping windows out of its negatives: nothing taught it to tell them apart.

    Args:
        retrieval: ``trained`` and ``initial`` → metrics.
        info: of the encoder.
    """
    usual = PretrainConfig().objective
    saved = info.get("config", {}).get("objective", {})
    negatives = saved.get("negatives", usual.negatives)
    masked = saved.get("overlapping_negatives", usual.overlapping_negatives) == "mask"
    found = retrieval["trained"]
    ceiling, chance = (found.get(f"retrieval/clip/{name}") for name in ("ceiling", "chance"))
    if not (negatives and masked) or ceiling is None or chance is None:
        return {}
    if ceiling > chance + 1e-6:
        return {}
    return {
        "clip": "all windows of a clip overlap, and pretraining left overlapping windows out of "
        "its negatives (objective.overlapping_negatives mask), so retrieval among them is chance "
        "by construction"
    }
