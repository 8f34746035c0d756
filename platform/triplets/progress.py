"""Progress line of preprocessing."""

from __future__ import annotations

import sys
import time
from collections import Counter

_EVERY_S = 5.0


class Progress:
    """Clips done, rejected and time left: one line in a terminal, one now and then in a log."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.done = 0
        self.rejected: Counter[str] = Counter()
        self.begin_s = self.shown_s = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self.skipped: int | None = None

    def update(self, stages: list[str]) -> None:
        """Count clips by the stage that rejected them, "" for those that gave triplets.

        The first call counts those that an earlier run did.
        """
        self.done += len(stages)
        self.rejected.update(stage for stage in stages if stage)
        if self.skipped is None:
            self.skipped = self.done
        now_s = time.monotonic()
        if self.terminal or now_s - self.shown_s >= _EVERY_S:
            self.shown_s = now_s
            self._show(now_s)

    def close(self) -> None:
        """Show the last state and end the line."""
        self._show(time.monotonic())
        if self.terminal:
            print()

    def _show(self, now_s: float) -> None:
        spent_s = now_s - self.begin_s
        fresh = self.done - (self.skipped or 0)
        rate = fresh / spent_s if spent_s > 0 else 0.0
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate else "starting"
        if self.done >= self.total:
            left = f"{spent_s:.0f} s"
        stages = ", ".join(f"{stage} {n}" for stage, n in self.rejected.most_common())
        text = (
            f"{self.name} {self.done}/{self.total} clips · {self.rejected.total()} rejected"
            f"{f' ({stages})' if stages else ''} · "
            f"{rate:.1f} clips/s · {left}"
        )
        print(f"\r{text:<78}" if self.terminal else text, end="" if self.terminal else "\n")
        sys.stdout.flush()
