"""Summary that preprocessing prints at its end."""

from __future__ import annotations

from dynaflip.platform.triplets.clips import TEMPORARY_STAGES
from dynaflip.platform.triplets.publish import Outcome
from dynaflip.platform.triplets.report.cautions import camera_lines, interpolated_lines
from dynaflip.platform.triplets.reuse import finished_work

_MAX_REASONS = 8


def summary_lines(outcome: Outcome, seconds: float) -> list[str]:
    """Counts by split and reasons of rejection, a line each."""
    counts = outcome.counts
    lines = [
        "",
        f"{'clips read':<22}{counts['read']:>8}",
        f"{'       kept':<22}{counts['kept']:>8}",
        f"{'       rejected':<22}{counts['rejected']:>8}",
    ]
    reasons = list(counts["reasons"].items())
    lines += [f"{'':<22}{number:>8}  {reason}" for reason, number in reasons[:_MAX_REASONS]]
    if len(reasons) > _MAX_REASONS:
        rest = sum(number for _, number in reasons[_MAX_REASONS:])
        lines.append(f"{'':<22}{rest:>8}  other reasons: see rejected.parquet")
    lines.append("")
    lines.append(f"{'':<22}{'triplets':>8}{'clips':>8}{'recordings':>12}")
    for split, numbers in counts["splits"].items():
        lines.append(
            f"{split:<22}{numbers['triplets']:>8}{numbers['clips']:>8}{numbers['recordings']:>12}"
        )
    left_out = counts["windows_left_out"]
    lines += [f"{'windows left out':<22}{sum(left_out.values()):>8}"]
    lines += [f"{'':<22}{number:>8}  {reason}" for reason, number in left_out.items()]
    lines.append("")
    lines.append(
        f"points visible to the end {counts['visible_share']:.0%}, moving "
        f"{counts['moving_share']:.1%}; {counts['tasks']} tasks"
    )
    if assumed := counts["assumed_focal"]:
        lines.append(
            f"{assumed} triplets of cameras without a recorded focal length: the longer side of "
            f"the image is assumed (53°)"
        )
    lines += interpolated_lines(counts)
    lines += camera_lines(counts)
    if len(counts["sources"]) > 1:
        lines += [
            f"{name:<22}{n['triplets']:>8}{n['kept']:>8} of {n['clips']}"
            for name, n in counts["sources"].items()
        ]
    if passing := sum(
        number for reason, number in reasons if reason.split(":")[0] in TEMPORARY_STAGES
    ):
        lines.append(
            f"{passing} rejections are temporary (network, machine): run again to retry them"
        )
    if not outcome.failure:
        lines += [f"note: {line}" for line in outcome.notes]
        lines.append(f"digest {outcome.digest[:16]}")
        if outcome.changed:
            lines.append(f"version {outcome.version}, made anew because of")
            lines += [f"  {change}" for change in outcome.changed]
        what = "reused, nothing has changed" if outcome.reused else f"{seconds:.0f} s"
        lines.append(f"{outcome.folder} ({what})")
        examples = finished_work(outcome.folder).path / "pictures" / "examples.png"
        if examples.exists():
            lines.append(f"look at {examples}")
    return lines
