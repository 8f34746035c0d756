"""The score as one table: plain text for a terminal, cells for a report."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynaflip.eval.intervals.cluster_bootstrap import Interval
from dynaflip.eval.labelled_frames import TARGETS, UNITS
from dynaflip.eval.metrics.probe_report import MEAN, ProbeReport
from dynaflip.eval.plots import SCOPE_NAMES, TARGET_NAMES, condition_name

TRAINED, INITIAL, PIXELS = "trained", "initial", "raw pixels"
COLUMNS = ("", TRAINED, INITIAL, "trained - initial", "reference")
MISSING = "-"


@dataclass
class Section:
    """Rows under one heading; the first cell of a row is its label."""

    title: str
    rows: list[list[str]] = field(default_factory=list)
    columns: tuple[str, ...] = COLUMNS


def retrieval_section(trained: dict[str, float], initial: dict[str, float]) -> Section:
    """Top-1 with 95 % intervals over recordings, beside chance."""
    size = int(trained["gallery/size"])
    section = Section(f"Retrieval, top-1 among {size} held-out transitions (reference: chance)")
    for scope, name in SCOPE_NAMES.items():
        if f"retrieval/{scope}/top1" not in trained:
            section.rows.append([name, *[MISSING] * 4])
            continue
        cells = [_share(metrics, scope) for metrics in (trained, initial)]
        gap = trained[f"retrieval/{scope}/top1"] - initial[f"retrieval/{scope}/top1"]
        chance = f"{trained[f'retrieval/{scope}/chance']:.3f}"
        section.rows.append([name, *cells, f"{gap:+.3f}", chance])
    return section


def embedding_section(trained: dict[str, float], initial: dict[str, float]) -> Section:
    """Areas and effective ranks, which tell a collapse."""
    section = Section("Embeddings of the same transitions")
    names = {"area/matched": "mean area, matched", "area/shuffled": "mean area, shuffled"}
    names |= {f"effective_rank/{m}": f"effective rank, {m}" for m in ("image", "language", "flow")}
    for key, name in names.items():
        digits = 3 if key.startswith("area") else 1
        values = [trained[key], initial[key]]
        gap = f"{values[0] - values[1]:+.{digits}f}"
        section.rows.append([name, *(f"{v:.{digits}f}" for v in values), gap, MISSING])
    return section


def probe_sections(report: ProbeReport) -> list[Section]:
    """Errors by condition, with paired differences, beside predicting the mean."""
    sections = []
    for target in TARGETS:
        title = (
            f"Probe, {TARGET_NAMES[target]}: error in {UNITS[target]} (reference: the task's mean)"
        )
        section = Section(title)
        for condition in report.conditions:
            cells = [
                _interval(report.score(target, condition, name).error)
                for name in (TRAINED, INITIAL)
            ]
            gap = _interval(report.difference(target, condition).error, sign=True)
            mean = f"{report.score(target, condition, MEAN).error.value:.1f}"
            pixels = f"{report.score(target, condition, PIXELS).error.value:.1f}"
            row = [condition_name(condition), *cells, gap, f"{mean}  (pixels {pixels})"]
            section.rows.append(row)
        sections.append(section)
    return sections


def further_sections(report: ProbeReport, names: list[str]) -> list[Section]:
    """Errors of further encoders by condition, each with its paired difference from the trained."""
    columns = ["", TRAINED]
    for name in names:
        columns += [name, f"{TRAINED} - {name}"]
    sections = []
    for target in TARGETS:
        title = f"Probe, {TARGET_NAMES[target]}: error in {UNITS[target]} beside other encoders"
        section = Section(title, columns=tuple(columns))
        for condition in report.conditions:
            row = [_interval(report.score(target, condition, TRAINED).error)]
            for name in names:
                row.append(_interval(report.score(target, condition, name).error))
                gap = report.difference_from(target, condition, name).error
                row.append(_interval(gap, sign=True))
            section.rows.append([condition_name(condition), *row])
        sections.append(section)
    return sections


def as_text(sections: list[Section]) -> str:
    """Aligned columns for a terminal; sections with the same columns share their head."""
    lines: list[str] = []
    for columns in dict.fromkeys(section.columns for section in sections):
        together = [section for section in sections if section.columns == columns]
        lines += ["", *_aligned(columns, together)] if lines else _aligned(columns, together)
    return "\n".join(lines)


def _aligned(columns: tuple[str, ...], sections: list[Section]) -> list[str]:
    rows = [list(columns), *(row for section in sections for row in section.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]

    def line(row: list[str]) -> str:
        cells = [f"  {row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    lines = [line(list(columns))]
    for section in sections:
        lines += ["", section.title, *(line(row) for row in section.rows)]
    return lines


def _share(metrics: dict[str, float], scope: str) -> str:
    value = f"{metrics[f'retrieval/{scope}/top1']:.3f}"
    low = metrics.get(f"retrieval/{scope}/low")
    if low is None:
        return value
    return f"{value} [{low:.3f}, {metrics[f'retrieval/{scope}/high']:.3f}]"


def _interval(interval: Interval, *, sign: bool = False) -> str:
    form = "+.1f" if sign else ".1f"
    if interval.low != interval.low:  # NaN: one episode has no interval
        return f"{interval.value:{form}}"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
