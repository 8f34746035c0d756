"""A user's own recordings as demonstrations of the policies that are rolled out (``--source``).

For an environment without a scripted expert: recordings of a person or of another policy, as a
LeRobot data set. Before anything runs, all that the data set says of itself is compared with the
environment: width and range of actions, width of proprioception, rate, size and shape of images,
tasks. A contradiction is refused with both figures; what cannot be known is said in a note.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.eval.envs.gymnasium_env import resized
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.demonstration_set import (
    DemonstrationFrames,
    DemonstrationSet,
    OwnRecordings,
)
from dynaflip.platform.evaluation.unseen import tasks_in
from dynaflip.platform.lerobot.columns import ACTION, PROPRIOCEPTION, read_arrays
from dynaflip.platform.lerobot.episode import Episode
from dynaflip.platform.triplets.clips import Clip, ClipRejected, normalise_caption
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources.lerobot import IMAGES, LeRobotSource

# Raised when the same recordings give other demonstrations than before.
_VERSION = 1
_AS_RECORDED = 1 << 20  # px: longer than any short side, and images are never enlarged
_SAME_SHARE = 0.02  # rates and shapes that differ by this share are the same
_BEYOND = 0.01  # of an action's range that recordings may lie beyond it; that is cut off


@dataclass(frozen=True)
class _Recorded:
    """What a data set says of where it was made; empty where it says nothing."""

    environment: str
    version: str

    @property
    def own_units(self) -> bool:
        """True if its actions are in units of the simulator; those collected here are not."""
        return not self.environment


def own_demonstrations(config: RolloutConfig, tasks: Sequence[str]) -> dict[str, DemonstrationSet]:
    """The recordings of each task in ``config.source``.

    Raises:
        UserError: there is no such data set, it has too few recordings of a task, or it contradicts
            the environment.
    """
    spec = environment(config.environment)
    key = _camera(config, spec)
    source = LeRobotSource(SourceConfig(path=config.source, cameras=(key,)))
    recorded = _recorded_in(source)
    _check_images(config, spec, source, key, recorded)
    notes = [*_check_rate(spec, source), *_origin_notes(spec, source, recorded)]
    clips, left_out = _usable(source)
    notes += left_out
    by_task, named = _by_task(spec, source, tasks, clips, left_out)
    notes += named
    sets = {}
    for task in tasks:
        chosen = _enough(config, task, by_task[task])
        frames = sum(_check_columns(config, spec, source, clip, recorded) for clip in chosen)
        own = OwnRecordings(
            key,
            tuple(Episode.from_json(clip.extra).index for clip in chosen),
            frames,
            config.image_px,
            recorded.own_units,
            tuple(dict.fromkeys(notes)),
        )
        units = spec.action_bounds if recorded.own_units else ()
        recipe = [_VERSION, [clip.digest() for clip in chosen], config.image_px, units]
        digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
        sets[task] = DemonstrationSet(
            task, config.source, digest, config.demonstrations, config.environment, own=own
        )
    return sets


def read_own(shown: DemonstrationSet) -> DemonstrationFrames:
    """Decode every frame of a task's own recordings, resized as the environment's images are.

    Raises:
        UserError: one of them cannot be decoded.
    """
    own, spec = shown.own, environment(shown.environment)
    assert own is not None, "demonstrations that were collected are read elsewhere"
    source = LeRobotSource(SourceConfig(path=shown.folder, cameras=(own.camera,)))
    images, states, actions, episodes = [], [], [], []
    for clip in source.list_clips():
        if clip.episode_index not in own.episodes:
            continue
        recording = source.open(clip)
        try:
            number = len(recording.times_s())
            decoded = recording.read_frames(list(range(number)), _AS_RECORDED)
        except ClipRejected as error:
            raise _refused(shown.folder, clip, error.reason) from None
        state, action = _columns(spec, source, clip)
        if len(action) != number:
            reason = f"it has {len(action)} rows of actions and {number} images"
            raise _refused(shown.folder, clip, reason)
        images.append(np.stack([resized(one, own.image_px, own.image_px) for one in decoded]))
        states.append(state.astype(np.float32))
        actions.append(_in_unit(spec, action, own.own_units))
        episodes.append(np.full(number, clip.episode_index))
    return DemonstrationFrames(
        np.concatenate(images),
        np.concatenate(states),
        np.concatenate(actions),
        np.concatenate(episodes),
    )


def own_notes(sets: Sequence[DemonstrationSet]) -> list[str]:
    """Notes on the recordings for readers of the results, each line once."""
    lines = [line for shown in sets if shown.own is not None for line in shown.own.notes]
    return list(dict.fromkeys(lines))


def _camera(config: RolloutConfig, spec: EnvironmentSpec) -> str:
    """Key of the camera that policies see: the one asked for, or the only one.

    Raises:
        UserError: there are several, and none is called as the environment's.
    """
    source = LeRobotSource(SourceConfig(path=config.source))
    names = {key.removeprefix(IMAGES): key for key in source.cameras}
    if (wanted := config.source_camera) is not None:
        if wanted not in names and wanted not in names.values():
            raise UserError(
                f"source_camera: {config.source} has no camera {wanted}; it has "
                f"{', '.join(names) or 'none'}"
            )
        return names.get(wanted, wanted)
    if len(names) == 1:
        return next(iter(names.values()))
    if spec.camera in names:
        return names[spec.camera]
    raise UserError(
        f"source: {config.source} has the cameras {', '.join(names) or 'none'}, and none is called "
        f"{spec.camera} as in {spec.name}; say which one shows what policies will see with "
        "--source_camera"
    )


def _check_rate(spec: EnvironmentSpec, source: LeRobotSource) -> list[str]:
    """Refuse recordings of another rate; a note where none is stated."""
    fps = source.meta.fps
    if not fps:
        return [
            f"note: {source.name} states no fps; it is taken for {spec.control_hz:g}, the rate at "
            f"which {spec.name} acts"
        ]
    if abs(fps - spec.control_hz) > _SAME_SHARE * spec.control_hz:
        raise UserError(
            f"source: {source.root} was recorded at {fps:g} frames a second, and {spec.name} acts "
            f"{spec.control_hz:g} times a second: an action would last another time; resample the "
            "recordings, or give a Gymnasium environment its rate as [control_hz=N]"
        )
    return []


def _check_images(
    config: RolloutConfig,
    spec: EnvironmentSpec,
    source: LeRobotSource,
    key: str,
    recorded: _Recorded,
) -> None:
    """Refuse images of another shape than policies will see, or smaller ones."""
    try:
        width, height = source.meta.image_px(key)
    except ClipRejected as error:
        raise UserError(f"source: {source.root}: {error.reason}") from None
    side = config.image_px
    if min(width, height) < side:
        raise UserError(
            f"image_px: policies are to see {side} px, and {source.root} holds images of "
            f"{width}x{height}; set --image_px to {min(width, height) // 2 * 2} or less"
        )
    # What is collected here has been resized to squares already, as policies see it.
    rendered = spec.own_image_px if recorded.own_units else None
    own_width, own_height = rendered or (1, 1)
    if abs(width * own_height / (height * own_width) - 1) > _SAME_SHARE:
        shown = f"renders {own_width}x{own_height}" if rendered else "shows policies squares"
        raise UserError(
            f"source: {source.root} holds images of {width}x{height}, and {spec.name} {shown}: "
            "resized to the same square, everything in them would have another shape; crop the "
            "recordings, or let the environment render that shape"
        )


def _recorded_in(source: LeRobotSource) -> _Recorded:
    """The simulator that recorded a data set, as far as it says so."""
    try:
        recipe: dict[str, Any] = json.loads((source.root / "meta" / "dynaflip.json").read_text())
    except (OSError, ValueError):
        for episode in source.meta.stream(statistics=False):
            made_here = episode.layout_seed is not None
            name = episode.environment or (DEFAULT_ENVIRONMENT if made_here else "")
            return _Recorded(name, "")
        return _Recorded("", "")
    settings = recipe.get("settings") or {}
    name = str(settings.get("environment") or DEFAULT_ENVIRONMENT)
    return _Recorded(name, str(recipe.get("simulator") or ""))


def _origin_notes(spec: EnvironmentSpec, source: LeRobotSource, recorded: _Recorded) -> list[str]:
    if not recorded.environment:
        low, high = _bounds(spec, own_units=True)
        return [
            f"note: {source.name} does not say which simulator recorded it: it is taken for "
            f"{spec.name}, with actions in its units ({low.min():g} to {high.max():g}); whether it "
            "shows layouts that are evaluated is not known"
        ]
    notes = []
    if recorded.environment != spec.name:
        notes.append(
            f"note: {source.name} was recorded in {recorded.environment}, and policies act in "
            f"{spec.name}"
        )
    if recorded.version and recorded.version != spec.version():
        notes.append(
            f"note: {source.name} was recorded with {recorded.version}, and policies act with "
            f"{spec.version()}"
        )
    return notes


def _usable(source: LeRobotSource) -> tuple[list[Clip], list[str]]:
    """Recordings that were solved, as far as that is recorded, and were not perturbed."""
    kept: list[Clip] = []
    reasons = {"unreadable": 0, "not solved": 0, "perturbed or with a moving camera": 0}
    for clip in source.list_clips():
        if clip.problem and clip.problem[0] != "caption":
            reasons["unreadable"] += 1
            continue
        episode = Episode.from_json(clip.extra)
        if "success" in episode.row and not episode.success:
            reasons["not solved"] += 1
        elif json.loads(episode.factors) or episode.moving_camera:
            reasons["perturbed or with a moving camera"] += 1
        else:
            kept.append(clip)
    left = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
    return kept, [f"note: {source.name}: recordings that are left out: {left}"] if left else []


def _by_task(
    spec: EnvironmentSpec,
    source: LeRobotSource,
    tasks: Sequence[str],
    clips: Sequence[Clip],
    left_out: Sequence[str],
) -> tuple[dict[str, list[Clip]], list[str]]:
    """The recordings of each task, told by its id or any of its phrasings.

    Where there is one task and the data set has one, they are the same, whatever it is called.

    Raises:
        UserError: it has several, and none of them is one of those evaluated.
    """
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        name = normalise_caption(clip.task or "; ".join(clip.captions))
        groups.setdefault(name, []).append(clip)
    found = tasks_in(list(groups), spec, tasks)
    by_task = {
        task: [clip for name in found.get(task, ()) for clip in groups[name]] for task in tasks
    }
    missing = [task for task in tasks if not by_task[task]]
    if len(tasks) == 1 and len(groups) == 1 and missing:
        (name,) = groups
        words = f"calls its task {name!r}" if name else "has no words for its task"
        return {tasks[0]: list(clips)}, [
            f"note: {source.name} {words}; it is taken for {tasks[0]} of {spec.name} "
            f"({spec.caption(tasks[0])!r})"
        ]
    if missing:
        shown = ", ".join(f"{task} ({spec.caption(task)!r})" for task in missing)
        why = "".join(f"; {line.removeprefix('note: ')}" for line in left_out)
        raise UserError(
            f"source: {source.root} has no recording of {shown} that can be used; it has "
            f"{', '.join(map(repr, groups)) or 'none'}{why}; "
            "name its tasks with --tasks, or call them alike (a Gymnasium environment's: "
            "[caption=WORDS])"
        )
    return by_task, []


def _enough(config: RolloutConfig, task: str, clips: list[Clip]) -> list[Clip]:
    """The first recordings, listed by their numbers, as many as are asked for."""
    if len(clips) < config.demonstrations:
        raise UserError(
            f"demonstrations: {config.demonstrations} are wanted, and {config.source} has "
            f"{len(clips)} of {task} that can be used; set --demonstrations {len(clips)}"
        )
    return clips[: config.demonstrations]


def _check_columns(
    config: RolloutConfig,
    spec: EnvironmentSpec,
    source: LeRobotSource,
    clip: Clip,
    recorded: _Recorded,
) -> int:
    """Refuse actions and proprioception that are not the environment's; how many frames it has."""
    where = f"source: episode {clip.episode_index} of {source.root}"
    given = any(config.proprioception)
    state, action = _columns(spec, source, clip, state=given)
    if action.shape[1] != spec.action_dim:
        raise UserError(
            f"{where} has actions of width {action.shape[1]}, and those of {spec.name} have "
            f"{spec.action_dim} ({', '.join(spec.action_names)})"
        )
    if given and state.shape[1] != spec.proprioception_dim:
        width, names = state.shape[1], ", ".join(spec.proprioception_names)
        held = f"{PROPRIOCEPTION} of width {width}" if width else f"no {PROPRIOCEPTION}"
        raise UserError(
            f"proprioception: {where.removeprefix('source: ')} has {held}, and {spec.name} gives "
            f"policies {spec.proprioception_dim} ({names}); choose the same entries (a Gymnasium "
            "environment's: [proprioception=A+B]), or set --proprioception false"
        )
    low, high = _bounds(spec, recorded.own_units)
    slack = _BEYOND * (high - low)
    outside = (action < low - slack) | (action > high + slack)
    if outside.any():
        entry = int(np.flatnonzero(outside.any(0))[0])
        raise UserError(
            f"{where} has actions from {action[:, entry].min():g} to {action[:, entry].max():g} in "
            f"entry {entry} ({spec.action_names[entry]}), and {spec.name} takes "
            f"{low[entry]:g} to {high[entry]:g}: they are in other units, or of another robot"
        )
    return len(action)


def _columns(
    spec: EnvironmentSpec, source: LeRobotSource, clip: Clip, *, state: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Proprioception (N, P) and actions (N, A) of an episode, float64, as recorded.

    Raises:
        UserError: it has no such column, or what is no finite number.
    """
    state = state and PROPRIOCEPTION in source.info["features"] and spec.proprioception_dim > 0
    names = (ACTION, PROPRIOCEPTION) if state else (ACTION,)
    try:
        arrays = read_arrays(source.meta, Episode.from_json(clip.extra), names)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _refused(str(source.root), clip, str(error).splitlines()[0]) from None
    arrays = [values.reshape(len(values), -1) for values in arrays]
    for name, values in zip(names, arrays, strict=True):
        if not np.isfinite(values).all():
            raise _refused(str(source.root), clip, f"{name} holds what is no finite number")
    return (arrays[1] if state else np.zeros((len(arrays[0]), 0))), arrays[0]


def _bounds(spec: EnvironmentSpec, own_units: bool) -> tuple[np.ndarray, np.ndarray]:
    """(A,) least and greatest value of each entry of a recorded action."""
    if not own_units or not spec.action_bounds:
        return -np.ones(spec.action_dim), np.ones(spec.action_dim)
    low, high = np.array(spec.action_bounds, np.float64).T
    return low, high


def _in_unit(spec: EnvironmentSpec, action: np.ndarray, own_units: bool) -> np.ndarray:
    """(N, A) float32 in [-1, 1]."""
    low, high = _bounds(spec, own_units)
    return np.clip(2 * (action - low) / (high - low) - 1, -1, 1).astype(np.float32)


def _refused(folder: str, clip: Clip, reason: str) -> UserError:
    return UserError(f"source: episode {clip.episode_index} of {folder}: {reason}")
