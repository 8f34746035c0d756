"""What an evaluation found, in sentences: the head of every report.

A sentence says no more than the interval does: who, beside whom, under what, by how much, from how
many policies and tasks, and whether it holds when several encoders are compared at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynaflip.eval.intervals.cluster_bootstrap import Interval
from dynaflip.eval.intervals.hierarchical_bootstrap import Rate
from dynaflip.eval.intervals.holm import family_verdicts

BETTER, WORSE, UNCLEAR = "better", "worse", "not distinguishable"
_SPOKEN = {
    "initialization": "its initialisation",
    "initial": "its initialisation",
    "imagenet": "ImageNet's weights",
    "random": "random weights",
}


@dataclass(frozen=True)
class Wording:
    """How a difference in some measure is told; ``{gap}`` stands for the number with its unit."""

    more: str
    less: str
    same: str
    unit: str
    level: str = ""  # of an encoder that nothing is compared with; ``{level}`` in percent


SUCCESS = Wording("succeeds {gap} more often than", "succeeds {gap} less often than",
                  "succeeds as often as", "point",
                  "succeeds in {level} of the episodes")  # fmt: skip
IMITATION = Wording("comes {gap} closer to the expert's actions than",
                    "stays {gap} further from the expert's actions than",
                    "comes as close to the expert's actions as", "point",
                    "reaches {level} (100 % is the expert's actions)")  # fmt: skip
ACTION_ERROR = Wording("has {gap} less action error than", "has {gap} more action error than",
                       "has the same action error as", "sigma")  # fmt: skip


def position(target: str) -> Wording:
    """Of probes that read a target's position."""
    return Wording(
        f"tells the {target}'s position {{gap}} more exactly than",
        f"tells the {target}'s position {{gap}} less exactly than",
        f"tells the {target}'s position as exactly as",
        "cm",
    )


@dataclass(frozen=True)
class Finding:
    """An encoder beside another one: by how much it is better, in the unit of the wording."""

    where: str  # "out of distribution on test"
    subject: str  # "dynaflip-encoder/7"
    other: str  # "its initialisation"
    value: float  # above 0: the subject is better
    low: float  # of the 95 % interval; NaN where one unit alone gives none
    high: float
    design: str  # "6 policies, 5 tasks"
    corrected: str | None = None  # verdict with Holm's correction; None for a single comparison
    comparisons: int = 1
    caution: str = ""  # what the interval leaves out

    @property
    def verdict(self) -> str | None:
        """In the words of the tables; None where there is no interval."""
        if not math.isfinite(self.low):
            return None
        return BETTER if self.low > 0 else WORSE if self.high < 0 else UNCLEAR


def finding_of(
    difference: Rate | Interval,
    *,
    where: str,
    subject: str,
    other: str,
    design: str,
    scale: float = 100.0,
    caution: str = "",
) -> Finding:
    """A finding from a paired difference.

    Args:
        difference: above 0 where the subject is better; of a negative ``scale`` below.
        where, subject, other, design, caution: of :class:`Finding`.
        scale: from the difference's unit to the wording's.
    """
    low, high = sorted((scale * difference.low, scale * difference.high))
    value = scale * difference.value
    return Finding(where, subject, spoken(other), value, low, high, design, caution=caution)


def with_family(findings: Sequence[Finding], rates: Sequence[Rate]) -> list[Finding]:
    """The same findings with Holm's verdict over all of them; a single one needs none.

    Args:
        findings: of one subject and group of conditions.
        rates: their differences in the same order.
    """
    if len(findings) < 2:
        return list(findings)
    together = family_verdicts({str(i): rate for i, rate in enumerate(rates)})
    return [
        replace(one, corrected=together[str(i)], comparisons=len(findings))
        for i, one in enumerate(findings)
    ]


def sentence(finding: Finding, wording: Wording) -> str:
    """The finding as one sentence, which ends or begins with its verdict."""
    exact = _digits(finding)
    gap = f"{_number(abs(finding.value), exact)} {_unit(wording, abs(finding.value), exact)}"
    if float(_number(abs(finding.value), exact)) == 0:
        told = wording.same
    else:
        told = (wording.more if finding.value > 0 else wording.less).format(gap=gap)
    claim = f"{finding.where}, {finding.subject} {told} {finding.other}"
    behind = f"{finding.design}{_holm(finding)}{finding.caution and '; ' + finding.caution}"
    verdict = finding.verdict
    if verdict is None:
        return f"Not known: {claim}; one unit alone has no interval ({behind})."
    if verdict == UNCLEAR:
        ends = f"[{_signed(finding.low, exact)}, {_signed(finding.high, exact)}]"
        return f"Not distinguishable: {claim} {ends} ({behind})."
    near, far = sorted((abs(finding.low), abs(finding.high)))
    ends = f"[{_number(near, exact)}, {_number(far, exact)}]"
    return f"{claim[0].upper()}{claim[1:]} {ends} ({behind}): {verdict}."


def alone(where: str, subject: str, told: str, design: str) -> str:
    """The sentence of an evaluation that compares with nothing."""
    return f"{where[0].upper()}{where[1:]}, {subject} {told} ({design}); nothing to compare with."


def spoken(name: str) -> str:
    """How a baseline is called in a sentence; other encoders have their own names."""
    return _SPOKEN.get(name, name)


def subject_name(encoder: str) -> str:
    """How the encoder under test is called: the setting ``encoder`` without what is clear.

    ``models:/dynaflip-encoder/7`` is ``dynaflip-encoder/7``, a folder its last part, and of
    several (one per pretraining seed) the first is named.
    """
    first, *others = [part.strip() for part in encoder.split(",") if part.strip()]
    if first.isdigit():
        from dynaflip.platform.tracking.registry import DEFAULT_NAME

        name = f"{DEFAULT_NAME}/{first}"
    elif first.startswith("models:/"):
        name = first.removeprefix("models:/").strip("/")
    else:
        name = first.rstrip("/").rpartition("/")[2] or first
    return f"{name} and {len(others)} more seed{'s' * (len(others) > 1)}" if others else name


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 policy``, ``6 policies``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _holm(finding: Finding) -> str:
    """Words on the verdict with Holm's correction; empty where there is nothing to correct."""
    if finding.corrected is None or finding.verdict in (None, UNCLEAR):
        return ""
    stands = finding.corrected == finding.verdict
    among = f"Holm's correction for {finding.comparisons} comparisons"
    return f"; holds with {among}" if stands else f"; not with {among}"


def _digits(finding: Finding) -> int:
    """Decimals: none where all three numbers are of one unit and more, else as many as tell."""
    sizes = [abs(v) for v in (finding.value, finding.low, finding.high) if math.isfinite(v) and v]
    smallest = min(sizes, default=1.0)
    return 0 if smallest >= 1 else 1 if smallest >= 0.1 else 2 if smallest >= 0.01 else 3


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _signed(value: float, digits: int) -> str:
    """``+8`` or ``-4``; a zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def _unit(wording: Wording, value: float, digits: int) -> str:
    one = _number(value, digits) in ("1",)
    return f"{wording.unit}s" if wording.unit == "point" and not one else wording.unit
