"""Report of a sweep: its state, its tables and its verdict, for terminal, file and page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.config import UNITS
from dynaflip.platform.sweep.importance import importance_line, kept_importances
from dynaflip.platform.sweep.opened_sweep import Sweep, space_of
from dynaflip.platform.sweep.status import (
    DONE,
    RUNNING,
    STOPPED,
    WAITING,
    StageStatus,
    TrialStatus,
    confirmation_s,
    stages_of,
)
from dynaflip.platform.sweep.study import CONFIRM, SEARCH
from dynaflip.platform.sweep.table import TrialTable, aligned, summary, trial_table

if TYPE_CHECKING:
    from rich.console import Console

    from dynaflip.platform.sweep.confirmation import Confirmed

PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """What there is to say about a sweep now, in order: lines of text and tables."""

    sweep: Sweep
    stages: list[StageStatus]
    confirmed: Sequence[Confirmed]
    verdict: str  # empty while there is none
    parts: list[str | TrialTable]

    @property
    def unit(self) -> str:
        """Of the score that ranks."""
        return UNITS[self.sweep.config.objectives[0]]

    def text(self) -> str:
        """Plain text."""
        return "\n".join(p.text() if isinstance(p, TrialTable) else p for p in self.parts)

    def print_on(self, console: Console) -> None:
        """Print with colours, in the console's width."""
        for part in self.parts:
            if isinstance(part, TrialTable):
                console.print(part.rich())
                for reason in part.reasons:
                    console.print(reason, style="red", markup=False, highlight=False)
            else:
                console.print(part, markup=False, highlight=False, soft_wrap=True)


def report_of(sweep: Sweep, confirmed: Sequence[Confirmed], *, finished: bool = False) -> Report:
    """The report.

    Args:
        sweep: the sweep.
        confirmed: results of its confirmation, best first; empty without.
        finished: the sweep's own process says so, which is about to write the page.
    """
    stages = stages_of(sweep, running=False if finished else None)
    objectives = sweep.config.objectives
    search = stages[0]
    said = verdict_of(sweep, search, confirmed)
    parts: list[str | TrialTable] = [_state_line(sweep, stages, finished)]
    for stage in stages:
        then_s = confirmation_s(sweep, stage) if len(stages) == 1 else None
        title = stage.stage if stage.stage == SEARCH else "confirmation"
        parts += ["", f"{title}: {summary(stage, then_s)}"]
        parts.append(trial_table(stage, space_of(sweep, stage.stage), objectives).compact())
        if stage.stage == SEARCH:
            parts += _of_search(sweep)
    if confirmed:
        from dynaflip.platform.sweep.confirmation import confirmation_table

        rows = aligned(confirmation_table(confirmed, UNITS[objectives[0]]))
        parts += ["", "confirmation, with other seeds (less error is better):", *rows]
    if said:
        parts += ["", f"verdict: {said}"]
    return Report(sweep, stages, confirmed, said, parts)


def verdict_of(sweep: Sweep, search: StageStatus, confirmed: Sequence[Confirmed]) -> str:
    """One sentence: which weights are best, by how much, and whether that is beyond noise."""
    if confirmed:
        from dynaflip.platform.sweep.confirmation import verdict

        return verdict(confirmed, UNITS[sweep.config.objectives[0]])
    done = [t for t in search.trials if t.state == DONE]
    if not done or any(t.state in (RUNNING, STOPPED, WAITING) for t in search.trials):
        return ""
    if len(search.trials) < sweep.config.trials or sweep.config.confirm:
        return ""
    unit = UNITS[sweep.config.objectives[0]]
    best = min(done, key=lambda t: t.scores[0])
    if best.number == 0:
        error = _error(best, unit)
        return f"no trial's weights score better than the paper's: {error}, and less is better"
    papers = next((t for t in done if t.number == 0), None)
    beside = "" if papers is None else f", against {_error(papers, unit)} of the paper's weights"
    return (
        f"{best.name} has the least error, {_error(best, unit)}{beside}, and less is better; "
        "not confirmed with other seeds, so the gap may be luck"
    )


def _error(trial: TrialStatus, unit: str) -> str:
    return f"{trial.scores[0]:.2f} {unit}"


def _of_search(sweep: Sweep) -> list[str]:
    objectives = sweep.config.objectives
    if len(objectives) > 1:
        return [
            "* on the Pareto front",
            f"the first objective, {objectives[0]}, chooses what is confirmed and registered",
        ]
    return ["* least error", importance_line(kept_importances(sweep))]


def _state_line(sweep: Sweep, stages: Sequence[StageStatus], finished: bool) -> str:
    """Line on the sweep's state: it runs, is finished, or waits to be continued, and how."""
    name = sweep.facts.name
    if stages[0].running:
        return f"sweep {name}: running"
    page = sweep.folder() / PAGE
    if not finished and not (page.is_file() and _all_ended(sweep, stages)):
        return f"sweep {name}: stopped; continue with: {folders.resume_command(name)}"
    return f"sweep {name}: finished; its page: {page}"


def _all_ended(sweep: Sweep, stages: Sequence[StageStatus]) -> bool:
    """True if no trial of the search or of the confirmation is left to run."""
    begun = {stage.stage for stage in stages}
    return (
        len(stages[0].trials) >= stages[0].total
        and (CONFIRM in begun or not sweep.config.confirm)
        and not any(t.state in (STOPPED, WAITING) for stage in stages for t in stage.trials)
    )
