"""Page of a sweep's result: one HTML file that needs nothing else, for screen and print."""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynaflip.files import write_file
from dynaflip.platform.sweep.config import FLOW_PROBE, PERTURBED
from dynaflip.platform.sweep.confirmation import confirmation_table
from dynaflip.platform.sweep.figures import figures
from dynaflip.platform.sweep.opened_sweep import space_of
from dynaflip.platform.sweep.report import PAGE, Report
from dynaflip.platform.sweep.table import summary, trial_table
from dynaflip.platform.tracking import links
from dynaflip.platform.tracking.version_card import describe_version

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPTIONS = {
    "confirmation": "Confirmation: the best settings and the paper's, trained again with other "
    "seeds that had no part in choosing them.",
    "history": "Search: the score of each trial, and the best until then. The best of many noisy "
    "scores looks better than it is; the confirmation does not.",
    "importance": "Which searched setting the score depends on.",
    "parallel_coordinates": "Values of each finished trial; the axes span the searched ranges. The "
    "best trial is thick, the paper's weights are dashed and may lie outside.",
    "pareto_front": "The objectives against each other.",
}
_SCORES = {
    PERTURBED: "error of a probe for hand and object in images with one factor perturbed, on the "
    "dev split, in cm: less is better",
    FLOW_PROBE: "held-out 3D flow that a ridge on the frozen features of the first frame leaves "
    "unexplained, in percent; predicting the training mean leaves 100, and less is better",
}
_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict { font-size: 1.15rem; font-weight: 600; background: #eef3fa;
           border-left: 4px solid #1f5fa8; padding: .7rem 1rem; margin: 1rem 0; }
figure { margin: .5rem 0 1.5rem; break-inside: avoid; }
figure img { width: 100%; height: auto; }
figcaption, .facts { color: #4a5260; font-size: .92rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #e4e6ea; }
th { border-bottom: 2px solid #c9ced6; }
tr { break-inside: avoid; }
tr.best { font-weight: 600; }
tr.failed td, tr.skipped td, tr.pruned td { color: #6b7280; }
a { color: #1f5fa8; }
code { background: #f3f4f6; padding: .1rem .3rem; border-radius: 3px; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; }
               .scroll { overflow: visible; } table { font-size: 8pt; }
               a { color: inherit; text-decoration: none; } }
"""


@dataclass(frozen=True)
class Registered:
    """What the sweep's end registered."""

    model: str
    version: int
    trial: str
    score: float
    unit: str
    promotion: str  # whether the alias moved, and why

    def best(self) -> str:
        """The trial with its score."""
        return f"{self.trial}, {self.score:.2f} {self.unit}"


def log_report(sweep_report: Report, registered: Registered) -> Path:
    """Write the page into the sweep's folder, and log all of the report to MLflow.

    The parent run gets page, table, figures and a description; the registered version gets a
    description.
    """
    sweep = sweep_report.sweep
    made = figures(sweep_report)
    experiment = links.experiment_address(sweep.parent)
    path = sweep.folder() / PAGE
    write_file(path, page(sweep_report, made, experiment, registered))
    sweep.parent.log_file(path)
    sweep.parent.log_text(sweep_report.text(), "table.txt")
    for name, figure in made.items():
        sweep.parent.log_figure(figure, f"plots/{name}.png")
    uri, name = sweep.parent.uri, sweep.facts.name
    version = links.version_address(uri, registered.model, registered.version)
    best = registered.best()
    said = f"**{_sentence(sweep_report.verdict)}**"
    links.describe_run(
        sweep.parent,
        f"{said}\n\nRegistered: [{registered.model} version {registered.version}]({version}) "
        f"({best}). Alias candidate: {registered.promotion}.\n\nThe artifact `{PAGE}` has all "
        f"figures and trials.",
    )
    parent = links.run_address(experiment, sweep.parent.run_id)
    describe_version(
        registered.model,
        registered.version,
        f"{said}\n\n{best}, from the sweep [{name}]({parent}), whose artifact `{PAGE}` has all "
        f"figures and trials.",
    )
    return path


def page(
    report: Report, made: dict[str, Figure], experiment: str, registered: Registered | None
) -> str:
    """The page as HTML.

    Args:
        report: of the sweep.
        made: figures by name.
        experiment: address of MLflow's page of the sweep's experiment.
        registered: what was registered; None before that.
    """
    sweep, title = report.sweep, f"Sweep {report.sweep.facts.name}"
    body = [f"<h1>{_text(title)}</h1>"]
    body.append(f'<p class="verdict">{_text(_sentence(report.verdict) or "No verdict yet.")}</p>')
    body.append(_facts(report, experiment, registered))
    if report.confirmed:
        body.append("<h2>Confirmation</h2>")
        body.append(_figure(made, "confirmation"))
        body.append(_table(confirmation_table(report.confirmed, report.unit)))
    body.append("<h2>Search</h2>")
    body += [_figure(made, name) for name in made if name != "confirmation"]
    for stage in report.stages:
        shown = "Trials" if stage is report.stages[0] else "Trainings of the confirmation"
        body.append(f"<h2>{shown}</h2><p>{_text(summary(stage))}</p>")
        body.append(_trials(report, stage.stage, experiment))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_CSS}</style></head>"
        f"<body>{''.join(body)}"
        f'<p class="facts">Written {time.strftime("%Y-%m-%d %H:%M")}. Links to runs open MLflow, '
        f"at {_text(links.ui_address(sweep.parent.uri))}"
        f"{_ui_hint(sweep.parent.uri)}.</p></body></html>\n"
    )


def _facts(report: Report, experiment: str, registered: Registered | None) -> str:
    sweep, facts = report.sweep, report.sweep.facts
    parent = links.run_address(experiment, facts.run_id)
    rows = [
        ("Searched", ", ".join(f"<code>{_text(d.text())}</code>" for d in sweep.space)),
        ("Score", _SCORES[sweep.config.objectives[0]]),
        ("Each trial", f"{facts.total_steps} steps, "
         f"{facts.total_steps / facts.steps_per_epoch:.1f} epochs"),
        ("Triplets", f"digest <code>{_text(facts.data_digest)}</code>"),
        ("MLflow", f'<a href="{_text(parent)}">run of the sweep</a>'),
        ("Terminal", f"<code>python jobs/sweep.py show {_text(facts.name)}</code>"),
    ]  # fmt: skip
    if registered is not None:
        address = links.version_address(sweep.parent.uri, registered.model, registered.version)
        what = f"{registered.model} version {registered.version}"
        rows.insert(0, (
            "Registered",
            f'<a href="{_text(address)}">{_text(what)}</a>: {_text(registered.best())}',
        ))  # fmt: skip
        rows.insert(1, ("Alias candidate", _text(registered.promotion)))
    lines = [f"<strong>{label}</strong>: {value}" for label, value in rows]
    return f'<p class="facts">{"<br>".join(lines)}</p>'


def _trials(report: Report, stage: str, experiment: str) -> str:
    sweep = report.sweep
    (status,) = (s for s in report.stages if s.stage == stage)
    shown = trial_table(status, space_of(sweep, stage), sweep.config.objectives).compact()
    table = _table(
        shown.rows,
        classes=[f"{'best ' if t.best else ''}{t.state}" for t in status.trials],
        addresses=[
            links.run_address(experiment, t.run_id) if t.run_id else "" for t in status.trials
        ],
    )
    reasons = "".join(f"<p>{_text(reason)}</p>" for reason in shown.reasons)
    return f"{table}{reasons}"


def _table(
    rows: Sequence[Sequence[str]],
    classes: Sequence[str] = (),
    addresses: Sequence[str] = (),
) -> str:
    """A table, header first; the second cell of a row links to its address."""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in rows[0])
    lines = []
    for i, row in enumerate(rows[1:]):
        cells = [_text(cell) for cell in row]
        if addresses and addresses[i]:
            cells[1] = f'<a href="{_text(addresses[i])}">{cells[1]}</a>'
        kind = f' class="{_text(classes[i])}"' if classes else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _figure(made: dict[str, Figure], name: str) -> str:
    import matplotlib

    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        made[name].savefig(drawn, format="svg", metadata={"Date": None})
    data = base64.b64encode(drawn.getvalue().encode()).decode()
    caption = _text(_CAPTIONS[name])
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _sentence(verdict: str) -> str:
    return f"{verdict[:1].upper()}{verdict[1:]}." if verdict else ""


def _ui_hint(uri: str) -> str:
    return " (start it with make ui)" if links.ui_address(uri) == links.LOCAL_UI else ""


def _text(text: str) -> str:
    return html.escape(text)
