"""Progress of a run: one line for each report, also written to the run's ``progress.log``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dynaflip.errors import StoreError

Metrics = dict[str, float]


def progress_line(metrics: Metrics, total_steps: int, terms: Sequence[str]) -> str:
    """``step 120/400  1.9 steps/s  ETA 2:27  loss …  terms …  area matched/shuffled  waiting``.

    Args:
        metrics: of one report.
        total_steps: of the run.
        terms: names of the loss terms to show (:meth:`ObjectiveConfig.weighted`).
    """
    step = int(metrics["step"])
    parts = [f"step {step:>{len(str(total_steps))}}/{total_steps}"]
    rate = metrics.get("speed/steps_per_s")
    if rate:
        parts.append(f"{rate:.2f} steps/s  ETA {clock((total_steps - step) / rate)}")
    if "train/loss" in metrics:
        parts.append(f"loss {_short(metrics['train/loss'])}")
        values = {name: metrics.get(f"train/{name}") for name in terms}
        parts.append(" ".join(f"{n} {_short(v)}" for n, v in values.items() if v is not None))
        matched, shuffled = (metrics.get(f"train/area_{k}") for k in ("matched", "shuffled"))
        if matched is not None and shuffled is not None:
            parts.append(f"area {matched:.2f}/{shuffled:.2f}")
        parts.append(f"waiting {100 * metrics.get('speed/data_wait_share', 0.0):.0f} %")
    if "heldout/retrieval/all/top1" in metrics:
        parts.append(heldout_summary(metrics))
    return "  ".join(parts)


def heldout_summary(metrics: Metrics) -> str:
    """``held-out top-1 all 0.31 (chance 0.00) task …  rank image/language/flow``."""
    shown = []
    for scope in ("all", "task", "clip", "task_swapped"):
        top1 = metrics.get(f"heldout/retrieval/{scope}/top1")
        chance = metrics.get(f"heldout/retrieval/{scope}/chance")
        if top1 is not None and chance is not None:
            shown.append(f"{scope} {top1:.2f} (chance {chance:.2f})")
    ranks = [
        metrics.get(f"heldout/effective_rank/{m}", float("nan"))
        for m in ("image", "language", "flow")
    ]
    return f"held-out top-1 {' '.join(shown)} rank " + "/".join(f"{r:.0f}" for r in ranks)


def _short(value: float) -> str:
    """Three decimals; three significant digits below 0.01, where those would read as zero."""
    return f"{value:.3g}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines to a log.

    Raises:
        StoreError: the disk refuses.
    """
    try:
        with path.open("a") as log:
            log.write("".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise StoreError(
            f"progress: cannot write {path}: {error.strerror}; make room, then go on with --resume"
        ) from None


def follow(path: Path, running: Callable[[], bool], log: Callable[[str], None]) -> None:
    """Pass on each line that is added to a file while something runs, and those left after it."""
    position = path.stat().st_size if path.exists() else 0
    more = True
    while more:
        more = running()
        if path.exists():
            with path.open() as file:
                file.seek(position)
                text = file.read()
            complete = text[: text.rfind("\n") + 1]
            position += len(complete.encode())
            for line in complete.splitlines():
                log(line)
        if more:
            time.sleep(0.2)
