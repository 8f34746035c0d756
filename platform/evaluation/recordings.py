"""Frames with simulator labels from a recorded data set, for probes alone.

The one reader of ``privileged.*`` columns: sources, triplets and training never see
them. Recordings are split as preprocessing split them, so that what is called
held-out here was held out from pretraining.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dynaflip.errors import UserError
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment
from dynaflip.eval.labelled_frames import LabelledFrames
from dynaflip.platform.lerobot.columns import (
    JOINT_ANGLES,
    OBJECT_POSITION,
    PROPRIOCEPTION,
    read_arrays,
)
from dynaflip.platform.lerobot.episode import Episode
from dynaflip.platform.triplets.clips import Clip, ClipRejected
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources.lerobot import LeRobotSource
from dynaflip.platform.triplets.split import split_in

HAND, OBJECT, JOINTS = PROPRIOCEPTION, OBJECT_POSITION, JOINT_ANGLES
_AS_RECORDED = 1 << 20  # px: longer than any short side, and images are never enlarged


@dataclass(frozen=True)
class Recordings:
    """A data set's unperturbed recordings through one camera, by split."""

    source: LeRobotSource
    camera: str
    size_px: tuple[int, int]  # (height, width)
    train: list[Clip]
    heldout: list[Clip]

    def tasks(self) -> list[str]:
        """Tasks with at least the two training recordings that choosing a penalty needs."""
        names = [clip.task for clip in self.train]
        return sorted({name for name in names if names.count(name) >= 2})


def labels_missing(folder: str) -> str | None:
    """Why probes cannot be fitted on a data set, in words, or None where they can."""
    info = Path(folder) / "meta" / "info.json"
    if not Path(folder).is_dir():
        return f"there is no data set {folder} (jobs/collect.py writes one)"
    if not info.is_file():
        return f"{folder} is no LeRobot data set, so nothing is labelled with positions"
    try:
        columns = json.loads(info.read_text())["features"]
    except (json.JSONDecodeError, KeyError):
        raise UserError(f"--data: {info} is damaged") from None
    missing = [name for name in (HAND, OBJECT, JOINTS) if name not in columns]
    return f"{folder} has no {' and no '.join(missing)}" if missing else None


def check_recorded_in(folder: str, name: str, setting: str) -> None:
    """Refuse recordings of another environment, or another version of it, than views come from.

    A data set that was not collected here says nothing of either, and is taken as it is.

    Args:
        folder: of the data set.
        name: of the environment that renders views.
        setting: that gave the folder, for errors.

    Raises:
        UserError: with both environments, or both versions.
    """
    about = Path(folder) / "meta" / "dynaflip.json"
    if not about.is_file():
        return
    try:
        recipe = json.loads(about.read_text())
        made_in = recipe["settings"].get("environment", DEFAULT_ENVIRONMENT)
        before = recipe.get("simulator")  # of before it was recorded: none
    except (json.JSONDecodeError, KeyError, AttributeError):
        raise UserError(f"{setting}: {about} is damaged") from None
    if made_in != name:
        raise UserError(
            f"{setting}: {folder} was recorded in {made_in}, and views are rendered in {name}: "
            f"probes cannot be fitted on one and tested on the other; set views.environment to "
            f"{made_in}, or give recordings of {name}"
        )
    now = environment(name).version()
    if before is not None and before != now:
        raise UserError(
            f"{setting}: {folder} was recorded in {before}, and views are rendered in {now}: "
            "appearances may differ; collect anew, or install the former"
        )


def open_recordings(folder: str, triplets: Mapping[str, Any]) -> Recordings:
    """List the unperturbed, still-camera recordings of a data set.

    Args:
        folder: LeRobot v3.0 data set with simulator labels.
        triplets: manifest of the triplets whose split is kept.

    Raises:
        UserError: none of them is in the training split.
    """
    source = LeRobotSource(SourceConfig(path=folder))
    clips = list(source.list_clips())
    camera = clips[0].camera
    plain = [clip for clip in clips if clip.camera == camera and _is_plain(clip)]
    by_split: dict[str, list[Clip]] = {"train": [], "heldout": []}
    for clip in plain:
        by_split[split_in(triplets, clip.recording_id)].append(clip)
    if not by_split["train"]:
        raise UserError(
            f"--data: {folder} has no unperturbed recording in its training split "
            f"({len(clips)} recordings); probes are fitted on those alone, so collect more"
        )
    key = camera if camera in source.info["features"] else f"observation.images.{camera}"
    width, height = source.meta.image_px(key)
    return Recordings(source, camera, (height, width), by_split["train"], by_split["heldout"])


def read_frames(
    recordings: Recordings, clips: list[Clip], frames_per_episode: int, condition: str
) -> LabelledFrames:
    """Decode evenly spaced frames of recordings and join them with their labels.

    Args:
        recordings: the data set.
        clips: those to read; clips that cannot be decoded are left out.
        frames_per_episode: frames of each.
        condition: what to call them.
    """
    names = ("image", "hand", "object", "joints", "task", "episode")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for clip in clips:
        recording = recordings.source.open(clip)
        try:
            number = len(recording.times_s())
            chosen = np.unique(np.linspace(0, number - 1, frames_per_episode).round().astype(int))
            images = recording.read_frames(chosen.tolist(), _AS_RECORDED)
        except ClipRejected:
            continue  # preprocessing counts and explains these
        hand_m, object_m, joints_rad = _labels(recordings.source, clip, number)
        columns["image"].append(images)
        columns["hand"].append(hand_m[chosen])
        columns["object"].append(object_m[chosen])
        columns["joints"].append(joints_rad[chosen])
        columns["task"] += [clip.task] * len(chosen)
        columns["episode"] += [clip.recording_id] * len(chosen)
    if not columns["image"]:
        raise UserError(f"--data: no recording of {recordings.source.root} can be decoded")
    return LabelledFrames(
        np.concatenate(columns["image"]),
        np.concatenate(columns["hand"]),
        np.concatenate(columns["object"]),
        np.concatenate(columns["joints"]),
        np.array(columns["task"]),
        np.array(columns["episode"]),
        np.full(len(columns["task"]), condition),
    )


def _is_plain(clip: Clip) -> bool:
    moving = Episode.from_json(clip.extra).moving_camera if clip.extra else False
    return clip.problem is None and json.loads(clip.factors) == {} and not moving


def _labels(source: LeRobotSource, clip: Clip, number: int) -> tuple[np.ndarray, ...]:
    """Of an episode's frames: hand and object positions, (N, 3) metres, world; joints, radians."""
    episode, path = Episode.from_json(clip.extra), source.root
    try:
        hand, object_m, joints_rad = read_arrays(source.meta, episode, (HAND, OBJECT, JOINTS))
    except (OSError, pa.ArrowException) as error:
        path = path / source.meta.data_path(episode)
        raise UserError(f"--data: cannot read {path}: {error}") from None
    if len(hand) != number:
        raise UserError(
            f"--data: episode {clip.episode_index} of {path} has {len(hand)} rows of labels and "
            f"{number} images"
        )
    return hand[:, :3], object_m, joints_rad
