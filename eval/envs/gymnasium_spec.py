"""A Gymnasium environment by its id or class as an environment of this package, with nothing else.

It is made once to find out what an :class:`~dynaflip.eval.envs.base.EnvironmentSpec` says::

    gym:FetchReach-v4                       an id that Gymnasium or an installed package registers
    gym:my_module:MyReach-v0                the same, after importing my_module
    gym:FetchReach-v4,FetchPush-v4          several ids of one robot: the tasks
    class:my_module:MyReach                 a class of gymnasium.Env
    gym:FetchReach-v4[proprioception=observation,success=is_success]       with options

Options are those of :func:`gymnasium_environment`, with ``+`` between several names; every other
``KEY=VALUE`` is a keyword argument of the environment. A file of the user's own can say more
(several tasks of one class, several phrasings): ``ENVIRONMENT = gymnasium_environment(…)``, named
``class:my_module:ENVIRONMENT``.

Of the environment's own object are used, beside what Gymnasium asks for:

- ``info["success"]`` or ``info["is_success"]`` after every step;
- ``metadata``: ``render_fps``, and if they are there ``max_episode_steps`` and ``caption``;
- ``expert_action(observation, info)``, if it has it: the scripted expert, in its own units;
- ``privileged(observation, info)``, if it has it: labels for probes (:meth:`Env.privileged`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import Env, EnvironmentSpec
from dynaflip.eval.envs.gymnasium_env import GymnasiumEnv
from dynaflip.eval.envs.gymnasium_inspection import (
    Inspection,
    action_range,
    inspect,
    versions_of,
)
from dynaflip.eval.perturbations import IMAGE_SPACE_FACTORS

GYMNASIUM = "gym:"
OPTIONS = ("success", "proprioception", "control_hz", "horizon_steps", "caption", "camera")

Maker = str | Callable[..., Any]  # Gymnasium's id, or a class


@dataclass(frozen=True)
class GymnasiumTask:
    """A task: Gymnasium's id or class, and the keyword arguments of its environment."""

    made_by: Maker
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def make(self, setting: str, horizon_steps: int | None = None) -> Any:
        """Gymnasium's environment, which renders images.

        Raises:
            UserError: it cannot be made; the first line says why.
        """
        gymnasium = _import_gymnasium(setting)
        # MuJoCo and pygame choose how to render when they are imported; there is no display.
        for name, value in _rendering().items():
            os.environ.setdefault(name, value)
        failures = (gymnasium.error.Error, ImportError, OSError, TypeError, ValueError)
        try:
            if not isinstance(self.made_by, str):
                return self.made_by(render_mode="rgb_array", **self.arguments)
            limit = {} if horizon_steps is None else {"max_episode_steps": horizon_steps}
            return gymnasium.make(
                self.made_by,
                render_mode="rgb_array",
                disable_env_checker=True,
                **limit,
                **self.arguments,
            )
        except failures as error:
            line = (str(error) or type(error).__name__).splitlines()[0]
            if self.arguments and isinstance(error, TypeError):
                line += f"; options that are no argument of its own are {', '.join(OPTIONS)}"
            raise UserError(f"{setting}: {_shown(self.made_by)} cannot be made: {line}") from None


def gymnasium_environment(
    made_by: Maker | Sequence[str],
    *,
    name: str | None = None,
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
    captions: Mapping[str, tuple[str, ...]] | None = None,
    success: str | None = None,
    proprioception: Sequence[str] | None = None,
    control_hz: float | None = None,
    horizon_steps: int | None = None,
    caption: str | None = None,
    camera: str = "render",
    factors: tuple[str, ...] = IMAGE_SPACE_FACTORS,
    setting: str = "environment",
    **arguments: Any,
) -> EnvironmentSpec:
    """Make the environment once and find out what is to be known of it.

    Args:
        made_by: Gymnasium's id, several of them, or a class of ``gymnasium.Env``.
        name: what to call it; by default its id or class.
        tasks: task → keyword arguments of the environment; by default one task an id, with none.
        captions: task → phrasings; by default the words of the task's name.
        success: key of ``info`` that says whether the task is solved after a step; by default
            ``success`` or ``is_success``, whichever is there.
        proprioception: keys of the observation, where it is a dictionary; ``("none",)`` for none.
            By default the whole observation where that is a vector.
        control_hz: actions a second; by default ``metadata["render_fps"]`` or the simulator's.
        horizon_steps: longest episode; by default Gymnasium's ``max_episode_steps``.
        caption: the phrasing of a single task.
        camera: what to call the view in recordings.
        factors: perturbation factors; by default those that change images.
        setting: where the environment was named, for errors.
        arguments: keyword arguments of the environment, of all tasks.

    Raises:
        UserError: it cannot be made or rendered, its actions are not continuous and bounded, it has
            no flag of success or no longest episode, or it does not follow its seed.
    """
    makers = _makers(made_by, tasks, arguments)
    first = next(iter(makers.values()))
    name = name or (made_by if isinstance(made_by, str) else _shown(first.made_by))
    given: dict[str, Any] = {
        "success": success,
        "proprioception": proprioception,
        "control_hz": control_hz,
        "horizon_steps": horizon_steps,
    }
    looked = {t: _look_into(one, f"{setting}: {name}", setting, given) for t, one in makers.items()}
    found = next(iter(looked.values())).inspection
    _check_alike(looked, f"{setting}: {name}")
    mujoco = any(one.mujoco for one in looked.values())
    origin = tuple(dict.fromkeys(entry for one in looked.values() for entry in one.versions))
    notes = dict.fromkeys(line for one in looked.values() for line in one.inspection.notes)

    action_width = len(found.actions.low)
    return EnvironmentSpec(
        name=name,
        make=_opener(makers, horizon_steps, found, name, setting),
        captions=_captions(list(makers), captions, caption, found.caption, f"{setting}: {name}"),
        action_names=tuple(f"action_{i}" for i in range(action_width)),
        proprioception_names=found.proprioception_names,
        control_hz=found.control_hz,
        horizon_steps=min(one.inspection.horizon_steps for one in looked.values()),
        camera=camera,
        factors=factors,
        noise_dims=action_width,
        worker_variables=_rendering if mujoco else _without_display,
        origin=origin,
        notes=tuple(f"{name} {line}" for line in notes),
        action_bounds=found.actions.bounds(),
        own_image_px=found.image_px,
    )


class _Look(NamedTuple):
    """Findings about a task's environment."""

    inspection: Inspection
    versions: tuple[str, ...]
    mujoco: bool


def _look_into(task: GymnasiumTask, where: str, setting: str, given: Mapping[str, Any]) -> _Look:
    raw = task.make(setting, given["horizon_steps"])
    from gymnasium.error import Error as GymnasiumError

    try:
        found = inspect(raw, where, **given)
        mujoco = hasattr(raw.unwrapped, "model") and "mujoco" in sys.modules
        return _Look(found, versions_of(task.made_by, raw, mujoco=mujoco), mujoco)
    except GymnasiumError as error:  # such as a package that only rendering needs
        raise UserError(f"{where} cannot be rendered: {error}") from None
    finally:
        raw.close()


def _check_alike(looked: Mapping[str, _Look], where: str) -> None:
    """Refuse tasks that one description does not fit.

    Raises:
        UserError: they differ in bounds of actions, proprioception or rate; names both.
    """
    (first, mine), *others = looked.items()
    for task, other in others:
        for what, read in (
            ("actions from and to", lambda one: one.actions.bounds()),
            ("proprioception", lambda one: one.proprioception_names),
            ("actions a second", lambda one: one.control_hz),
        ):
            ours, theirs = read(mine.inspection), read(other.inspection)
            if ours != theirs:
                raise UserError(
                    f"{where}: tasks must be alike, and {first} has {what} {ours}, {task} {theirs}"
                )


def _captions(
    tasks: Sequence[str],
    phrasings: Mapping[str, tuple[str, ...]] | None,
    single: str | None,
    of_metadata: str | None,
    where: str,
) -> dict[str, tuple[str, ...]]:
    """Phrasings of every task: those given, else the words of its name.

    Raises:
        UserError: phrasings of a task that there is none of, or one for several tasks.
    """
    words = single or of_metadata
    given = dict(phrasings or {}) or ({tasks[0]: (words,)} if words else {})
    if {*given} - {*tasks} or (single and len(tasks) > 1):
        raise UserError(f"{where} has the tasks {', '.join(tasks)}; caption those")
    return {task: given.get(task) or (_words(task),) for task in tasks}


def _opener(
    makers: Mapping[str, GymnasiumTask],
    horizon_steps: int | None,
    found: Inspection,
    name: str,
    setting: str,
) -> Callable[..., Env]:
    """The function that opens one task, rendered at a size."""

    def make(task: str, *, height_px: int, width_px: int, camera: str) -> Env:
        one = makers[task].make(setting, horizon_steps)
        own = action_range(one, f"{setting}: {name}")
        if len(own.low) != len(found.actions.low):
            raise UserError(
                f"{setting}: the actions of {task} have {len(own.low)} entries, those of "
                f"{next(iter(makers))} {len(found.actions.low)}; a policy needs one width"
            )
        return GymnasiumEnv(
            one,
            task,
            height_px=height_px,
            width_px=width_px,
            camera=camera,
            success=found.success,
            proprioception=found.proprioception,
            expert=getattr(one.unwrapped, "expert_action", None),
            privileged=getattr(one.unwrapped, "privileged", None),
            actions=own,
            resize=True,
        )

    return make


def split_options(name: str) -> tuple[str, dict[str, str]]:
    """``NAME[KEY=VALUE,…]`` as the name and its options.

    Raises:
        UserError: what stands in brackets are no such pairs.
    """
    match = re.fullmatch(r"(?P<name>[^\[]*)\[(?P<options>.*)\]", name, re.DOTALL)
    if match is None:
        return name, {}
    options: dict[str, str] = {}
    for part in match["options"].split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (equals and key.isidentifier() and value) or key in options:
            raise UserError(f"environment: in {name} {part!r} must be KEY=VALUE, each key once")
        options[key] = value
    return match["name"], options


def from_name(name: str, found: Any, options: Mapping[str, str], setting: str) -> EnvironmentSpec:
    """The environment of a name in the settings.

    Args:
        name: all of it, which becomes the environment's.
        found: ids of ``gym:``, or the class.
        options: in brackets.
        setting: dotted name of the setting, for errors.

    Raises:
        UserError: as of :func:`gymnasium_environment`, or an option is no number where it must be.
    """
    import yaml

    in_a_file = {"name", "setting", "made_by", "tasks", "captions", "factors"}
    if taken := sorted(in_a_file & {*options}):
        raise UserError(
            f"{setting}: in {name} {taken[0]} cannot be given in brackets; describe the "
            "environment in a file, with gymnasium_environment(...)"
        )
    chosen: dict[str, Any] = {}
    for key, text in options.items():
        chosen[key] = yaml.safe_load(text)
        if key == "proprioception":
            chosen[key] = text.split("+")
        elif key in ("control_hz", "horizon_steps"):
            if not isinstance(chosen[key], int | float) or chosen[key] <= 0:
                raise UserError(f"{setting}: in {name} {key} must be a number above 0, not {text}")
        elif key in OPTIONS:
            chosen[key] = text
    return gymnasium_environment(found, name=name, setting=setting, **chosen)


def is_gymnasium_class(found: Any) -> bool:
    """True if an object is a class of ``gymnasium.Env``; imports nothing."""
    gymnasium = sys.modules.get("gymnasium")
    return isinstance(found, type) and gymnasium is not None and issubclass(found, gymnasium.Env)


def _import_gymnasium(setting: str) -> Any:
    try:
        import gymnasium
    except ImportError:
        raise UserError(
            f"{setting}: Gymnasium is not installed; run `pip install gymnasium`"
        ) from None
    return gymnasium


def _makers(
    made_by: Maker | Sequence[str],
    tasks: Mapping[str, Mapping[str, Any]] | None,
    arguments: Mapping[str, Any],
) -> dict[str, GymnasiumTask]:
    if isinstance(made_by, str) or callable(made_by):
        ids: list[Maker] = [made_by]
    else:
        ids = list(made_by)
    if tasks:
        assert len(ids) == 1, "tasks are of one id or class"
        return {t: GymnasiumTask(ids[0], {**arguments, **own}) for t, own in tasks.items()}
    named = {_shown(one).rpartition(":")[2].replace("/", "-"): one for one in ids}
    return {task: GymnasiumTask(one, arguments) for task, one in named.items()}


def _shown(made_by: Maker) -> str:
    return made_by if isinstance(made_by, str) else getattr(made_by, "__name__", str(made_by))


def _words(task: str) -> str:
    """``fetch pick and place`` of ``FetchPickAndPlace-v4``."""
    plain = re.sub(r"[-_]v\d+$", "", task)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-_]", " ", plain).lower()


def _rendering() -> dict[str, str]:
    backend = os.environ.get("MUJOCO_GL", "egl")
    platform = os.environ.get("PYOPENGL_PLATFORM", backend)
    return {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": platform, **_without_display()}


def _without_display() -> dict[str, str]:
    return {"SDL_VIDEODRIVER": os.environ.get("SDL_VIDEODRIVER", "dummy")}
