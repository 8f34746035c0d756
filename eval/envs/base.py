"""The contract of a simulated environment: what it offers, and what is known of it in advance.

An environment (a simulator with its tasks) has two halves:

- :class:`EnvironmentSpec`, plain data that is read *without importing the simulator*: tasks and
  their captions, task sets, sizes of actions and proprioception, control rate, longest episode,
  camera, perturbation factors. Settings are validated against it and ``--help`` stays quick.
- :class:`Env`, one task under one camera, which renders and moves. ``spec.open(task, …)`` makes it.

Adding an environment is one file with both (and the list of its tasks)::

    class Reach(Env):
        def __init__(self, task, *, height_px, width_px, camera): ...
        def reset(self, seed): ...
        def step(self, action): ...
        def render(self): ...
        def proprioception(self): ...

    ENVIRONMENT = EnvironmentSpec(
        name="reach", make=Reach, captions={"reach": ("reach the red point",)},
        action_names=("x", "y"), proprioception_names=("x", "y"),
        control_hz=20.0, horizon_steps=100, camera="top",
    )

It is named in the settings (``environment``) by ``class:MODULE:ENVIRONMENT``, by an entry point of
the group ``dynaflip.environment``, or, inside this package, by a file ``eval/envs/NAME_tasks.py``
that holds ``ENVIRONMENT``: see :mod:`dynaflip.eval.envs.registry`. Of a Gymnasium environment
both halves are made by :mod:`dynaflip.eval.envs.gymnasium_spec`.

Only :meth:`Env.reset`, :meth:`Env.step`, :meth:`Env.render` and :meth:`Env.proprioception` are
needed to roll policies out. What else an environment can do (a scripted expert, depth, restoring a
state, segmentation) it does by overriding a method of :class:`.optional_methods.OptionalMethods`;
the others refuse in one line.

Conventions: world frame in metres, the first three entries of proprioception are the end
effector's position where there is one; camera frames are OpenCV's (x right, y down, z forward);
actions lie in [-1, 1]. Legend of shapes: H, W image size in pixels, A action width, P width of
proprioception.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.eval import perturbations
from dynaflip.eval.envs.optional_methods import OptionalMethods
from dynaflip.plugins import load_object

if TYPE_CHECKING:
    import numpy as np

# Software rendering and torch would each start a thread a core in every worker.
_ONE_THREAD = {"LP_NUM_THREADS": "0", "OMP_NUM_THREADS": "1"}
USUAL_RENDERER = "egl"


@dataclass(frozen=True)
class EnvironmentSpec:
    """Description of an environment, read without importing its simulator."""

    name: str
    """As in the settings, such as the file's or the entry point's name."""

    make: Callable[..., Env] | str
    """``make(task, height_px=…, width_px=…, camera=…)`` opens one task: the class, or
    ``MODULE:CLASS`` where importing it imports the simulator."""

    captions: Mapping[str, tuple[str, ...]]
    """Every task by its id, with phrasings of it that mean the same; the first is used where one
    is enough."""

    action_names: tuple[str, ...]
    """One name an entry of the action, all of them in [-1, 1]."""

    proprioception_names: tuple[str, ...]
    """One name an entry of what the robot knows of itself; none where it knows nothing."""

    control_hz: float
    """Actions a second."""

    horizon_steps: int
    """The longest episode that the simulator allows, in control steps."""

    camera: str
    """Camera that is used where none is named."""

    factors: tuple[str, ...] = ()
    """Built-in perturbation factors that it can show (keys of the table of factors)."""

    task_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Named sets of tasks."""

    default_tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What a job takes where its setting names no tasks: ``collect``, ``evaluate``, ``sweep`` and
    ``ablate`` → tasks or sets. A job that is not here takes every task."""

    default_steps: Mapping[str, int] = field(default_factory=dict)
    """A job's longest episode where its setting names none: ``collect`` and ``evaluate`` →
    control steps. A job that is not here takes :attr:`horizon_steps`."""

    promotion_tasks: tuple[str, ...] = ()
    """Tasks (or sets) that an evaluation must cover before an encoder may become champion on it;
    empty asks for every task."""

    task_suffix: str = ""
    """What users may leave out at the end of a task's id, such as a version."""

    noise_dims: int = 0
    """Leading entries of the action that demonstrations add exploration noise to."""

    has_depth: bool = False
    """Whether it has metric depth with camera pose and intrinsics (:meth:`Env.rgb_and_depth`)."""

    robot: str = "unknown"
    """The robot's name in recorded data sets."""

    packages: tuple[str, ...] = ()
    """Installed distributions whose versions decide what is simulated."""

    revision: int = 0
    """Raised when the environment's own code changes what is simulated or rendered."""

    origin: tuple[str, ...] = ()
    """Further entries of :meth:`versions`, such as the digest of a class's source; the registry
    fills them in."""

    notes: tuple[str, ...] = ()
    """What a user must know of it, a line each: jobs print them once."""

    action_bounds: tuple[tuple[float, float], ...] = ()
    """(low, high) of each entry in the simulator's own units, to which [-1, 1] is rescaled; empty
    where its own are [-1, 1]. Recordings made elsewhere hold actions in these units."""

    own_image_px: tuple[int, int] | None = None
    """(width, height) that the simulator renders at, where images are resized to the size asked
    for; none where it renders at any size."""

    install_hint: str = ""
    """What to run where a package is missing."""

    worker_variables: Callable[[], dict[str, str]] = dict
    """Environment variables that worker processes need before the simulator is imported."""

    default: bool = False
    """Whether settings that name no environment mean this one (one built-in environment only)."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Ids of all tasks."""
        return tuple(self.captions)

    @property
    def action_dim(self) -> int:
        """A, the width of an action."""
        return len(self.action_names)

    @property
    def proprioception_dim(self) -> int:
        """P, the width of proprioception."""
        return len(self.proprioception_names)

    def caption(self, task: str) -> str:
        """A task in words, its first phrasing."""
        return self.captions[task][0]

    def tasks_of(self, names: Sequence[str], setting: str = "tasks") -> tuple[str, ...]:
        """Task ids for a list of sets and tasks, each once, in the order given.

        Args:
            names: of :attr:`task_sets` or of single tasks, with or without :attr:`task_suffix`.
            setting: dotted name of the setting that holds them.

        Raises:
            UserError: a name is neither, or there is none.
        """
        chosen: list[str] = []
        sets = ", ".join(self.task_sets)
        for name in names:
            full = name if name.endswith(self.task_suffix) else name + self.task_suffix
            if name not in self.task_sets and full not in self.captions:
                near = difflib.get_close_matches(full, [*self.task_sets, *self.captions], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(
                    f"{setting}: {self.name} has no task or set {name}{hint}; "
                    f"sets: {sets or 'none'}; tasks: {', '.join(self.tasks)}"
                )
            chosen += [task for task in self.task_sets.get(name, (full,)) if task not in chosen]
        if not chosen:
            raise UserError(
                f"{setting}: name at least one task{f' or set ({sets})' if sets else ''}"
            )
        return tuple(chosen)

    def tasks_for(self, job: str) -> tuple[str, ...]:
        """A job's default tasks or sets: see :attr:`default_tasks`."""
        return self.default_tasks.get(job, self.tasks)

    def steps_for(self, job: str) -> int:
        """A job's longest episode by default, in control steps: see :attr:`default_steps`."""
        return self.default_steps.get(job, self.horizon_steps)

    def tasks_to_promote_on(self) -> tuple[str, ...]:
        """Task ids that an evaluation must cover before its encoder may become champion."""
        return self.tasks_of(self.promotion_tasks or self.tasks)

    def check_factors(self, names: Sequence[str], setting: str = "factors") -> None:
        """Refuse factors that there are none of, or that this environment cannot show.

        Raises:
            UserError: names the factor, and those that can be had.
        """
        for name in names:
            if name in perturbations.BUILT_IN_FACTORS and name not in self.factors:
                raise UserError(
                    f"{setting}: {self.name} cannot show the factor {name}; "
                    f"it has: {', '.join(self.factors) or 'none'}"
                )
            perturbations.FACTOR_TABLE.check(name, setting)

    def version(self) -> str:
        """Version of what is simulated: packages and revision; equal versions are comparable.

        Raises:
            UserError: one of the packages is not installed.
        """
        return ", ".join(self.versions()) or self.name

    def versions(self) -> list[str]:
        """:meth:`version` entry by entry: ``NAME VERSION``, and what else decides the pixels.

        Raises:
            UserError: one of the packages is not installed.
        """
        try:
            versions = [f"{package} {version(package)}" for package in self.packages]
        except PackageNotFoundError as error:
            raise UserError(
                f"environment: {self.name} needs {error.name}; {self.install_hint}"
            ) from None
        if self.revision:
            versions.append(f"{self.name} revision {self.revision}")
        renderer = self.renderer()
        if renderer not in ("", USUAL_RENDERER):  # the usual one went without saying
            versions.append(f"rendered by {renderer}")
        if {*self.factors} & {*perturbations.IMAGE_SPACE_FACTORS}:
            from dynaflip.eval.image_perturbations import IMAGE_VERSION

            versions.append(f"image factors {IMAGE_VERSION}")
        return [*versions, *self.origin]

    def renderer(self) -> str:
        """Backend that worker processes render with; empty where there is none to choose."""
        return self.worker_variables().get("MUJOCO_GL", "")

    def worker_environment(self) -> dict[str, str]:
        """Environment variables of a worker process that runs this environment on one CPU."""
        return {**self.worker_variables(), **_ONE_THREAD}

    def open(
        self, task: str, *, height_px: int = 160, width_px: int = 160, camera: str | None = None
    ) -> Env:
        """Open one task, rendered at a size.

        Args:
            task: its id.
            height_px, width_px: size of every image, even.
            camera: by default :attr:`camera`.

        Raises:
            UserError: no such task or camera, the simulator is not installed or cannot render.
        """
        make = load_object(self.make) if isinstance(self.make, str) else self.make
        env: Env = make(task, height_px=height_px, width_px=width_px, camera=camera or self.camera)
        env.spec = self
        return env


@dataclass(frozen=True)
class StepResult:
    """Result of one action: observation, reward, success and end of the episode."""

    observation: Any
    """The simulator's own state vector, privileged: for the expert and for agents on state."""

    reward: float
    """The environment's own reward; 0 or 1 for success where it has none."""

    success: bool
    """Whether the task is solved at this step."""

    ended: bool = False
    """Whether the simulator ended the episode (a failure or its own time limit)."""


class Env(OptionalMethods, ABC):
    """One task under one camera.

    Attributes:
        spec: what is known of it in advance.
        task: its id.
        height_px, width_px: size of every image.
        camera: the camera's name.
        image_filters: functions (H, W, 3) uint8 → the same, applied to every image in turn; a
            perturbation factor may append one, and :meth:`restore` empties the list.
    """

    spec: EnvironmentSpec

    def __init__(self, task: str, *, height_px: int, width_px: int, camera: str) -> None:
        self.task, self.camera = task, camera
        self.height_px, self.width_px = height_px, width_px
        self.image_filters: list[Callable[[np.ndarray], np.ndarray]] = []
        self._checked_factors: set[str] = set()

    # What every environment has -----------------------------------------------------------

    @abstractmethod
    def reset(self, seed: int) -> Any:
        """Begin an episode; equal seeds give equal scenes. Returns the privileged observation."""

    @abstractmethod
    def step(self, action: np.ndarray) -> StepResult:
        """Act for one control step: (A,) in [-1, 1]."""

    @abstractmethod
    def render(self) -> np.ndarray:
        """The camera's image now: (H, W, 3) uint8. Callers use :meth:`rgb`."""

    @abstractmethod
    def proprioception(self) -> np.ndarray:
        """Proprioception of a real robot: (P,) float32."""

    def close(self) -> None:
        """Free what the simulator holds; the environment cannot be used afterwards."""

    # Images and perturbation --------------------------------------------------------------

    def rgb(self) -> np.ndarray:
        """The image with its filters: (H, W, 3) uint8."""
        return self.filtered(self.render())

    def filtered(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 through :attr:`image_filters`."""
        for image_filter in self.image_filters:
            image = image_filter(image)
        return image

    def apply(self, values: Mapping[str, Any]) -> None:
        """Perturb the appearance, and nothing else; what was applied before is taken back first.

        Args:
            values: factor → value, as :func:`dynaflip.eval.perturbations.sample` draws them.

        Raises:
            UserError: an unknown factor, or one from outside that changes no pixel.
        """
        self.spec.check_factors(tuple(values))
        for name in values:
            known = {*perturbations.BUILT_IN_FACTORS, *self._checked_factors}
            if name not in known:
                self._checked_factors.add(name)
                perturbations.check_changes_pixels(self, name)
        self.restore()
        for name, value in values.items():
            perturbations.factor(name).apply(self, value)
        self.appearance_changed()

    def restore(self) -> None:
        """Take all perturbation back: images are bit for bit what they were."""
        self.image_filters.clear()
        self.restore_appearance()

    def restore_appearance(self) -> None:
        """Undo what factors changed in the simulator (not :attr:`image_filters`)."""

    def appearance_changed(self) -> None:
        """Bring what factors changed to the renderer; called once after all of them."""
