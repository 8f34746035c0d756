"""What limited a run: the share of its time that each part took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Metrics = dict[str, float]

_SHARE = "speed/share/"
# Parts of a run's time: what to call them, and what makes them shorter.
PARTS = {
    "data": ("waiting for data", "more CPUs a worker, or data.decode_threads"),
    "forward_backward": ("forward and backward pass", "the device computes, as it should"),
    "optimizer": ("optimizer", "larger batches"),
    "rest": ("the rest of the steps", "see train.profile_steps"),
    "report": ("reports", "a larger train.report_every_steps"),
    "checkpoint": ("checkpoints", "a larger train.checkpoint_every_steps, or faster storage"),
    "evaluation": ("evaluation", "a larger train.eval_every_steps"),
    "diagnostics": ("diagnostics", "a larger train.diagnostics_every_steps"),
    "start": ("start and what lies between", "longer runs"),
}


def time_shares(
    totals_s: Mapping[str, float], elapsed_s: float, waits_s: Sequence[float] = ()
) -> Metrics:
    """Share of each part in a run's time, as curves of its last step.

    Args:
        totals_s: seconds of each part but ``start``, which is what is left.
        elapsed_s: of the run, since this process began.
        waits_s: seconds that each rank waited for data. The others wait for the slowest one inside
            their backward pass, which is then no computation.
    """
    seconds = dict(totals_s)
    behind_s = max(waits_s, default=0.0) - seconds["data"]
    behind_s = min(max(behind_s, 0.0), seconds["forward_backward"])
    seconds["data"] += behind_s
    seconds["forward_backward"] -= behind_s
    seconds["start"] = max(0.0, elapsed_s - sum(seconds.values()))
    whole_s = max(sum(seconds.values()), 1e-9)
    return {f"{_SHARE}{part}": seconds[part] / whole_s for part in PARTS}


def limited_by(metrics: Mapping[str, float]) -> str | None:
    """The part that took most of the time, by its name in :data:`PARTS`; None without shares."""
    shares = _shares(metrics)
    return max(shares, key=lambda part: shares[part]) if shares else None


def limit_line(metrics: Mapping[str, float]) -> str:
    """``limited by forward and backward pass: 81 % of the time; waiting for data 12 % …``.

    Args:
        metrics: with those of :func:`time_shares`.
    """
    shares = sorted(_shares(metrics).items(), key=lambda item: -item[1])
    (first, largest), *rest = shares
    name, remedy = PARTS[first]
    others = [f"{PARTS[part][0]} {share:.0%}" for part, share in rest if share >= 0.005]
    return f"limited by {name}: {largest:.0%} of the time ({remedy}); {', '.join(others)}".replace(
        "%", " %"
    )


def _shares(metrics: Mapping[str, float]) -> Metrics:
    names = {part: f"{_SHARE}{part}" for part in PARTS}
    return {part: metrics[name] for part, name in names.items() if name in metrics}
