"""Settings of ``jobs/collect.py`` and their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from dynaflip.checks import at_least, share, within
from dynaflip.eval.envs.metaworld_tasks import KNOWN_TASKS

# Scripted experts that solve nearly every layout, with motion that the camera sees.
DEFAULT_TASKS = (
    "assembly-v3",
    "bin-picking-v3",
    "button-press-topdown-v3",
    "drawer-open-v3",
    "hammer-v3",
    "button-press-v3",
    "door-open-v3",
    "drawer-close-v3",
    "faucet-open-v3",
    "plate-slide-v3",
    "window-close-v3",
    "window-open-v3",
)


@dataclass(frozen=True)
class CollectConfig:
    """Scripted demonstrations of Meta-World.

    There is no setting for the split: whatever is collected here may be trained
    on, so layouts and factors come from ``pretrain``.
    """

    tasks: tuple[str, ...] = DEFAULT_TASKS
    episodes_per_task: int = 12
    """Episodes of each task."""

    image_px: int = 160
    """Height and width of the images."""

    perturbed_share: float = 0.5
    """Share of the episodes whose look is perturbed, within the pretraining ranges."""

    moving_camera_share: float = 0.2
    """Share of the episodes with a moving camera, within the same range of the camera."""

    action_noise: float = 0.1
    """Standard deviation of the noise on the expert's hand velocity (actions are in [-1, 1])."""

    steps_after_success: int = 10
    """An episode ends this many steps after it is first solved, …"""

    max_steps: int = 200
    """… and after this many at the latest."""

    seed: int = 0
    """Episode i's layout, phrasing and look depend on this and on i alone."""

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in KNOWN_TASKS]
        if unknown:
            raise ValueError(f"tasks: no captions for {', '.join(unknown)}; known: {KNOWN_TASKS}")
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError("tasks: must name at least one task, each once")
        at_least(self, 1, "episodes_per_task")
        if self.image_px < 32 or self.image_px % 2:
            raise ValueError(f"image_px: must be even and at least 32, got {self.image_px}")
        share(self, "perturbed_share", "moving_camera_share", "action_noise")
        within(self, 2, 500, "max_steps")
        at_least(self, 0, "steps_after_success")
