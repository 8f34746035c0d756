"""Tables of a sweep's trials for the terminal; plain text where the output is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynaflip.platform.sweep.config import UNITS
from dynaflip.platform.sweep.space import Dimension, short_names
from dynaflip.platform.sweep.status import (
    DONE,
    FAILED,
    PRUNED,
    RUNNING,
    SKIPPED,
    STATES,
    STOPPED,
    StageStatus,
    TrialStatus,
)
from dynaflip.platform.training.progress import clock

if TYPE_CHECKING:
    from rich.table import Table

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_CHARS = 12
_STYLES = {
    DONE: "green",
    PRUNED: "yellow",
    SKIPPED: "yellow",
    FAILED: "red",
    RUNNING: "cyan",
    STOPPED: "magenta",
}


@dataclass(frozen=True)
class TrialTable:
    """Rows of text, header first, with the state of each row's trial."""

    rows: list[list[str]]
    states: list[str]
    reasons: list[str]  # of failures, a line each

    def text(self) -> str:
        """Aligned lines without colours."""
        return "\n".join([*aligned(self.rows), *self.reasons])

    def compact(self) -> TrialTable:
        """The table without columns of blanks, but for the mark's, which keeps its place."""
        kept = [i for i in range(len(self.rows[0])) if i == 0 or any(r[i] for r in self.rows[1:])]
        return replace(self, rows=[[row[i] for i in kept] for row in self.rows])

    def rich(self, most: int | None = None) -> Table:
        """A table for a terminal.

        Args:
            most: rows that there is room for: ended trials make way for the others.
        """
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for title in self.rows[0]:
            table.add_column(title, justify="right", no_wrap=True, overflow="ellipsis")
        shown = _chosen(self.states, most)
        if len(shown) < len(self.states):
            table.add_row("", f"… {len(self.states) - len(shown)} more")
        for i in shown:
            table.add_row(*self.rows[i + 1], style=_STYLES.get(self.states[i], "dim"))
        return table


def trial_table(
    status: StageStatus, space: Sequence[Dimension], objectives: Sequence[str]
) -> TrialTable:
    """One row per trial: values, scores, progress, times, state; the best ones are marked.

    The loss curve has a scale of its own in each row: losses under different weights are not
    comparable.
    """
    head = ["", "trial", *short_names(space), *titles(objectives)]
    rows = [[*head, "step", "loss", "its curve", "elapsed", "ETA", "state"]]
    for trial in status.trials:
        pulse = trial.pulse
        rows.append(
            [
                "*" if trial.best else "",
                trial.name,
                *(shown_value(trial.values.get(d.key)) for d in space),
                *scores_shown(trial, len(objectives)),
                f"{pulse.step}/{pulse.total_steps}" if pulse.step else "",
                "" if pulse.loss is None else f"{pulse.loss:.3f}",
                sparkline(pulse.curve),
                "" if trial.elapsed_s is None else clock(trial.elapsed_s),
                "" if trial.eta_s is None else clock(trial.eta_s),
                trial.doing(),
            ]
        )
    reasons = [f"{t.name} failed: {t.reason}" for t in status.trials if t.reason]
    return TrialTable(rows, [t.state for t in status.trials], reasons)


def summary(status: StageStatus, then_s: float | None = None) -> str:
    """Progress of a stage in one line.

    Args:
        status: of the stage.
        then_s: seconds that the stage after it will take, if there is one.
    """
    counts = [f"{status.count(state)} {state}" for state in STATES if status.count(state)]
    line = f"{', '.join(counts) or 'nothing started'} of {status.total}"
    line += f"; {status.epochs:.1f} epochs trained"
    if status.eta_s is not None and any(t.state == RUNNING for t in status.trials):
        line += f"; ETA {clock(status.eta_s)}"
        if then_s is not None:
            line += f", with the confirmation {clock(status.eta_s + then_s)}"
    return line


def state_lines(
    status: StageStatus, space: Sequence[Dimension], objectives: Sequence[str]
) -> dict[str, str]:
    """Trial → a line that says its values and state, for output that cannot be redrawn."""
    lines = {}
    for trial in status.trials:
        if not trial.run_id:
            continue
        values = " ".join(
            f"{title}={shown_value(trial.values.get(d.key))}"
            for title, d in zip(short_names(space), space, strict=True)
        )
        end = {
            DONE: f"  {' / '.join(_with_units(trial, objectives))}",
            FAILED: f"  {trial.reason}",
        }.get(trial.state, "")
        lines[trial.name] = f"{trial.name}  {values}  {trial.state}{end}"
    return lines


def progress_line(status: StageStatus, then_s: float | None = None) -> str:
    """The stage's progress and that of each running trial, in one line."""
    parts = [f"{status.stage}: {summary(status, then_s)}"]
    for trial in status.trials:
        if trial.state != RUNNING:
            continue
        pulse = trial.pulse
        words = [trial.name, trial.doing()]
        if pulse.step:
            words.append(f"{pulse.step}/{pulse.total_steps}")
        if pulse.loss is not None:
            words.append(f"loss {pulse.loss:.3f}")
        if trial.eta_s is not None:
            words.append(f"ETA {clock(trial.eta_s)}")
        parts.append(" ".join(words))
    return " | ".join(parts)


def sparkline(curve: Sequence[tuple[int, float]], chars: int = _CURVE_CHARS) -> str:
    """A curve as a row of bars from its least to its greatest value, evenly spaced in steps."""
    if len(curve) < 2:
        return ""
    first, last = curve[0][0], curve[-1][0]
    buckets: list[list[float]] = [[] for _ in range(min(chars, len(curve)))]
    for step, value in curve:
        buckets[min(len(buckets) - 1, len(buckets) * (step - first) // (last - first or 1))].append(
            value
        )
    means = [sum(values) / len(values) for values in buckets if values]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as lines with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def titles(objectives: Sequence[str]) -> list[str]:
    """Objectives with their units, for table headers and axes."""
    return [f"{objective} {UNITS[objective]}" for objective in objectives]


def shown_value(value: object) -> str:
    """A searched value in three digits; nothing where the trial has none yet."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def scores_shown(trial: TrialStatus, number: int) -> list[str]:
    """A trial's scores, in brackets where they are not its last; empty cells where it has none."""
    cells = [f"{score:.2f}" if trial.final else f"({score:.2f})" for score in trial.scores]
    return [*cells, *[""] * (number - len(cells))][:number]


def _with_units(trial: TrialStatus, objectives: Sequence[str]) -> list[str]:
    scores = zip(scores_shown(trial, len(objectives)), objectives, strict=True)
    return [f"{score} {UNITS[objective]}" for score, objective in scores]


def _chosen(states: Sequence[str], most: int | None) -> list[int]:
    """Indices of the rows that are shown: running ones first of all, then the newest."""
    if most is None or len(states) <= most:
        return list(range(len(states)))
    by_need = sorted(range(len(states)), key=lambda i: (states[i] != RUNNING, -i))
    return sorted(by_need[: max(1, most - 1)])  # a row says how many are left out
