"""Counts of a triplet folder for its manifest, from its clips' summaries one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from dynaflip.platform.triplets.digest import SetDigest
from dynaflip.platform.triplets.ledger import Ledger
from dynaflip.platform.triplets.split import share_for_two

_SHOWN_LEFT_OUT = 3  # windows a reason
_SHOWN_REASONS = 1000
_SPLITS = ("train", "heldout")


def count(ledger: Ledger) -> tuple[dict[str, Any], str]:
    """Counts of all clips of a ledger, and the digest of their triplets, in any order."""
    tally = _Tally()
    with SetDigest() as digest:
        for summary in ledger.summaries():
            tally.add(summary)
            digest.add(summary["rows"])
            if not summary["stage"]:
                ledger.note_tasks(summary["tasks"])
        return _counts(tally, ledger), digest.hexdigest()


class _Tally:
    """Numbers that add up."""

    def __init__(self) -> None:
        self.read = self.kept = self.triplets = self.assumed_focal = self.mostly_moving = 0
        self.camera_motion: Counter[str] = Counter()
        # Exact, so that they do not depend on the order.
        self.visible = self.moving = Fraction()
        self.splits = {split: Counter[str]() for split in _SPLITS}
        self.sources: dict[str, dict[str, Any]] = {}
        self.sides: dict[str, Counter[int]] = {}
        self.left_out: Counter[str] = Counter()
        self.left_out_at: dict[str, list[tuple[str, str, float, float]]] = {}

    def add(self, summary: Mapping[str, Any]) -> None:
        """Count a clip."""
        self.read += 1
        self.left_out.update(summary["left_out"])
        self._note_left_out(summary)
        nothing = {"clips": 0, "kept": 0, "triplets": 0, "interpolated": Fraction()}
        source = self.sources.setdefault(summary["source"], nothing)
        source["clips"] += 1
        if summary["stage"]:
            return
        triplets = len(summary["rows"])
        self.kept += 1
        self.triplets += triplets
        self.assumed_focal += summary["assumed_focal"]
        self.visible += Fraction(summary["visible"])
        self.moving += Fraction(summary["moving"])
        # Clips that were made before November 2026 do not say these two.
        self.mostly_moving += bool(summary.get("mostly_moving", False))
        self.camera_motion.update(summary.get("camera_motion", {}))
        self.splits[summary["split"]].update(clips=1, triplets=triplets)
        source["kept"] += 1
        source["triplets"] += triplets
        source["interpolated"] += Fraction(summary["interpolated"])
        self.sides.setdefault(summary["source"], Counter())[summary["short_side_px"]] += 1

    def _note_left_out(self, summary: Mapping[str, Any]) -> None:
        # Clips that were made before November 2026 do not say where.
        for reason, (at_s, window_s) in summary.get("left_out_at", {}).items():
            some = self.left_out_at.setdefault(reason, [])
            some.append((summary["source"], summary["path"], at_s, at_s + window_s))
            some.sort()  # so that they depend on the clips alone, not on their order
            del some[_SHOWN_LEFT_OUT:]


def _counts(tally: _Tally, ledger: Ledger) -> dict[str, Any]:
    splits = {
        split: {
            "recordings": sum(1 for _ in ledger.recordings(split)),
            "clips": numbers["clips"],
            "triplets": numbers["triplets"],
        }
        for split, numbers in tally.splits.items()
    }
    few = splits["heldout"]["recordings"] < 2
    return {
        "read": tally.read,
        "kept": tally.kept,
        "rejected": tally.read - tally.kept,
        "triplets": tally.triplets,
        "splits": splits,
        "share_for_two": share_for_two(ledger.recordings()) if few else None,
        "sources": {
            name: {**found, "interpolated": float(found["interpolated"])}
            for name, found in sorted(tally.sources.items())
        },
        "short_sides_px": {
            name: {str(px): clips for px, clips in sorted(sides.items())}
            for name, sides in sorted(tally.sides.items())
        },
        "reasons": dict(ledger.reasons(_SHOWN_REASONS)),
        "windows_left_out": dict(tally.left_out.most_common()),
        "windows_left_out_at": _windows(tally.left_out_at),
        "tasks": ledger.count_tasks(),
        "assumed_focal": tally.assumed_focal,
        "mostly_moving": tally.mostly_moving,
        "camera_motion": dict(sorted(tally.camera_motion.items())),
        "visible_share": float(tally.visible) / max(1, tally.triplets),
        "moving_share": float(tally.moving) / max(1, tally.triplets),
    }


def _windows(
    found: Mapping[str, list[tuple[str, str, float, float]]],
) -> dict[str, list[dict[str, Any]]]:
    """The first windows that were left out, by reason: file, and from when to when in it."""
    names = ("source", "path", "from_s", "to_s")
    return {
        reason: [dict(zip(names, one, strict=True)) for one in some]
        for reason, some in found.items()
    }
