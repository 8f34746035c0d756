"""Find out of a Gymnasium environment, once it is made, what its description needs to say.

Everything that no fair comparison of encoders could use is refused here: actions without bounds, no
flag of success, no longest episode, images that do not follow the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.envs.gymnasium_env import ActionRange, Info

SUCCESS_FLAGS = ("success", "is_success")
_NO_PROPRIOCEPTION = "none"

Reader = Callable[[Any, Info], np.ndarray]


@dataclass(frozen=True)
class Inspection:
    """Findings about an environment."""

    actions: ActionRange
    proprioception_names: tuple[str, ...]
    proprioception: Reader  # (observation, info) → (P,)
    success: Callable[[Info], bool]  # info of a step → whether the task is solved
    control_hz: float
    horizon_steps: int
    caption: str | None  # of its metadata
    image_px: tuple[int, int]  # (width, height) that it renders at
    notes: tuple[str, ...]  # what a user must know, a line each


def inspect(
    raw: Any,
    where: str,
    *,
    success: str | None,
    proprioception: Sequence[str] | None,
    control_hz: float | None,
    horizon_steps: int | None,
) -> Inspection:
    """Inspect an environment that is made; three short episodes are begun.

    Args:
        raw: the environment, with ``render_mode="rgb_array"``.
        where: setting and name, for errors.
        success, proprioception, control_hz, horizon_steps: as of
            :func:`~dynaflip.eval.envs.gymnasium_spec.gymnasium_environment`.

    Raises:
        UserError: it cannot serve as an environment; says why.
    """
    actions = action_range(raw, where)
    names, read = _proprioception(raw.observation_space, proprioception, where)
    solved = _success_reader(success, where)
    image_px, notes = _check_behaviour(raw, solved, actions, where)
    hz, assumed = _control_hz(raw, control_hz)
    return Inspection(
        actions=actions,
        proprioception_names=names,
        proprioception=read,
        success=solved,
        control_hz=hz,
        horizon_steps=horizon_steps or _horizon(raw, where),
        caption=raw.metadata.get("caption"),
        image_px=image_px,
        notes=(*notes, *assumed),
    )


def versions_of(made_by: Any, raw: Any, *, mujoco: bool) -> tuple[str, ...]:
    """Versions of all that decides what is simulated and rendered."""
    from dynaflip.source_digest import of_module

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


def action_range(raw: Any, where: str) -> ActionRange:
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
            f"{', '.join(map(str, info)) or 'nothing'}; let step() put one there, "
            "or name the flag of success as [success=NAME]"
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
