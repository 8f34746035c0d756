"""Heartbeat of a run: a small file that says what it does now, for those who watch it.

The training loop only leaves its step and its loss, as it lies on the device; a thread reads the
loss and rewrites the file about once a second. Neither a slow disk nor the copy from the device
stalls a step.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dynaflip.files import write_file

if TYPE_CHECKING:  # those who only read heartbeats do not wait for torch
    from torch import Tensor

FILE = "heartbeat.json"
EVERY_S = 1.0
_POINTS = 120  # of the loss curve; beyond them every other one is dropped


@dataclass(frozen=True)
class Pulse:
    """State of a run when its heartbeat was written."""

    doing: str = ""  # training, or what comes before and after it
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    elapsed_s: float = 0.0  # over all sessions, at `written_s`; pauses between them do not count
    steps_per_s: float | None = None  # of this session, once it has done a step
    curve: list[tuple[int, float]] = field(default_factory=list)  # (step, loss), thinned
    written_s: float = 0.0  # Unix time

    def elapsed_now_s(self, running: bool) -> float:
        """Seconds that the run has taken until now, if it is still running."""
        return self.elapsed_s + (max(0.0, time.time() - self.written_s) if running else 0.0)

    def eta_s(self) -> float | None:
        """Seconds from now to the last step; None before the first one of this session."""
        if not self.steps_per_s:
            return None
        left = (self.total_steps - self.step) / self.steps_per_s
        return max(0.0, left - max(0.0, time.time() - self.written_s))


def read_pulse(folder: Path) -> Pulse | None:
    """The last heartbeat in a run's folder; None where there is none."""
    try:
        values = json.loads((folder / FILE).read_text())
        return Pulse(**{**values, "curve": [(step, loss) for step, loss in values["curve"]]})
    except (OSError, ValueError, TypeError, KeyError):  # not there, or of another version
        return None


def write_pulse(folder: Path, pulse: Pulse) -> None:
    """Write a heartbeat; nothing happens where that fails, as nothing depends on it."""
    with contextlib.suppress(OSError):
        write_file(folder / FILE, json.dumps(asdict(pulse)))


def note(folder: Path, doing: str, *, first: bool = False) -> None:
    """Say what a run does now, from a process that does not train.

    Args:
        folder: of the run.
        doing: in a few words.
        first: a session begins: the pause since the last one does not count.
    """
    last = read_pulse(folder) or Pulse(written_s=time.time())
    elapsed_s = last.elapsed_now_s(running=not first)
    write_pulse(
        folder,
        replace(last, doing=doing, elapsed_s=elapsed_s, written_s=time.time(), steps_per_s=None),
    )


class Heartbeat:
    """Writes the heartbeat of a training from a thread; used by rank 0 alone."""

    def __init__(self, folder: Path, total_steps: int, every_s: float = EVERY_S) -> None:
        """Go on with the clock and the curve that the folder's last heartbeat has."""
        last = read_pulse(folder) or Pulse(written_s=time.time())
        self.folder, self.every_s = folder, every_s
        self._pulse = replace(last, total_steps=total_steps, steps_per_s=None)
        self._began_s = time.time() - last.elapsed_now_s(running=True)
        self._doing = last.doing
        self._newest: tuple[int, Tensor] | None = None
        self._first: tuple[float, int] | None = None  # (time, step) of the session's first step
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def doing(self, what: str) -> None:
        """Say what comes now, before or between steps."""
        self._doing = what

    def stepped(self, step: int, loss: Tensor) -> None:
        """Note a step that is done; the loss may still be computing on its device."""
        self._newest, self._doing = (step, loss.detach()), "training"
        if self._first is None:
            self._first = (time.time(), step)

    @contextlib.contextmanager
    def beating(self) -> Iterator[Heartbeat]:
        """Write about every `every_s` seconds while the block runs, and once at its end."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(5 * self.every_s)  # a disk that hangs does not hold the run

    def _beat(self) -> None:
        done = False
        while not done:
            done = self._stop.wait(self.every_s)
            self._pulse = self._now()
            write_pulse(self.folder, self._pulse)

    def _now(self) -> Pulse:
        now_s = time.time()
        pulse = replace(
            self._pulse, doing=self._doing, elapsed_s=now_s - self._began_s, written_s=now_s
        )
        if self._newest is None or self._first is None:
            return pulse
        step, loss = self._newest
        first_s, first_step = self._first
        rate = (step - first_step) / max(now_s - first_s, 1e-9) if step > first_step else None
        value = float(loss)  # waits for the device, in this thread alone
        curve = [point for point in pulse.curve if point[0] < step]
        curve.append((step, round(value, 5)))
        if len(curve) > _POINTS:
            curve = curve[::-2][::-1]  # the newest stays
        return replace(pulse, step=step, loss=value, steps_per_s=rate, curve=curve)
