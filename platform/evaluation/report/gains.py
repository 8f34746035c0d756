"""Gains of the encoder under test over the others, by factor: the report's first figure.

Numbers are those of the tables: the same paired differences of the same episodes.
"""

from __future__ import annotations

import numpy as np

from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.intervals.hierarchical_bootstrap import success_rate
from dynaflip.eval.plots import Gain, HeatMap, condition_name
from dynaflip.platform.evaluation.report.rollout_tables import encoders_alone
from dynaflip.platform.evaluation.report.verdict import (
    SUCCESS,
    Finding,
    Wording,
    alone,
    counted,
    finding_of,
    sentence,
    spoken,
    with_family,
)
from dynaflip.platform.evaluation.results import (
    IN_DISTRIBUTION,
    OUT_OF_DISTRIBUTION,
    TOGETHER,
    Successes,
    compare_encoders,
    groups,
)

Pair = tuple[str, int]  # (factor, level)
MEAN_OF_FACTORS = f"{OUT_OF_DISTRIBUTION}: mean of the factors"
ONE_POLICY = "one policy each, so chance of the fit is left out"


def rows_of(conditions: tuple[Pair, ...]) -> dict[str, list[Pair]]:
    """Rows of the figure: groups of conditions first, then each factor over its levels."""
    found = groups(conditions)
    rows: dict[str, list[Pair]] = {}
    if IN_DISTRIBUTION in found:
        rows[IN_DISTRIBUTION] = found[IN_DISTRIBUTION]
    if OUT_OF_DISTRIBUTION in found:
        rows[MEAN_OF_FACTORS] = found[OUT_OF_DISTRIBUTION]
    for factor in dict.fromkeys(f for f, _ in conditions if f not in (UNPERTURBED, ALL_FACTORS)):
        rows[condition_name(factor)] = [c for c in conditions if c[0] == factor]
    if TOGETHER in found:
        rows[condition_name(ALL_FACTORS)] = found[TOGETHER]
    return rows


def success_gains(by_name: dict[str, Successes], reference: str) -> list[Gain]:
    """The reference's gain over every other encoder, in points, by row of the figure.

    Args:
        by_name: encoder's name → its successes (or another measure in [0, 1], more is better).
        reference: name of the encoder under test.
    """
    compared = encoders_alone(by_name)
    gains = []
    for row, conditions in rows_of(by_name[reference].conditions).items():
        for name, one in compare_encoders(compared, reference, conditions).items():
            if (gap := one.difference) is not None:
                ends = 100 * gap.value, 100 * gap.low, 100 * gap.high
                gains.append(Gain(row, spoken(name), *ends))
    return gains


def main_baseline(names: list[str], reference: str) -> str | None:
    """The encoder that the verdict is about: the initialisation, or the first there is."""
    others = [name for name in names if name != reference]
    return "initialization" if "initialization" in others else next(iter(others), None)


def verdict_lines(
    by_name: dict[str, Successes],
    reference: str,
    *,
    subject: str,
    split: str,
    wording: Wording = SUCCESS,
    nouns: tuple[str, str] = ("task", "tasks"),
) -> list[str]:
    """The verdict, then what else was found: other encoders, and the unperturbed condition.

    Args:
        by_name: encoder's name → its successes (or another measure in [0, 1], more is better).
        reference: name of the encoder under test.
        subject: how it is called.
        split: of the perturbations.
        wording: of the measure.
        nouns: what the tasks' axis counts.
    """
    first, compared = by_name[reference], encoders_alone(by_name)
    policies, tasks = first.values.shape[:2]
    design = f"{counted(policies, 'policy', 'policies')}, {counted(tasks, *nouns)}"
    found = groups(first.conditions)
    shown = [name for name in (OUT_OF_DISTRIBUTION, IN_DISTRIBUTION) if name in found]
    main = main_baseline(list(compared), reference)
    if main is None:
        rate = success_rate(first.of_conditions(found[shown[0]]))
        ends = f"[{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
        told = wording.level.format(level=f"{100 * rate.value:.0f} % {ends}")
        return [alone(f"{shown[0]} on {split}", subject, told, design)]
    lines: list[str] = []
    for group in shown:
        findings = _family(
            compared, reference, found[group], f"{group} on {split}", subject, design
        )
        order = sorted(findings, key=lambda name: name != main)
        lines += [sentence(findings[name], wording) for name in order]
    return lines


def _family(
    compared: dict[str, Successes],
    reference: str,
    conditions: list[Pair],
    where: str,
    subject: str,
    design: str,
) -> dict[str, Finding]:
    """A finding for each other encoder under some conditions, corrected together."""
    gaps = {
        name: one.difference
        for name, one in compare_encoders(compared, reference, conditions).items()
        if one.difference is not None
    }
    caution = ONE_POLICY if len(compared[reference].values) == 1 else ""
    findings = [
        finding_of(gap, where=where, subject=subject, other=name, design=design, caution=caution)
        for name, gap in gaps.items()
    ]
    return dict(zip(gaps, with_family(findings, list(gaps.values())), strict=True))


def heat_maps(
    by_name: dict[str, Successes], reference: str, measure: str = "success"
) -> list[HeatMap]:
    """Success by factor and level where there are several levels, else by factor and encoder.

    With several levels the main baseline's gain stands beside; a factor's level 0 is the
    unperturbed condition.

    Args:
        by_name: encoder's name → its successes, or another measure.
        reference: name of the encoder under test.
        measure: what is measured, in a word or two.
    """
    first = by_name[reference]
    levels = sorted({level for factor, level in first.conditions if factor != UNPERTURBED})
    factors = list(dict.fromkeys(f for f, _ in first.conditions if f != UNPERTURBED))
    if not factors:
        return []
    names = tuple(condition_name(factor) for factor in factors)
    if len(levels) < 2:
        rows = rows_of(first.conditions)
        values = [[_mean(one, chosen) for one in by_name.values()] for chosen in rows.values()]
        title = f"{measure}, %"
        return [HeatMap(title, tuple(rows), tuple(by_name), np.array(values), signed=False)]
    columns = tuple("none" if not level else f"level {level}" for level in (0, *levels))
    own = _by_level(first, factors, levels)
    maps = [HeatMap(f"{measure} of {reference}, %", names, columns, own, signed=False)]
    main = main_baseline(list(encoders_alone(by_name)), reference)
    if main is not None:
        gap = own - _by_level(by_name[main], factors, levels)
        maps.append(HeatMap(f"gain over {spoken(main)}, points", names, columns, gap, signed=True))
    return maps


def _by_level(one: Successes, factors: list[str], levels: list[int]) -> np.ndarray:
    """(factors, 1 + levels) mean success in percent; NaN where it was not run."""
    return np.array(
        [
            [_mean(one, [(UNPERTURBED, 0)]), *(_mean(one, [(factor, n)]) for n in levels)]
            for factor in factors
        ]
    )


def _mean(one: Successes, conditions: list[Pair]) -> float:
    if any(condition not in one.conditions for condition in conditions):
        return float("nan")
    return 100 * float(one.of_conditions(conditions).mean())
