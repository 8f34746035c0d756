"""A report's files as artifacts of its run, and its verdict as the run's description."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynaflip.platform.evaluation.report.html_page import ReportImage
from dynaflip.platform.tracking.links import describe_run

if TYPE_CHECKING:
    from dynaflip.platform import tracking


def log_report(
    run: tracking.Run, report: Path, verdict: Sequence[str], images: Sequence[ReportImage]
) -> None:
    """Log the page and its images; the run's page in MLflow begins with the verdict.

    Args:
        run: the evaluation's.
        report: path of the HTML file.
        verdict: sentences.
        images: of the page.
    """
    run.log_file(report)
    with tempfile.TemporaryDirectory() as folder:
        for image in images:
            path = Path(folder) / image.name
            path.write_bytes(image.data)
            run.log_file(path, "images")
    if verdict:
        others = "\n\n".join(verdict[1:])
        describe_run(run, f"**{verdict[0]}**\n\n{others}\n\nThe artifact `{report.name}` has all "
                     "figures, rollouts and tables.")  # fmt: skip
