"""The page of compared runs of the suite ``offline``: verdict, gain by perturbation, table."""

from __future__ import annotations

from dataclasses import replace

from dynaflip.eval.plots import Gain, gain_figure, gain_words
from dynaflip.platform.evaluation.offline_compare import (
    OfflineRuns,
    by_group,
    compare_offline,
    mean,
)
from dynaflip.platform.evaluation.offline_evidence import OfflineEvidence, episode_errors
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.report.comparison_run import log_comparison
from dynaflip.platform.evaluation.report.html_page import ReportImage, png_of
from dynaflip.platform.evaluation.report.offline_report import (
    WHERE,
    gain_rows,
    verdicts_together,
)
from dynaflip.platform.evaluation.report.verdict import (
    ACTION_ERROR,
    counted,
    finding_of,
    sentence,
    subject_name,
)
from dynaflip.platform.evaluation.results import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION
from dynaflip.platform.provenance import git_commit

_NOTES = (
    "Action error is the root mean square over the entries of an action, each in units of its "
    "standard deviation (sigma) over the training episodes; lower is better. It is no success: "
    "nothing was rolled out.",
    "Intervals are 95 %, by bootstrap over held-out episodes; an episode's value is its mean over "
    "moments, policies and the conditions that the run shares with the first, and differences are "
    "paired. Holm's correction keeps the chance of any false verdict among the runs of a group of "
    "conditions at 5 %.",
)


def report_offline_comparison(runs: OfflineRuns) -> Outcome:
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
        sections=compare_offline(runs),
        notes=_NOTES,
        images=[_gain_image(runs)],
    )


def verdict_of(runs: OfflineRuns) -> list[str]:
    """What was found, in sentences: perturbed images first."""
    found = by_group(runs)
    lines: list[str] = []
    for group in (OUT_OF_DISTRIBUTION, IN_DISTRIBUTION):
        rows = found.get(group, [])
        gaps = {str(n): (theirs - mine, mean(theirs - mine)) for n, (_, mine, theirs) in rows}
        together = verdicts_together(gaps) if len(rows) > 1 else {}
        split = f" ({runs.first.settings['split']})" if group == OUT_OF_DISTRIBUTION else ""
        for number, (other, mine, _) in rows:
            told = finding_of(
                gaps[str(number)][1],
                where=f"on {WHERE[group]}{split}",
                subject=_subject(runs.first),
                other=_other(other),
                design=f"{counted(len(mine), 'held-out episode')}, "
                f"{counted(runs.first.settings['seeds'], 'policy', 'policies')}",
                scale=1,
            )
            if str(number) in together:
                told = replace(told, corrected=together[str(number)], comparisons=len(rows))
            lines.append(sentence(told, ACTION_ERROR))
    return lines


def _gain_image(runs: OfflineRuns) -> ReportImage:
    """Gain by perturbation over each other run, on what it shares with the first."""
    gains: list[Gain] = []
    for other, both in runs.pairs():
        for label, conditions in gain_rows(both).items():
            mine, theirs = episode_errors(both, conditions)
            gap = mean(theirs - mine)
            gains.append(Gain(label, _other(other), gap.value, gap.low, gap.high))
    unit = "sigma of action error"
    figure = png_of(gain_figure(gains, unit, "Gain by perturbation"))
    caption = (
        "Points are means over held-out episodes, lines their 95 % intervals, without correction "
        "for several comparisons."
    )
    title = "Gain by perturbation"
    return ReportImage("gains.png", caption, figure, title, gain_words(gains, unit))


def _facts(runs: OfflineRuns) -> dict[str, str]:
    settings = runs.first.settings
    facts = {
        f"run {run.run_name}": f"{run.settings['encoder']}, "
        f"{counted(run.settings['seeds'], 'policy', 'policies')} per encoder"
        for run in (runs.first, *runs.others)
    }
    return {
        **facts,
        "data set": str(settings["source"]),
        "policy": str(settings["head"]),
        "read-out": str(settings.get("readout", "pooled")),
        "perturbation split": str(settings["split"]),
        "git commit of this comparison": git_commit(),
    }


def _subject(run: OfflineEvidence) -> str:
    return subject_name(run.settings["encoder"])


def _other(run: OfflineEvidence) -> str:
    """An encoder may have been evaluated by several runs: the run's name tells them apart."""
    return f"{_subject(run)} ({run.run_name})"
