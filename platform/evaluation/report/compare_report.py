"""The report of a comparison of finished evaluations: verdict, gain by factor, tables."""

from __future__ import annotations

from dynaflip.eval.plots import Gain, gain_figure, gain_words
from dynaflip.platform.evaluation.compare import (
    ComparedRuns,
    PairedGroup,
    comparison_sections,
    paired_groups,
    shared_successes,
)
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.report.comparison_run import log_comparison
from dynaflip.platform.evaluation.report.gains import ONE_POLICY, success_gains
from dynaflip.platform.evaluation.report.html_page import ReportImage, png_of
from dynaflip.platform.evaluation.report.rollout_images import GAIN_CAPTION
from dynaflip.platform.evaluation.report.rollout_report import COMPARISONS
from dynaflip.platform.evaluation.report.rollout_tables import GIVEN
from dynaflip.platform.evaluation.report.verdict import (
    SUCCESS,
    Finding,
    counted,
    finding_of,
    sentence,
    subject_name,
    with_family,
)
from dynaflip.platform.evaluation.results import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION
from dynaflip.platform.evaluation.rollout_run import FinishedEvaluation
from dynaflip.platform.provenance import git_commit

_NOTES = (
    "Intervals are 95 %, by hierarchical bootstrap over policies (each with its pretraining seed) "
    "and initial states, tasks fixed. Each run stands beside the first on the tasks and conditions "
    "that the two share; differences are paired episode by episode. Out of distribution is the "
    "mean over single factors.",
    COMPARISONS,
)


def report_comparison(runs: ComparedRuns) -> Outcome:
    """Compare, write the page below ``reports/`` in the home, and log it as a run of its own.

    Raises:
        UserError: a run's episodes are no pairs with the first's.
    """
    return log_comparison(
        runs.first,
        runs.others,
        subject=_subject(runs.first),
        verdict=verdict_of(runs),
        facts=_facts(runs),
        sections=comparison_sections(runs),
        notes=_NOTES,
        images=[_gain_image(runs)],
    )


def verdict_of(runs: ComparedRuns) -> list[str]:
    """The result in sentences, of the first of the settings ``proprioception``."""
    given, others = next(iter(runs.given().items()))
    by_group: dict[str, dict[str, PairedGroup]] = {}
    for other in others:
        for group in paired_groups(runs.first, other, proprioception=given):
            by_group.setdefault(group.name, {})[_other(other)] = group
    lines: list[str] = []
    for name in (OUT_OF_DISTRIBUTION, IN_DISTRIBUTION):
        found = by_group.get(name, {})
        where = f"{name} on {runs.first.settings['split']}"
        findings = [_finding(runs.first, other, one, where) for other, one in found.items()]
        family = with_family(findings, [one.difference for one in found.values()])
        lines += [sentence(finding, SUCCESS) for finding in family]
    return lines


def _finding(first: FinishedEvaluation, other: str, group: PairedGroup, where: str) -> Finding:
    tasks = counted(len(group.tasks), "task")
    return finding_of(
        group.difference,
        where=where,
        subject=_subject(first),
        other=other,
        design=f"{counted(group.policies, 'policy', 'policies')}, {tasks}",
        caution=ONE_POLICY if group.policies == 1 else "",
    )


def _gain_image(runs: ComparedRuns) -> ReportImage:
    """Gain by factor over each other run, on what it shares with the first."""
    given, others = next(iter(runs.given().items()))
    gains: list[Gain] = []
    for other in others:
        mine, theirs = shared_successes(runs.first, other, proprioception=given)
        gains += success_gains({"first": mine, _other(other): theirs}, "first")
    figure = png_of(gain_figure(gains, "points", f"Gain in success by factor, {GIVEN[given]}"))
    words = gain_words(gains, "points")
    return ReportImage("gains.png", GAIN_CAPTION, figure, "Gain by factor", words)


def _facts(runs: ComparedRuns) -> dict[str, str]:
    first = runs.first
    facts = {
        f"run {run.run_name}": f"{run.settings['encoder']}, "
        f"{counted(run.settings['seeds'], 'policy', 'policies')} per encoder, "
        f"{run.settings['episodes']} episodes per job"
        for run in (first, *runs.others)
    }
    return {
        **facts,
        "environment": first.environment.name,
        "simulator": first.simulator or "not recorded",
        "policy": first.settings["head"],
        "encoder in the policy": first.settings["adaptation"],
        "perturbation split": first.settings["split"],
        "demonstrations": f"{first.settings['demonstrations']} per task",
        "git commit of this comparison": git_commit(),
    }


def _subject(run: FinishedEvaluation) -> str:
    return subject_name(run.settings["encoder"])


def _other(run: FinishedEvaluation) -> str:
    """An encoder may have been evaluated by several runs: the run's name tells them apart."""
    return f"{_subject(run)} ({run.run_name})"
