"""Rollouts as tables: success in percent with 95 % intervals, and verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynaflip.eval.intervals.hierarchical_bootstrap import Rate, success_rate
from dynaflip.eval.intervals.holm import family_verdicts
from dynaflip.eval.intervals.power import design_of, power_line
from dynaflip.eval.intervals.ranking import probability_best
from dynaflip.eval.plots import condition_name
from dynaflip.platform.evaluation.encoders_under_test import EXPERT, RANDOM_POLICY
from dynaflip.platform.evaluation.plan import Condition
from dynaflip.platform.evaluation.report.tables import Section
from dynaflip.platform.evaluation.results import (
    IN_DISTRIBUTION,
    OUT_OF_DISTRIBUTION,
    Successes,
    compare_encoders,
    groups,
)

# By whether policies have proprioception.
GIVEN = {True: "with proprioception", False: "images alone"}

HEADLINE_COLUMNS = (
    "",
    "success %",
    "at the last step %",
    "trained - this, points",
    "verdict",
    "verdict, Holm",
    "best of all, %",
    "trained - this, tasks resampled",
    "trained - this, at the last step",
)


def headline_sections(
    ever: dict[str, Successes], last: dict[str, Successes], reference: str
) -> list[Section]:
    """Each group of conditions: every encoder's success and the reference's gain over it.

    Args:
        ever: encoder's name → success at any step, which verdicts are about.
        last: encoder's name → success at the last step.
        reference: name of the encoder under test.
    """
    sections = []
    first = ever[reference]
    for name, conditions in groups(first.conditions).items():
        section = Section(
            f"Success, {name}: {_count(first, conditions)} episodes per encoder",
            columns=HEADLINE_COLUMNS,
        )
        fixed = compare_encoders(ever, reference, conditions)
        sampled = compare_encoders(ever, reference, conditions, resample_tasks=True)
        held = compare_encoders(last, reference, conditions)
        together = family_verdicts(encoders_alone({n: c.difference for n, c in fixed.items()}))
        best = probability_best(
            encoders_alone({n: one.of_conditions(conditions) for n, one in ever.items()})
        )
        for encoder, comparison in fixed.items():
            row = [encoder, percent(comparison.rate)]
            row.append(percent(held[encoder].rate))
            gain, wider = comparison.difference, sampled[encoder].difference
            at_last = held[encoder].difference
            chance = f"{100 * best[encoder]:.0f}" if encoder in best else "-"
            if gain is None or wider is None or at_last is None:
                row += ["-", "-", "-", chance, "-", "-"]
            else:
                row += [points(gain), gain.verdict(), together.get(encoder, "-"), chance]
                row += [points(wider), points(at_last)]
            section.rows.append(row)
        sections.append(section)
    return sections


def condition_section(by_name: dict[str, Successes]) -> Section:
    """Success by condition, a column per encoder."""
    first = next(iter(by_name.values()))
    section = Section("Success % by condition", columns=("", *by_name))
    for factor, level in first.conditions:
        name = condition_name(factor) + (f", level {level}" if level else "")
        rates = [success_rate(s.of_conditions([(factor, level)])) for s in by_name.values()]
        section.rows.append([name, *map(percent, rates)])
    return section


def task_sections(by_name: dict[str, Successes], reference: str) -> list[Section]:
    """Success by task, in and out of distribution, and the reference's gain where it is clear."""
    first = next(iter(by_name.values()))
    chosen = groups(first.conditions)
    sections = []
    for name in (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION):
        if name not in chosen:
            continue
        section = Section(
            f"Success % by task, {name} (in brackets: {reference} compared with it, by paired "
            f"intervals)",
            columns=("", *by_name),
        )
        for task in first.tasks:
            alone = {encoder: one.of_tasks([task]) for encoder, one in by_name.items()}
            row = [task]
            for comparison in compare_encoders(alone, reference, chosen[name]).values():
                gain = comparison.difference
                row.append(percent(comparison.rate) + (f" ({gain.verdict()})" if gain else ""))
            section.rows.append(row)
        sections.append(section)
    return sections


def power_notes(by_name: dict[str, Successes], reference: str, given: str) -> list[str]:
    """A line for each group of conditions: which gain this design tells apart from none.

    It is that of the comparison that varies most.

    Args:
        by_name: encoder's name → its successes.
        reference: name of the encoder under test.
        given: what policies are given, for the line.
    """
    first = by_name[reference]
    notes = []
    for name, conditions in groups(first.conditions).items():
        values = {n: one.of_conditions(conditions) for n, one in by_name.items()}
        gaps = {n: values[reference] - one for n, one in values.items() if n != reference}
        designs = {n: design_of(gap).detectable() for n, gap in encoders_alone(gaps).items()}
        if not designs or name not in (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION):
            continue
        widest = max(designs, key=lambda n: designs[n])
        if line := power_line(gaps[widest]):
            notes.append(f"power, {name}, {given}: {line}; measured beside {widest}")
    return notes


def encoders_alone(by_name: Mapping[str, Any]) -> dict[str, Any]:
    """Without the policies that check the harness, and without what is None."""
    harness = (EXPERT, RANDOM_POLICY)
    return {n: value for n, value in by_name.items() if n not in harness and value is not None}


def condition_words(condition: Condition) -> str:
    """``camera, level 3``."""
    level = f", level {condition.level}" if condition.level else ""
    return condition_name(condition.factor) + level


def percent(rate: Rate) -> str:
    """``71.7 [66.0, 77.3]``."""
    return f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def points(rate: Rate) -> str:
    """``+12.3 [+4.0, +20.1]``: a difference in percentage points."""
    return f"{100 * rate.value:+.1f} [{100 * rate.low:+.1f}, {100 * rate.high:+.1f}]"


def _count(successes: Successes, conditions: list[tuple[str, int]]) -> int:
    return int(successes.of_conditions(conditions).size)
