"""Compare finished evaluations by rollouts with a first one, paired episode by episode.

:mod:`dynaflip.platform.evaluation.report.compare_report` makes a report of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dynaflip.errors import UserError
from dynaflip.eval.expert_views import ALL_FACTORS
from dynaflip.eval.intervals.hierarchical_bootstrap import Rate, paired_success, success_rate
from dynaflip.eval.intervals.holm import family_verdicts
from dynaflip.eval.policies.config import EndToEndConfig
from dynaflip.eval.policies.readouts.config import POOLED
from dynaflip.platform.evaluation.encoder_config import precision_of
from dynaflip.platform.evaluation.encoders_under_test import TRAINED
from dynaflip.platform.evaluation.report.rollout_tables import GIVEN, percent, points
from dynaflip.platform.evaluation.report.tables import Section
from dynaflip.platform.evaluation.results import Successes, groups, successes
from dynaflip.platform.evaluation.rollout_run import FinishedEvaluation, read_evaluation

# Settings that must be alike for episodes to be pairs.
_PROTOCOL = (
    "environment", "split", "episodes", "horizon_steps", "steps_after_success", "image_px",
    "demonstrations", "head", "readout", "multitask", "adaptation", "seed", "seeds",
    "encoder_actor.precision", "source_camera",
)  # fmt: skip


def check_same_protocol(first: FinishedEvaluation, second: FinishedEvaluation) -> None:
    """Refuse to pair episodes of different protocols.

    Raises:
        UserError: names what differs.
    """
    if first.rollout_version != second.rollout_version:
        raise UserError(
            f"compare: {first.run_name} and {second.run_name} are of different versions of the "
            f"rollouts ({first.rollout_version} and {second.rollout_version}); evaluate the "
            "older one anew"
        )
    if first.simulator != second.simulator and first.simulator and second.simulator:
        raise UserError(
            f"compare: {first.run_name} was rolled out in {first.simulator}, {second.run_name} in "
            f"{second.simulator}: their episodes are no pairs; evaluate both in one of them"
        )
    # What only some policies have is asked of those alone.
    used = [str(first.settings["head"]), "head_settings", "readout_settings"]
    used += [str(first.settings.get("readout") or POOLED)]
    used += ["end_to_end"] if first.settings["adaptation"] != "frozen" else []
    used += ["tasks"] if first.settings["multitask"] else []  # they all shape the one policy
    used += _source_if_unknown(first, second)
    for key in (*_PROTOCOL, *used):
        values = [_setting(run, key) for run in (first, second)]
        if values[0] != values[1]:
            raise UserError(
                f"compare: {first.run_name} has {key} {values[0]}, "
                f"{second.run_name} {values[1]}: their episodes are no pairs"
            )


def _source_if_unknown(first: FinishedEvaluation, second: FinishedEvaluation) -> list[str]:
    """``source``, the path of own recordings, where a run does not say what was in them.

    Raises:
        UserError: both say it, and it is not the same.
    """
    if not (first.recordings and second.recordings):
        return ["source"]
    for task in first.recordings.keys() & second.recordings.keys():
        digests = first.recordings[task], second.recordings[task]
        if digests[0] != digests[1]:
            raise UserError(
                f"compare: policies of {first.run_name} learnt {task} from other recordings "
                f"({digests[0]}) than those of {second.run_name} ({digests[1]}): their episodes "
                "are no pairs"
            )
    return []


def _setting(run: FinishedEvaluation, key: str) -> Any:
    """A setting's value; what older runs lack or write otherwise as it is now."""
    if key == "environment":
        return run.environment.name
    if key == "tasks":
        return list(run.environment.tasks_of(run.settings["tasks"]))
    if key == "readout":
        return run.settings.get(key) or POOLED
    if key == "end_to_end":
        return asdict(EndToEndConfig(**run.settings[key]))
    if key == "encoder_actor.precision":
        return precision_of(run.settings)
    return run.settings.get(key) or None


@dataclass(frozen=True)
class PairedGroup:
    """Success of both runs' encoders under test on a group of conditions they share."""

    name: str
    first: Rate
    second: Rate
    difference: Rate  # first − second
    tasks: tuple[str, ...]
    conditions: tuple[tuple[str, int], ...]  # (factor, level)
    policies: int  # of the run that has more


@dataclass(frozen=True)
class ComparedRuns:
    """Runs read from the store, of which the first is compared with each of the others."""

    first: FinishedEvaluation
    others: tuple[FinishedEvaluation, ...]

    def given(self) -> dict[bool, list[FinishedEvaluation]]:
        """Others to compare with, with (True) and without (False) proprioception.

        Raises:
            UserError: a run shares neither with the first.
        """
        asked = [shared_proprioception(self.first, other) for other in self.others]
        found = {
            given: [o for o, shared in zip(self.others, asked, strict=True) if given in shared]
            for given in self.first.settings["proprioception"]
        }
        return {given: together for given, together in found.items() if together}


def shared_proprioception(first: FinishedEvaluation, second: FinishedEvaluation) -> list[bool]:
    """With (True) and without (False) proprioception, as far as both runs have it.

    Raises:
        UserError: they share neither.
    """
    shared = [v for v in first.settings["proprioception"] if v in second.settings["proprioception"]]
    if not shared:
        raise UserError("compare: one run gives policies proprioception, the other does not")
    return shared


def paired_groups(
    first: FinishedEvaluation,
    second: FinishedEvaluation,
    *,
    proprioception: bool,
    second_encoder: str = TRAINED,
) -> list[PairedGroup]:
    """Every group of conditions on the tasks and conditions that both runs have.

    Args:
        first, second: the runs, whose encoders under test are paired.
        proprioception: of the policies that are paired.
        second_encoder: name of a baseline of ``second`` instead.

    Raises:
        UserError: they share none.
    """
    mine, theirs = shared_successes(
        first, second, proprioception=proprioception, second_encoder=second_encoder
    )
    policies = max(len(mine.values), len(theirs.values))
    paired = []
    for name, chosen in groups(mine.conditions).items():
        a, b = mine.of_conditions(chosen), theirs.of_conditions(chosen)
        rates = success_rate(a), success_rate(b), paired_success(a, b)
        paired.append(PairedGroup(name, *rates, mine.tasks, tuple(chosen), policies))
    return paired


def shared_successes(
    first: FinishedEvaluation,
    second: FinishedEvaluation,
    *,
    proprioception: bool,
    second_encoder: str = TRAINED,
) -> tuple[Successes, Successes]:
    """Successes of both runs, on the tasks and conditions that both have.

    Args:
        first, second, proprioception, second_encoder: of :func:`paired_groups`.

    Raises:
        UserError: they share none, or their episodes are no pairs.
    """
    check_same_protocol(first, second)
    for run, name in ((first, TRAINED), (second, second_encoder)):
        if name not in run.episodes["arm"].unique():
            raise UserError(f"compare: {run.run_name} has no encoder {name}")
    mine = successes(first.episodes, TRAINED, proprioception=proprioception)
    theirs = successes(second.episodes, second_encoder, proprioception=proprioception)
    policies = {len(mine.values), len(theirs.values)}
    if len(policies - {1}) > 1:  # a single one stands beside each of the other's
        raise UserError(
            f"compare: {first.run_name} has {len(mine.values)} policies of these weights, "
            f"{second.run_name} {len(theirs.values)}: their episodes are no pairs"
        )
    tasks = [task for task in mine.tasks if task in theirs.tasks]
    conditions = [c for c in mine.conditions if c in theirs.conditions]
    if set(first.factors) != set(second.factors):  # all at once was not the same in both
        conditions = [c for c in conditions if c[0] != ALL_FACTORS]
    if not tasks or not conditions:
        raise UserError("compare: the runs share no task under the same condition")
    chosen = tuple(conditions)
    return _shared(mine, tasks, chosen), _shared(theirs, tasks, chosen)


def read_runs(
    first_run: str, other_runs: Sequence[str], environment: str | None = None
) -> ComparedRuns:
    """The runs to compare.

    Args:
        first_run: name or id of an MLflow run.
        other_runs: the runs that it is compared with, one or more.
        environment: that all of them ran in, where it is a class of the user's own.

    Raises:
        UserError: a run is no finished evaluation.
    """
    first, *others = (read_evaluation(run, environment) for run in (first_run, *other_runs))
    return ComparedRuns(first, tuple(others))


def comparison_sections(runs: ComparedRuns) -> list[Section]:
    """Each run's encoder under test beside the first's, on what the two share.

    Raises:
        UserError: a run's episodes are no pairs with the first's.
    """
    return [
        _comparison(runs.first, together, proprioception=given)
        for given, together in runs.given().items()
    ]


def _comparison(
    first: FinishedEvaluation, others: list[FinishedEvaluation], *, proprioception: bool
) -> Section:
    """A row a group of conditions and run; the comparisons of a group are one family."""
    section = Section(
        f"Success %, {first.settings['encoder']} ({first.run_name}) beside "
        f"{'the encoders of other runs' if len(others) > 1 else others[0].settings['encoder']} "
        f"({GIVEN[proprioception]})",
        columns=(
            "", "run", "its success %", first.run_name, "difference, points", "verdict",
            "verdict, Holm",
        ),
    )  # fmt: skip
    by_group: dict[str, list[tuple[str, PairedGroup]]] = {}
    for other in others:
        for group in paired_groups(first, other, proprioception=proprioception):
            by_group.setdefault(group.name, []).append((other.run_name, group))
    for name, rows in by_group.items():
        verdicts = family_verdicts({str(i): group.difference for i, (_, group) in enumerate(rows)})
        for number, (run, group) in enumerate(rows):
            rates = [percent(group.second), percent(group.first), points(group.difference)]
            both = [group.difference.verdict(), verdicts[str(number)]]
            section.rows.append([name, run, *rates, *both])
    return section


def _shared(
    values: Successes, tasks: list[str], conditions: tuple[tuple[str, int], ...]
) -> Successes:
    of_tasks = values.of_tasks(tasks)
    return Successes(of_tasks.of_conditions(list(conditions)), of_tasks.tasks, conditions)
