"""Live view of a stage: a table that is redrawn on a terminal, calm lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from dynaflip.platform.sweep import table
from dynaflip.platform.sweep.opened_sweep import Sweep
from dynaflip.platform.sweep.space import Dimension
from dynaflip.platform.sweep.status import StageStatus, confirmation_s

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_REDRAW_S = 1.0
_LOOK_S = 2.0  # between looks for changed states, where each is a line
_LINE_S = 10.0  # between lines of progress


class LiveView:
    """Shows a stage while it runs."""

    def __init__(
        self,
        sweep: Sweep,
        space: tuple[Dimension, ...],
        status: Callable[[bool], StageStatus],
    ) -> None:
        """Prepare the view.

        Args:
            sweep: what runs.
            space: columns of values.
            status: whether the sweep runs → the stage's state now.
        """
        self.sweep, self.space, self.status = sweep, space, status
        self._next_s = self._next_line_s = 0.0
        self._printed: dict[str, str] = {}
        self._last_line = ""
        self._live: Live | None = None

    def __enter__(self) -> LiveView:
        """Begin to draw, where the output is a terminal."""
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live

            # Its own console: the standard output that is a terminal now.
            self._live = Live(console=Console(), auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Draw the end: trials that still ran are then stopped."""
        try:
            self._show(self.status(error is None))
        finally:
            if self._live is not None:
                self._live.stop()

    def tick(self) -> None:
        """Draw, if the last drawing is old enough."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        began_s = time.perf_counter()
        self._show(self.status(True))
        every_s = _REDRAW_S if self._live is not None else _LOOK_S
        # A database that is far away is asked less often.
        self._next_s = now_s + max(every_s, 10 * (time.perf_counter() - began_s))

    def _show(self, status: StageStatus) -> None:
        if self._live is not None:
            self._live.update(self._drawn(status), refresh=True)
            return
        objectives = self.sweep.config.objectives
        for name, line in table.state_lines(status, self.space, objectives).items():
            if self._printed.get(name) != line:
                self._printed[name] = line
                print(line)
        if status.running and time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + _LINE_S
            line = table.progress_line(status, confirmation_s(self.sweep, status))
            if line != self._last_line:
                print(line)
            self._last_line = line

    def _drawn(self, status: StageStatus) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        assert self._live is not None
        trials = table.trial_table(status, self.space, self.sweep.config.objectives)
        name = self.sweep.facts.name
        head = Text(
            f"{status.stage}: {table.summary(status, confirmation_s(self.sweep, status))}", "bold"
        )
        keys = Text(
            f"stop: Ctrl-C, or sweep.py stop {name} · skip one: sweep.py skip {name} TRIAL", "dim"
        )
        lines = [
            Text(reason, "red", no_wrap=True, overflow="ellipsis") for reason in trials.reasons
        ]
        # Head, titles, keys, and the cursor's own row.
        room = max(4, self._live.console.size.height - 4 - len(lines))
        last = [keys] if status.running else []
        return Group(head, trials.rich(room), *lines, *last)
