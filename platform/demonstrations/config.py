"""Settings of ``jobs/collect.py`` and their defaults."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

from dynaflip.checks import at_least, share, within
from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment


@dataclass(frozen=True)
class CollectConfig:
    """Scripted demonstrations in a simulator.

    There is no setting for the split: whatever is collected here may be trained
    on, so layouts and factors come from ``pretrain``.
    """

    SHORT: ClassVar[dict[str, tuple[str, ...]]] = {"env": ("environment",)}

    environment: str = DEFAULT_ENVIRONMENT
    """The simulator: a built-in one, an installed package's, gym:ID (any Gymnasium environment), or
    class:MODULE:NAME. Short: --env."""

    tasks: tuple[str, ...] = ()
    """Names of tasks or sets of tasks; empty takes those that the environment recommends."""

    episodes_per_task: int = 12
    """Episodes of each task."""

    image_px: int = 160
    """Height and width of the images."""

    perturbed_share: float | None = None
    """Share of the episodes whose appearance is perturbed, within the pretraining ranges; none =
    0.5, or 0 in an environment without perturbation factors."""

    moving_camera_share: float | None = None
    """Share of the episodes with a moving camera, within the same range of the camera; none = 0.2,
    or 0 in an environment without a moving camera."""

    action_noise: float = 0.1
    """Standard deviation of the noise on the expert's motion (actions are in [-1, 1])."""

    steps_after_success: int = 10
    """Control steps that an episode goes on after it is first solved, within `max_steps`."""

    max_steps: int | None = None
    """Longest episode, in control steps; none = the environment's default (Meta-World: 200)."""

    seed: int = 0
    """Episode i's layout, phrasing and appearance depend on this and on i alone."""

    def __post_init__(self) -> None:
        spec = environment(self.environment)
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError("tasks: must name each task once")
        # Sets are resolved here: what was collected is recorded task by task.
        object.__setattr__(self, "tasks", spec.tasks_of(self.tasks or spec.tasks_for("collect")))
        self._fill_in(spec)
        at_least(self, 1, "episodes_per_task")
        if self.image_px < 32 or self.image_px % 2:
            raise ValueError(f"image_px: must be even and at least 32, got {self.image_px}")
        share(self, "perturbed_share", "moving_camera_share", "action_noise")
        within(self, 2, spec.horizon_steps, "max_steps")
        at_least(self, 0, "steps_after_success")
        if self.perturbed_share and not spec.factors:
            raise ValueError(
                f"perturbed_share: {spec.name} has no perturbation factors; set it to 0"
            )
        if self.moving_camera_share and "camera" not in spec.factors:
            raise ValueError(f"moving_camera_share: {spec.name} has no moving camera; set it to 0")

    def _fill_in(self, spec: EnvironmentSpec) -> None:
        """Put the environment's values where none is given, so that they are recorded."""
        defaults = {
            "perturbed_share": 0.5 if spec.factors else 0.0,
            "moving_camera_share": 0.2 if "camera" in spec.factors else 0.0,
            "max_steps": spec.steps_for("collect"),
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def recipe(self) -> dict[str, Any]:
        """The settings that decide the episodes: equal recipes give equal data sets.

        The default environment is left out, as it was before there were others.
        """
        values = dataclasses.asdict(self)
        if self.environment == DEFAULT_ENVIRONMENT:
            del values["environment"]
        return json.loads(json.dumps(values))
