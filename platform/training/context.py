"""What a backend gives the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dynaflip.encoders.model import DynaFLIP
from dynaflip.platform.training.checkpoint_manager import Checkpoints
from dynaflip.platform.training.heartbeat import Heartbeat
from dynaflip.platform.training.notices import Notices

Metrics = dict[str, float]


@dataclass(frozen=True)
class Context:
    """What the backend gives the loop: ranks, device, reports, checkpoints."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    # Every rank calls it equally often; rank 0's metrics count.
    report: Callable[[Metrics], None] = lambda metrics: None
    # Takes a line for the user; only rank 0's are shown.
    log: Callable[[str], None] = print
    # Where checkpoints go; without, none are written.
    checkpoints: Checkpoints | None = None
    # Notices that this process or its machine will be gone soon.
    notices: Notices = field(default_factory=Notices)
    # Steps at which every rank reports and rank 0 scores the model (a sweep's trials).
    score_steps: frozenset[int] = frozenset()
    score: Callable[[DynaFLIP], Metrics] | None = None
    # Told what the loop does and each step, for those who watch the run.
    heartbeat: Heartbeat | None = None

    def doing(self, what: str) -> None:
        """Say what the loop does now, to those who watch the run."""
        if self.heartbeat is not None:
            self.heartbeat.doing(what)
