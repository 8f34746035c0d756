"""Tables of ``--dry-run`` that all suites share: seconds on several machines."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from dynaflip.platform.cluster import available_cpus
from dynaflip.platform.evaluation.report.tables import Section

# Ray's start takes 4 s; imports, the run, saliency, intervals and the report took 5.4 s of CPU time
# of two encoders in one task (tests/benchmarks/evaluation_cost.py).
START_S = 10.0

# (cores, images a second that a GPU encodes; None: there is none) → seconds of each stage.
Seconds = Callable[[int, float | None], Sequence[float]]


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Seconds until jobs are done that free workers take in their order."""
    free = [0.0] * workers
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def time_section(
    stages: Sequence[str], seconds: Seconds, gpu_images_per_s: float, kept: str
) -> Section:
    """Minutes of each stage on this machine, on 2 cores, on 16 and with a GPU.

    Args:
        stages: their names.
        seconds: of each stage; the start is added.
        gpu_images_per_s: assumed throughput of a GPU.
        kept: where unit costs are kept.
    """
    section = Section(
        f"Time, minutes (unit costs: {kept})", [], ("", *stages, "together", "assumes")
    )
    here = available_cpus()
    gpu = f"16 cores as fast as this one's; {gpu_images_per_s:g} images/s on the GPU, not measured"
    rows: list[tuple[str, int, float | None, str]] = [("2 cores", 2, None, "cores like this one's")]
    if here not in (2, 16):
        rows.append((f"this machine, {here} cores", here, None, "two cores' speed for each"))
    rows.append(("16 cores", 16, None, "16 cores as fast as this one's, and no slower together"))
    rows.append(("16 cores and a GPU (assumed)", 16, gpu_images_per_s, gpu))
    for name, cores, rate, assumes in rows:
        taken = seconds(cores, rate)
        cells = [f"{one / 60:.1f}" for one in (*taken, START_S + sum(taken))]
        section.rows.append([name, *cells, assumes])
    return section


def span(values: Sequence[float], digits: int = 1) -> str:
    """Seconds from the least to the most, in milliseconds: ``3.1 ms`` or ``3.1 to 4.0 ms``."""
    low, high = (f"{1000 * value:.{digits}f}" for value in (min(values), max(values)))
    return f"{low} ms" if low == high else f"{low} to {high} ms"
