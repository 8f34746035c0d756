"""Progress line of preprocessing."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from dynaflip.platform.triplets.batches import BatchNews

_EVERY_S = 5.0


class Progress:
    """Clips done, rejected and time left: one line in a terminal, one now and then in a log."""

    def __init__(self, name: str, total: int = 0) -> None:
        self.name, self.total = name, total
        self.more = not total  # may come: the source is still being listed
        self.done = self.fresh = 0
        self.rejected: Counter[str] = Counter()
        self.begin_s = self.shown_s = time.monotonic()
        self.terminal = sys.stdout.isatty()
        # Of each stage how many work at a time, where stages are apart; and their seconds.
        self.workers: dict[str, float] = {}
        self.seconds: Counter[str] = Counter()
        self.stages_began_s: float | None = None
        self._batch_news = BatchNews()

    def expect(self, total: int, *, more: bool) -> None:
        """So many clips are listed, and whether more are to come."""
        self.total, self.more = total, more

    def update(self, stages: list[str], *, earlier: bool = False) -> None:
        """Count clips by the stage that rejected them, "" for those that gave triplets.

        Args:
            stages: one a clip.
            earlier: an earlier run made them.
        """
        self.done += len(stages)
        self.fresh += 0 if earlier else len(stages)
        self.rejected.update(stage for stage in stages if stage)
        now_s = time.monotonic()
        if self.terminal or now_s - self.shown_s >= _EVERY_S:
            self.shown_s = now_s
            self._show(now_s)

    def busy(self, seconds: Mapping[str, float]) -> None:
        """Count the seconds that workers of each stage were busy with a shard."""
        self.seconds.update(seconds)
        if self.stages_began_s is None:
            self.stages_began_s = time.monotonic() - max(seconds.values(), default=0.0)

    def batches(self, news: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Say which stages ask their models less at once from now on, for want of memory."""
        for line in self._batch_news.lines(news):
            print(f"\r{line:<78}" if self.terminal else line, flush=True)

    def busy_shares(self) -> dict[str, float]:
        """Of each stage the share of time that its workers were busy; {} where there is but one."""
        if self.stages_began_s is None or not self.workers:
            return {}
        spent_s = max(time.monotonic() - self.stages_began_s, 1e-9)
        return {
            stage: min(1.0, self.seconds[stage] / workers / spent_s)
            for stage, workers in self.workers.items()
        }

    def close(self) -> None:
        """Show the last state and end the line."""
        self._show(time.monotonic())
        if self.terminal:
            print()

    def _show(self, now_s: float) -> None:
        spent_s = now_s - self.begin_s
        rate = self.fresh / spent_s if spent_s > 0 else 0.0
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate else "starting"
        if self.more:
            left = "listing"
        elif self.done >= self.total:
            left = f"{spent_s:.0f} s"
        stages = ", ".join(f"{stage} {n}" for stage, n in self.rejected.most_common())
        text = (
            f"{self.name} {self.done}/{self.total}{'+' if self.more else ''} clips · "
            f"{self.rejected.total()} rejected"
            f"{f' ({stages})' if stages else ''} · "
            f"{rate:.1f} clips/s · {self._stages()}{left}"
        )
        print(f"\r{text:<78}" if self.terminal else text, end="" if self.terminal else "\n")
        sys.stdout.flush()

    def _stages(self) -> str:
        """How busy each stage is; the busiest limits the others."""
        shares = self.busy_shares()
        if not shares:
            return ""
        limits = max(shares, key=lambda stage: shares[stage])
        return "".join(
            f"{stage} {share:.0%}{' (limits)' if stage == limits else ''} · "
            for stage, share in shares.items()
        )
