"""Compare finished evaluations of the suite ``offline`` with a first one, paired by episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from dynaflip.errors import UserError
from dynaflip.eval.intervals.cluster_bootstrap import Interval, cluster_mean
from dynaflip.platform import tracking
from dynaflip.platform.evaluation.encoders_under_test import TRAINED
from dynaflip.platform.evaluation.offline_config import KIND
from dynaflip.platform.evaluation.offline_evidence import (
    OfflineEvidence,
    episode_errors,
    paired_rows,
    read_offline_run,
)
from dynaflip.platform.evaluation.report.offline_report import (
    groups_of,
    interval_text,
    verdict_of_gap,
    verdicts_together,
)
from dynaflip.platform.evaluation.report.tables import Section
from dynaflip.platform.evaluation.results import OUT_OF_DISTRIBUTION


@dataclass(frozen=True)
class OfflineRuns:
    """Runs read from the store, of which the first is compared with each of the others."""

    first: OfflineEvidence
    others: tuple[OfflineEvidence, ...]

    def pairs(self) -> list[tuple[OfflineEvidence, pl.DataFrame]]:
        """Each other run, and the conditions and episodes that it shares with the first.

        Raises:
            UserError: a run's episodes are no pairs with the first's.
        """
        mine = (self.first, TRAINED, None)
        return [(one, paired_rows(mine, (one, TRAINED, None), "compare")) for one in self.others]


def read_offline_runs(first_run: str, other_runs: Sequence[str]) -> OfflineRuns:
    """The runs to compare.

    Args:
        first_run: name or id of an MLflow run.
        other_runs: the runs that it is compared with, one or more.

    Raises:
        UserError: a run is no finished evaluation.
    """
    first, *others = (read_offline_run(run, "compare") for run in (first_run, *other_runs))
    return OfflineRuns(first, tuple(others))


def compare_offline(runs: OfflineRuns) -> list[Section]:
    """Each run's encoder under test beside the first's: action error on the same episodes.

    Raises:
        UserError: a run's episodes are no pairs with the first's.
    """
    first, others = runs.first, runs.others
    section = Section(
        f"Action error, sigma: {first.settings['encoder']} ({first.run_name}) beside "
        f"{'the encoders of other runs' if len(others) > 1 else others[0].settings['encoder']}",
        columns=(
            "", "run", "its action error", first.run_name, f"its - {first.run_name}, sigma",
            "verdict", "verdict, Holm",
        ),
    )  # fmt: skip
    for group, rows in by_group(runs).items():
        gaps = {str(n): (theirs - mine, mean(theirs - mine)) for n, (_, mine, theirs) in rows}
        together = verdicts_together(gaps)
        for number, (other, mine, theirs) in rows:
            gap = gaps[str(number)][1]
            means = [interval_text(mean(theirs)), interval_text(mean(mine))]
            verdicts = [verdict_of_gap(gap), together.get(str(number), "-")]
            place = _named(group, first, other)
            shown = interval_text(gap, sign=True)
            section.rows.append([place, other.run_name, *means, shown, *verdicts])
    return [section]


Compared = tuple[OfflineEvidence, np.ndarray, np.ndarray]  # other run, my and its errors (E,)


def by_group(runs: OfflineRuns) -> dict[str, list[tuple[int, Compared]]]:
    """Group of conditions → the other runs that have it, numbered.

    Raises:
        UserError: a run's episodes are no pairs with the first's.
    """
    found: dict[str, list[tuple[int, Compared]]] = {}
    for number, (other, both) in enumerate(runs.pairs()):
        for group, conditions in groups_of(both).items():
            errors = episode_errors(both, conditions)
            found.setdefault(group, []).append((number, (other, *errors)))
    return found


def mean(values: np.ndarray) -> Interval:
    """Mean over held-out episodes (E,)."""
    return cluster_mean(values, np.arange(len(values)))


def _named(group: str, first: OfflineEvidence, other: OfflineEvidence) -> str:
    """The group, with the factors that both were shown where one was shown others too."""
    mine, theirs = first.single_factors(), other.single_factors()
    if group != OUT_OF_DISTRIBUTION or mine == theirs:
        return group
    return f"{group}: {', '.join(sorted(mine & theirs))}"


def offline_alone(runs: Sequence[str], environment: str | None) -> bool:
    """True where runs to compare are of the suite ``offline``; they must all be, or none.

    Args:
        runs: names or ids; one that does not exist counts for neither.
        environment: that the user gave, if any.

    Raises:
        UserError: some are and others are not, or an environment is given for recordings.
    """
    found = {run: tracking.find_run(run) for run in runs}
    kinds = {run: one.tags.get("kind", "") for run, one in found.items() if one is not None}
    offline = [run for run, kind in kinds.items() if kind == KIND]
    if not offline:
        return False
    others = [f"{run} of kind {kind}" for run, kind in kinds.items() if run not in offline]
    if others:
        raise UserError(
            f"compare: {offline[0]} is of the suite offline and {others[0]}: action errors and "
            "success are no pairs; compare runs of one suite"
        )
    if environment is not None:
        raise UserError(
            f"--environment {environment}: {offline[0]} is of the suite offline, which has none"
        )
    return True
