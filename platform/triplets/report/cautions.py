"""What a set of triplets cannot say, told at the end of preprocessing and at every start on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

_MORE = "add recordings"
# Of the trusted points of a clip's median triplet; of clips, from which on it is said.
MOSTLY_MOVING, _MANY_CLIPS = 0.8, 0.1
# Values of the column camera_motion that leave the camera's motion in the flow.
_NOT_REMOVED = ("none", "failed")
_SEE = "see 'Hand-held videos' in docs/own-videos.md"


def small_set_lines(manifest: Mapping[str, Any]) -> list[str]:
    """Warnings that a set is too small, a line each, with the setting that helps.

    Args:
        manifest: of the set; older ones and copies without counts give no line.
    """
    counts = manifest.get("counts", {})
    splits = counts.get("splits")
    if not splits or not counts["triplets"]:
        return []
    settings = manifest.get("settings", {})
    clips = sum(numbers["clips"] for numbers in splits.values())
    if clips == 1:
        return [f"the set is one clip: nothing can be compared with it; {_MORE}"]
    lines = _split_lines(splits, settings.get("heldout_share"), counts.get("share_for_two"))
    groups = manifest.get("index", {}).get("caption_groups")
    if groups == 1 and splits["train"]["clips"] > 1:
        lines.append(
            f"all {splits['train']['clips']} training clips have one caption: language tells none "
            f"apart, and nothing is learnt from it; give clips their own captions "
            f"(source.captions, source.captioner), or add recordings of other tasks"
        )
    return lines


def _split_lines(
    splits: Mapping[str, Mapping[str, int]], share: float | None, share_for_two: float | None
) -> list[str]:
    """Lines on the recordings of each split.

    Args:
        splits: counts by split.
        share: ``heldout_share``, where it is known.
        share_for_two: least share that holds out two recordings and leaves one to train on.
    """
    train, heldout = (splits[name]["recordings"] for name in ("train", "heldout"))
    now = "" if share is None else f" from {share:g}"
    raised = f"raise heldout_share{now}" + (f" to {share_for_two:g}" if share_for_two else "")
    remedy = f"{raised} or {_MORE}" if share_for_two or train + heldout > 2 else _MORE
    if not train:
        return [
            f"all {heldout} recordings are held out: nothing is left to train on; lower "
            f"heldout_share{now} or {_MORE}"
        ]
    if not heldout and share == 0:
        return [f"heldout_share is 0: no score shows what is learnt; {remedy}"]
    if not heldout:
        return [
            f"nothing is held out: recordings are drawn by hash, and none of these {train} was; no "
            f"score shows what is learnt; {remedy}"
        ]
    if heldout == 1:
        return [
            f"one recording of {train + heldout} is held out: its scores say little about others; "
            f"{remedy}"
        ]
    return []


def interpolated_lines(counts: Mapping[str, Any]) -> list[str]:
    """How many flow steps of each source are interpolated, for those of low frame rates.

    Args:
        counts: of a manifest; older ones do not know.
    """
    lines = []
    for name, numbers in counts.get("sources", {}).items():
        share = numbers.get("interpolated", 0.0) / max(1, numbers["triplets"])
        if share > 0:
            lines.append(
                f"{name}: {share:.0%} of the flow steps are interpolated, because its frames are "
                f"far apart: they carry no loss (column flow_measured, lifting.measured_within)"
            )
    return lines


def mostly_moving(triplets: pa.Table) -> bool:
    """True where more than 80 % of the trusted points of a clip's median triplet move."""
    moving, visible = (
        triplets[name].to_numpy().astype(float) for name in ("moving_share", "visible_share")
    )
    return bool(np.median(moving / np.maximum(visible, 1e-6)) > MOSTLY_MOVING)


def camera_lines(counts: Mapping[str, Any]) -> list[str]:
    """Warnings of the camera's motion that is, or may be, left in the flow.

    Args:
        counts: ``kept`` clips, ``mostly_moving`` ones, and triplets by ``camera_motion``; older
            manifests lack the last two.
    """
    lines = []
    clips, moving = counts["kept"], counts.get("mostly_moving", 0)
    kinds = counts.get("camera_motion", {})
    left = {kind: kinds[kind] for kind in _NOT_REMOVED if kinds.get(kind)}
    if moving > _MANY_CLIPS * clips:
        lines.append(
            f"in {moving} of {clips} clips more than {MOSTLY_MOVING:.0%} of the trusted points "
            f"move: the camera probably moves, and its motion is in the flow; {_SEE}"
        )
    if left:
        parts = ", ".join(f"{kind} {number}" for kind, number in left.items())
        lines.append(
            f"in {sum(left.values())} of {sum(kinds.values())} triplets the camera's motion is not "
            f"removed (camera_motion: {parts}); {_SEE}"
        )
    return lines
