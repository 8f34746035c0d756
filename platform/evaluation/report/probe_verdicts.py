"""Verdicts of probes, each encoder beside the trained one, alone and with Holm's correction."""

from __future__ import annotations

import math

from scipy import stats

from dynaflip.eval.intervals.cluster_bootstrap import LEVEL, Interval
from dynaflip.eval.intervals.hierarchical_bootstrap import Rate
from dynaflip.eval.intervals.holm import family_verdicts
from dynaflip.eval.labelled_frames import TARGETS, UNITS
from dynaflip.eval.metrics.probe_report import ProbeReport
from dynaflip.eval.plots import TARGET_NAMES, condition_name
from dynaflip.platform.evaluation.report.tables import Section

COLUMNS = ("", "condition", "beside", "trained - it", "verdict", "verdict, Holm")


def verdict_section(report: ProbeReport) -> Section:
    """A row a target, condition and other encoder; those of a target are one family.

    One family holds all conditions, because each is read as a finding of its own.
    """
    section = Section("Probes: verdicts on the trained encoder beside the others", columns=COLUMNS)
    for target in TARGETS:
        own = [one for one in report.differences if one.target == target]
        rates = {str(n): rate_of(one.error, sign=-1) for n, one in enumerate(own)}
        known = {n: rate for n, rate in rates.items() if rate is not None}
        together = family_verdicts(known) if known else {}
        for number, one in enumerate(own):
            rate = known.get(str(number))
            alone = "one episode" if rate is None else rate.verdict()
            corrected = together.get(str(number), "-")
            if corrected != alone:  # a correction takes away and never adds
                corrected = "not distinguishable" if rate is not None else "-"
            low, high = one.error.low, one.error.high
            ends = f" [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else ""
            gap = f"{one.error.value:+.1f}{ends} {UNITS[target]}"
            place = [TARGET_NAMES[target], condition_name(one.condition), one.against]
            section.rows.append([*place, gap, alone, corrected])
    return section


def rate_of(interval: Interval, sign: int = 1) -> Rate | None:
    """An interval over clusters as a difference that families are made of; None: it has no ends.

    Its standard error is what half its width is of Student's quantile, so that uncorrected
    verdicts are those of the interval.

    Args:
        interval: of a paired difference.
        sign: -1 where less is better.
    """
    if not math.isfinite(interval.low) or interval.clusters < 2:
        return None
    freedom = interval.clusters - 1
    half = (interval.high - interval.low) / 2
    error = half / float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    low, high = sorted((sign * interval.low, sign * interval.high))
    number = interval.clusters
    return Rate(sign * interval.value, low, high, 1, number, error, freedom, number)
