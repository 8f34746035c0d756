"""Curves on their way to MLflow: a thread sends what is on disk, as fast as the server answers.

Nothing waits for it. While MLflow is away the points stay in the run's :class:`CurveFile`, and are
sent in order when it is back: by this thread, by a resumed run, or by
``python jobs/pretrain.py --send RUN``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dynaflip.platform import tracking
from dynaflip.platform.training.curve_file import CurveFile
from dynaflip.platform.training.progress import clock

# Values in one call: the server takes no more. A call is all or nothing.
_MOST_VALUES = 1000
_EVERY_S = 1.0
_LONGEST_WAIT_S = 30.0


class Sender:
    """Sends a run's curves in a thread."""

    def __init__(self, curves: CurveFile, run: tracking.Run, log: Callable[[str], None]) -> None:
        """Start the thread; ``log`` takes a line when MLflow goes away, and one when it is back."""
        self.curves, self.run, self.log = curves, run, log
        self._finishing = threading.Event()
        self._away_since: float | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True, name="mlflow")
        self._thread.start()

    def finish(self, patience_s: float) -> bool:
        """Send what is left, for so long at most; whether MLflow has everything."""
        self._finishing.set()
        self._thread.join(patience_s)
        return not self._thread.is_alive() and self.curves.all_sent()

    def _serve(self) -> None:
        wait_s = _EVERY_S
        while True:
            finishing = self._finishing.is_set()
            try:
                sent = send_curves(self.curves, self.run)
            except tracking.away_errors() as error:
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                if self._away_since is None:
                    self._away_since = time.monotonic()
                    why = tracking.first_line(error)
                    self.log(
                        f"warning: MLflow is away ({why}); training goes on, and its curves wait "
                        "on disk"
                    )
                if finishing:
                    return
            else:
                wait_s = _EVERY_S
                if self._away_since is not None and sent:
                    away = clock(time.monotonic() - self._away_since)
                    self._away_since = None
                    self.log(f"MLflow is back after {away}; {sent} points that waited are sent")
                if finishing:
                    return
            self._finishing.wait(wait_s)


def send_curves(curves: CurveFile, run: tracking.Run) -> int:
    """Send all points that MLflow has not had, in order; returns how many.

    Raises:
        Exception: one of :func:`dynaflip.platform.tracking.away_errors`.
    """
    count = 0
    while True:
        points, end = curves.unsent(_MOST_VALUES)
        if not points:
            return count
        run.log_points([(point.step, point.time_ms, point.values) for point in points])
        curves.mark_sent(end)
        count += len(points)
