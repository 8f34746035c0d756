"""A comparison of finished runs, of any suite, as a page and as an MLflow run of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynaflip.platform import tracking
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.report.html_page import ReportImage, write_report
from dynaflip.platform.evaluation.report.log_report import log_report
from dynaflip.platform.evaluation.report.tables import Section, as_text
from dynaflip.platform.evaluation.report.verdict import counted
from dynaflip.platform.paths import home, new_run_name

if TYPE_CHECKING:
    from dynaflip.platform.evaluation.offline_evidence import OfflineEvidence
    from dynaflip.platform.evaluation.rollout_run import FinishedEvaluation

KIND = "compare"  # the run's tag `kind`


def log_comparison(
    first: FinishedEvaluation | OfflineEvidence,
    others: Sequence[FinishedEvaluation | OfflineEvidence],
    *,
    subject: str,
    verdict: list[str],
    facts: dict[str, str],
    sections: list[Section],
    notes: Sequence[str],
    images: list[ReportImage],
) -> Outcome:
    """Write a comparison's page below ``reports/`` in the home, and log it as a run of its own.

    Args:
        first: the run that the others stand beside.
        others: these.
        subject: the first run's encoder, for the title.
        verdict: sentences.
        facts: of the compared runs, by name.
        sections: tables.
        notes: on the tables.
        images: of the page.
    """
    table, name = as_text(sections), new_run_name(KIND)
    path = home() / "reports" / f"{name}.html"
    write_report(
        path,
        title=f"DynaFLIP: {subject} beside {counted(len(others), 'other run')}",
        verdict=verdict,
        facts=facts,
        sections=sections,
        notes=notes,
        images=images,
    )
    tags = {
        "kind": KIND,
        "encoder": first.settings["encoder"],
        "perturbation_split": first.settings["split"],
        "compared_runs": ",".join(run.run_id for run in (first, *others)),
    }
    run = tracking.open_run(first.settings["experiment"], name, tags)
    with tracking.ending(run):
        run.log_text(table, "table.txt")
        log_report(run, path, verdict, images)
    return Outcome(table, name, run.run_id, [], {}, path, sections=sections, verdict=verdict)
