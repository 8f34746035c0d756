"""The policy evaluation as tables: success in percent with 95 % intervals, and verdicts."""

from __future__ import annotations

from dynaflip.eval.intervals.hierarchical_bootstrap import Rate, success_rate
from dynaflip.eval.plots import condition_name
from dynaflip.platform.evaluation.report.tables import Section
from dynaflip.platform.evaluation.results import (
    IN_DISTRIBUTION,
    OUT_OF_DISTRIBUTION,
    Successes,
    compare_arms,
    groups,
)

# By whether policies have proprioception.
GIVEN = {True: "with hand position and gripper", False: "images alone"}

HEADLINE_COLUMNS = (
    "",
    "success %",
    "at the last step %",
    "trained - this, points",
    "verdict",
    "tasks resampled",
    "at the last step, points",
)


def headline_sections(
    ever: dict[str, Successes], last: dict[str, Successes], reference: str
) -> list[Section]:
    """Each group of conditions: every arm's success and the reference's gain over it.

    Args:
        ever: arm → success at any step, which verdicts are about.
        last: arm → success at the last step.
        reference: the arm under test.
    """
    sections = []
    first = ever[reference]
    for name, conditions in groups(first.conditions).items():
        section = Section(
            f"Success, {name}: {_count(first, conditions)} episodes an arm",
            columns=HEADLINE_COLUMNS,
        )
        fixed = compare_arms(ever, reference, conditions)
        sampled = compare_arms(ever, reference, conditions, resample_tasks=True)
        held = compare_arms(last, reference, conditions)
        for arm, comparison in fixed.items():
            row = [arm, percent(comparison.rate)]
            row.append(percent(held[arm].rate))
            gain, wider = comparison.difference, sampled[arm].difference
            at_last = held[arm].difference
            if gain is None or wider is None or at_last is None:
                row += ["-"] * 4
            else:
                row += [points(gain), gain.verdict(), points(wider), points(at_last)]
            section.rows.append(row)
        sections.append(section)
    return sections


def condition_section(found: dict[str, Successes]) -> Section:
    """Success by condition, a column an arm."""
    first = next(iter(found.values()))
    section = Section("Success % by condition", columns=("", *found))
    for factor, level in first.conditions:
        name = condition_name(factor) + (f", level {level}" if level else "")
        rates = [success_rate(s.of_conditions([(factor, level)])) for s in found.values()]
        section.rows.append([name, *map(percent, rates)])
    return section


def task_sections(found: dict[str, Successes], reference: str) -> list[Section]:
    """Success by task, in and out of distribution, and the reference's gain where it is clear."""
    first = next(iter(found.values()))
    kinds = groups(first.conditions)
    sections = []
    for name in (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION):
        if name not in kinds:
            continue
        section = Section(
            f"Success % by task, {name} (in brackets: what {reference} is beside it, by paired "
            f"intervals)",
            columns=("", *found),
        )
        for task in first.tasks:
            alone = {arm: one.of_tasks([task]) for arm, one in found.items()}
            row = [task]
            for comparison in compare_arms(alone, reference, kinds[name]).values():
                gain = comparison.difference
                row.append(percent(comparison.rate) + (f" ({gain.verdict()})" if gain else ""))
            section.rows.append(row)
        sections.append(section)
    return sections


def percent(rate: Rate) -> str:
    """``71.7 [66.0, 77.3]``."""
    return f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def points(rate: Rate) -> str:
    """``+12.3 [+4.0, +20.1]``: a difference in percentage points."""
    return f"{100 * rate.value:+.1f} [{100 * rate.low:+.1f}, {100 * rate.high:+.1f}]"


def _count(successes: Successes, conditions: list[tuple[str, int]]) -> int:
    return int(successes.of_conditions(conditions).size)
