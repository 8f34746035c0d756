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
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import Env, EnvironmentSpec
from dynaflip.eval.envs.gymnasium_env import ActionRange, GymnasiumEnv, Info
from dynaflip.eval.perturbations import IMAGE_SPACE_FACTORS

GYMNASIUM = "gym:"
OPTIONS = ("success", "proprioception", "control_hz", "horizon_steps", "caption", "camera")
SUCCESS_FLAGS = ("success", "is_success")
_NO_PROPRIOCEPTION = "none"

Maker = str | Callable[..., Any]  # Gymnasium's id, or a class
Reader = Callable[[Any, Info], np.ndarray]


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
    raw = first.make(setting, horizon_steps)
    from gymnasium.error import Error as GymnasiumError

    try:
        actions = _action_range(raw, f"{setting}: {name}")
        names, read = _proprioception(raw.observation_space, proprioception, f"{setting}: {name}")
        solved = _success_reader(success, f"{setting}: {name}")
        own_px, notes = _check_behaviour(raw, solved, actions, f"{setting}: {name}")
        hz, assumed = _control_hz(raw, control_hz)
        horizon = horizon_steps or _horizon(raw, f"{setting}: {name}")
        words = caption or raw.metadata.get("caption")
        given = dict(captions or {}) or ({next(iter(makers)): (words,)} if words else {})
        unknown = [task for task in given if task not in makers]
        if unknown or (caption and len(makers) > 1):
            raise UserError(f"{setting}: {name} has the tasks {', '.join(makers)}; caption those")
        mujoco = hasattr(raw.unwrapped, "model") and "mujoco" in sys.modules
        origin = _origin(first.made_by, raw, mujoco=mujoco)
    except GymnasiumError as error:  # such as a package that only rendering needs
        raise UserError(f"{setting}: {name} cannot be rendered: {error}") from None
    finally:
        raw.close()

    make = _opener(makers, horizon_steps, actions, solved, read, name, setting)
    return EnvironmentSpec(
        name=name,
        make=make,
        captions={task: given.get(task) or (_words(task),) for task in makers},
        action_names=tuple(f"action_{i}" for i in range(len(actions.low))),
        proprioception_names=names,
        control_hz=hz,
        horizon_steps=horizon,
        camera=camera,
        factors=factors,
        noise_dims=len(actions.low),
        worker_variables=_rendering if mujoco else _without_display,
        origin=origin,
        notes=tuple(f"{name} {line}" for line in [*notes, *assumed]),
        action_bounds=tuple(zip(actions.low.tolist(), actions.high.tolist(), strict=True)),
        own_image_px=own_px,
    )


def _opener(
    makers: Mapping[str, GymnasiumTask],
    horizon_steps: int | None,
    actions: ActionRange,
    solved: Callable[[Info], bool],
    read: Reader,
    name: str,
    setting: str,
) -> Callable[..., Env]:
    """The function that opens one task, rendered at a size."""

    def make(task: str, *, height_px: int, width_px: int, camera: str) -> Env:
        one = makers[task].make(setting, horizon_steps)
        own = _action_range(one, f"{setting}: {name}")
        if len(own.low) != len(actions.low):
            raise UserError(
                f"{setting}: the actions of {task} have {len(own.low)} entries, those of "
                f"{next(iter(makers))} {len(actions.low)}; a policy needs one width"
            )
        return GymnasiumEnv(
            one,
            task,
            height_px=height_px,
            width_px=width_px,
            camera=camera,
            success=solved,
            proprioception=read,
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
    """Whether an object is a class of ``gymnasium.Env``; imports nothing."""
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


def _action_range(raw: Any, where: str) -> ActionRange:
    """The box of actions.

    Raises:
        UserError: actions are not continuous, or have no bounds.
    """
    space = raw.action_space
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None or not np.issubdtype(space.dtype, np.floating):
        raise UserError(
            f"{where} has the action space {space}; policies give continuous actions, so it must "
            "be a Box of floats"
        )
    low, high = np.ravel(low).astype(np.float64), np.ravel(high).astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise UserError(
            f"{where} has actions from {low.min():g} to {high.max():g}; they need finite bounds, "
            "the lower below the upper, to be rescaled to [-1, 1]: wrap it in one that has them"
        )
    return ActionRange(low, high, tuple(space.shape), space.dtype)


def _proprioception(
    space: Any, keys: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...], Reader]:
    """Names of the entries, and what reads them.

    Raises:
        UserError: keys that the observation has not, or a dictionary without keys that are chosen.
    """
    parts: Mapping[str, Any] | None = getattr(space, "spaces", None)
    if isinstance(parts, Mapping):
        vectors = {k: int(np.prod(s.shape)) for k, s in parts.items() if _is_vector(s)}
        listed = ", ".join(f"{key} ({width})" for key, width in vectors.items()) or "no vectors"
        if keys is None:
            raise UserError(
                f"{where} observes {listed}; say what the robot knows of itself, such as "
                f"[proprioception={next(iter(vectors), _NO_PROPRIOCEPTION)}], or "
                f"[proprioception={_NO_PROPRIOCEPTION}]"
            )
    else:
        vectors, listed = {}, "no dictionary"
    if keys is not None and list(keys) == [_NO_PROPRIOCEPTION]:
        return (), lambda observation, info: np.zeros(0, np.float32)
    if keys is not None:
        if missing := [key for key in keys if key not in vectors]:
            raise UserError(f"{where} observes {listed}, and so no vector {', '.join(missing)}")
        names = tuple(f"{key}_{i}" for key in keys for i in range(vectors[key]))
        return names, lambda observation, info: np.concatenate(
            [np.ravel(observation[key]) for key in keys]
        )
    if not _is_vector(space):
        return (), lambda observation, info: np.zeros(0, np.float32)
    names = tuple(f"observation_{i}" for i in range(int(np.prod(space.shape))))
    return names, lambda observation, info: np.ravel(observation)


def _is_vector(space: Any) -> bool:
    return hasattr(space, "low") and len(space.shape) == 1


def _success_reader(flag: str | None, where: str) -> Callable[[Info], bool]:
    flags = SUCCESS_FLAGS if flag is None else (flag,)

    def solved(info: Info) -> bool:
        for name in flags:
            if name in info:
                return bool(np.all(info[name]))
        raise UserError(
            f"{where} has no {' and no '.join(flags)} in its info after a step, which holds "
            f"{', '.join(map(str, info)) or 'nothing'}; name the flag of success as [success=NAME]"
        )

    return solved


def _check_behaviour(
    raw: Any, solved: Callable[[Info], bool], actions: ActionRange, where: str
) -> tuple[tuple[int, int], list[str]]:
    """Size (width, height) of its images, and what a user must know, in words, of two episodes.

    Equal seeds must give equal images.

    Raises:
        UserError: they differ, nothing is rendered, or there is no flag of success.
    """

    def begin(seed: int) -> list[np.ndarray]:
        raw.reset(seed=seed)
        images = [_image(raw, where)]
        solved(raw.step(actions.to_own_units(np.zeros(len(actions.low))))[4])
        return [*images, _image(raw, where)]

    first, again, other = begin(0), begin(0), begin(1)
    for number, (one, two) in enumerate(zip(first, again, strict=True)):
        if one.shape != two.shape or (one != two).any():
            raise UserError(
                f"{where} shows other images after {number} steps of two episodes with the same "
                "seed; all its randomness must come from reset(seed=…), or no two encoders can "
                "be compared on the same episodes"
            )
    height, width = first[0].shape[:2]
    notes = [f"renders {width}x{height}; images are resized to the size asked for"]
    if (first[0] == other[0]).all():
        notes.append("shows the same first image for two seeds: its episodes may all be one")
    return (width, height), notes


def _image(raw: Any, where: str) -> np.ndarray:
    image = raw.render()
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3):
        kind = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else image
        raise UserError(
            f"{where} renders {kind}, not (H, W, 3) uint8; it needs the render mode rgb_array"
        )
    return image.copy()


def _control_hz(raw: Any, asked: float | None) -> tuple[float, list[str]]:
    rate = asked or raw.metadata.get("render_fps")
    if not rate and getattr(raw.unwrapped, "dt", None):
        rate = 1 / raw.unwrapped.dt
    if rate:
        return float(rate), []
    return 20.0, ["has no render_fps: 20 actions a second are assumed ([control_hz=…])"]


def _horizon(raw: Any, where: str) -> int:
    steps = getattr(raw.spec, "max_episode_steps", None) or raw.metadata.get("max_episode_steps")
    if not steps:
        raise UserError(
            f"{where} has no longest episode; give it as [horizon_steps=N], or in its metadata as "
            "max_episode_steps"
        )
    return int(steps)


def _origin(made_by: Maker, raw: Any, *, mujoco: bool) -> tuple[str, ...]:
    """Versions of all that decides what is simulated and rendered."""
    from dynaflip.eval.envs.source_digest import of_module

    names = ["gymnasium", *(["mujoco"] if mujoco else [])]
    home = type(raw.unwrapped).__module__
    entries = [f"{name} {version(name)}" for name in names]
    if not home.startswith("gymnasium."):
        entries.append(_installed(home.partition(".")[0]) or of_module(home))
    return (*entries, made_by) if isinstance(made_by, str) else tuple(entries)


def _installed(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


def _rendering() -> dict[str, str]:
    backend = os.environ.get("MUJOCO_GL", "egl")
    platform = os.environ.get("PYOPENGL_PLATFORM", backend)
    return {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": platform, **_without_display()}


def _without_display() -> dict[str, str]:
    return {"SDL_VIDEODRIVER": os.environ.get("SDL_VIDEODRIVER", "dummy")}
