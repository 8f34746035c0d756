"""Reports of the training loop, written in a thread: curves to a file, a line of progress each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dynaflip.platform.training.background import Background
from dynaflip.platform.training.curve_file import CurveFile, Metrics
from dynaflip.platform.training.progress import progress_line
from dynaflip.platform.training.time_use import limit_line, limited_by

# Reports that may wait for a disk. Those of a killed process come again from the checkpoint.
_WAITING = 12


class ReportWriter:
    """Takes rank 0's reports without a wait, and writes each step's once."""

    def __init__(
        self,
        curves: CurveFile,
        log: Callable[[list[str]], None],
        total_steps: int,
        terms: Sequence[str] = (),
    ) -> None:
        """Go on with the curves that are on disk.

        Args:
            curves: of the run.
            log: takes lines for the user; runs in the thread.
            total_steps: of the run.
            terms: the loss terms that the progress line shows.
        """
        self.curves, self.log, self.total_steps, self.terms = curves, log, total_steps, terms
        # A resumed run repeats reports that came after its checkpoint; the file has them.
        self.last: Metrics = {"step": curves.last_step()}
        self._queue = Background(self._write, _WAITING, "reports")

    def __call__(self, metrics: Metrics, notes: Sequence[str] = ()) -> None:
        """Queue a report, and lines for the user that come before its own.

        Raises:
            StoreError: the disk refused an earlier one.
        """
        self._queue.put((metrics, notes))

    def flush(self) -> None:
        """Wait until all reports are on disk.

        Raises:
            StoreError: the disk refuses.
        """
        self._queue.flush()
        self.curves.sync()

    def _write(self, report: tuple[Metrics, Sequence[str]]) -> None:
        metrics, notes = report
        lines = [*notes]
        if metrics["step"] > self.last["step"]:
            lines.append(progress_line(metrics, self.total_steps, self.terms))
            if limited_by(metrics) is not None:  # the last report
                lines.append(limit_line(metrics))
            values: dict[str, Any] = {k: v for k, v in metrics.items() if k != "step"}
            self.curves.append(int(metrics["step"]), values)
            self.last |= metrics
        if lines:
            self.log(lines)
