"""What an evaluation job gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynaflip.eval.rollout import GoalDistance


@dataclass(frozen=True)
class JobResult:
    """Results of a job's episodes in the order of its starts."""

    success_ever: list[bool]
    success_last: list[bool]
    steps: list[int]
    seconds: float
    animation: bytes | None  # GIF of the first episode
    goal: list[GoalDistance | None] = field(default_factory=list)  # empty: not recorded
    waited_s: float = 0.0  # of these seconds, for images that encoder actors had
