"""Episodes of a user's own LeRobot data set for the suite ``offline``: which, and what they hold.

Recordings are split as preprocessing split them. Nothing is decoded here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.lerobot.columns import PROPRIOCEPTION, read_columns
from dynaflip.platform.lerobot.episode import Episode
from dynaflip.platform.triplets.clips import Clip, ClipRejected
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources.lerobot import LeRobotSource
from dynaflip.platform.triplets.split import split_of

HELDOUT = "heldout"


@dataclass(frozen=True)
class OfflineEpisode:
    """An episode's chosen frames, N of its R rows, through all chosen cameras."""

    index: int  # in the data set
    recording_id: str
    heldout: bool
    clips: tuple[Clip, ...]  # one per camera, in the order of the cameras
    frames: tuple[int, ...]  # (N,) numbers of the chosen frames
    recorded: np.ndarray  # (R, A) float64: the actions of all rows of its table
    proprioception: np.ndarray  # (N, P) float64; P = 0 where policies get none
    captions: tuple[str, ...]  # (N,) the task at each frame; "" where it has none

    @property
    def actions(self) -> np.ndarray:
        """(N, A) float64, of the chosen frames."""
        return self.recorded[list(self.frames)]

    def digest(self) -> str:
        """Equal for equal files, cameras and frames."""
        parts = [[clip.digest() for clip in self.clips], self.frames]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class OfflineData:
    """The chosen episodes of a data set."""

    source: SourceConfig
    name: str
    cameras: tuple[str, ...]
    proprioception: tuple[str, ...]  # the columns that are read
    action_names: tuple[str, ...]  # of the A entries
    proprioception_names: tuple[str, ...]  # of the P entries
    fps: float  # rows a second; 0: the data set does not say
    train: list[OfflineEpisode]
    heldout: list[OfflineEpisode]
    recordings: dict[bool, int]  # of the data set, by whether they are held out
    notes: list[str]

    def captions(self) -> tuple[str, ...]:
        """The tasks in words, each once; "" is one without."""
        return tuple(sorted({c for e in (*self.train, *self.heldout) for c in e.captions}))


def source_of(config: OfflineConfig) -> SourceConfig:
    """The data set's settings as a source of preprocessing."""
    return SourceConfig(path=config.source, cameras=config.cameras)


def read_offline(config: OfflineConfig) -> OfflineData:
    """Choose the episodes, and read their actions and proprioception.

    Raises:
        UserError: there is no such data set, column or camera; episodes differ in width; or too
            few of them are left to learn from or to test on.
    """
    if not config.source.strip():
        raise UserError("source: give the folder of your LeRobot data set, v3.0 or v2.1")
    source = LeRobotSource(source_of(config))
    columns = _columns_of(config, source)
    notes: list[str] = []
    if config.proprioception is None and not columns[1]:
        notes.append(f"note: there is no {PROPRIOCEPTION}, so policies are given images alone")
    by_split: dict[bool, list[tuple[Clip, ...]]] = {False: [], True: []}
    ids: list[str] = []
    for _, several in groupby(source.list_clips(), lambda clip: clip.episode_index):
        clips = tuple(several)
        ids.append(clips[0].recording_id)
        heldout = split_of(clips[0].recording_id, config.heldout_share) == HELDOUT
        by_split[heldout].append(clips)
    left_out: list[str] = []
    read = {
        heldout: list(_read(config, source, columns, chosen, heldout, left_out))
        for heldout, chosen in by_split.items()
    }
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        notes.append(f"note: left out {left_out[0]}{more}")
    _check_number(config, read, ids, left_out)
    _check_widths(config, [*read[False], *read[True]])
    first = read[False][0]
    return OfflineData(
        source_of(config),
        source.name,
        tuple(clip.camera for clip in first.clips),
        columns[1],
        _entries(source, (columns[0],), first.actions.shape[1]),
        _entries(source, columns[1], first.proprioception.shape[1]),
        source.meta.fps,
        read[False],
        read[True],
        {heldout: len(chosen) for heldout, chosen in by_split.items()},
        notes,
    )


def _entries(source: LeRobotSource, columns: tuple[str, ...], width: int) -> tuple[str, ...]:
    """Names of the entries of some columns side by side, by number where the set names none."""
    named: list[str] = []
    for column in columns:
        feature = source.info["features"][column]
        names = feature.get("names")
        if isinstance(names, dict) and len(names) == 1:  # {"motors": [...]}
            (names,) = names.values()
        shape = feature.get("shape")
        many = shape[0] if isinstance(shape, list) and len(shape) == 1 else 0
        if not (isinstance(names, list) and len(names) == many):
            names = [f"{column}[{entry}]" for entry in range(many)]
        named += [str(name) for name in names]
    if len(named) == width:
        return tuple(named)
    return tuple(f"{'+'.join(columns)}[{entry}]" for entry in range(width))


def _columns_of(config: OfflineConfig, source: LeRobotSource) -> tuple[str, tuple[str, ...]]:
    """Columns of actions and of proprioception.

    Raises:
        UserError: the data set has no such column.
    """
    features = source.info["features"]
    seen = {*source.cameras, *source.depth_keys}
    others = ", ".join(name for name in features if name not in seen) or "none"
    wanted = config.proprioception
    if wanted is None:
        wanted = (PROPRIOCEPTION,) if PROPRIOCEPTION in features else ()
    for setting, name in (("action", config.action), *(("proprioception", n) for n in wanted)):
        if name not in features:
            raise UserError(
                f"{setting}: {source.root} has no column {name}; it has {others}; choose with "
                f"--{setting}"
            )
    return config.action, wanted


def _read(
    config: OfflineConfig,
    source: LeRobotSource,
    columns: tuple[str, tuple[str, ...]],
    recordings: list[tuple[Clip, ...]],
    heldout: bool,
    left_out: list[str],
) -> Iterator[OfflineEpisode]:
    """Episodes of one side of the split, at most as many as are asked for."""
    most = config.heldout_episodes if heldout else config.train_episodes
    number = 0
    for clips in sorted(recordings, key=lambda c: (_order(c[0].recording_id), c[0].episode_index)):
        if number == most:
            return
        try:
            episode = _episode(config, source, columns, clips, heldout)
        except ClipRejected as error:
            left_out.append(f"episode {clips[0].episode_index}: {error.reason}")
            continue
        number += 1
        yield episode


def _order(recording_id: str) -> str:
    """A fixed random order of recordings."""
    return hashlib.sha256(f"offline:{recording_id}".encode()).hexdigest()


def _episode(
    config: OfflineConfig,
    source: LeRobotSource,
    columns: tuple[str, tuple[str, ...]],
    clips: tuple[Clip, ...],
    heldout: bool,
) -> OfflineEpisode:
    problems = [clip.problem for clip in clips if clip.problem and clip.problem[0] != "caption"]
    if problems:
        raise ClipRejected(*problems[0])
    action, states = columns
    row = Episode.from_json(clips[0].extra)
    table = _table(source, row, (action, *states))
    actions = _vectors(table, action)
    parts = [_vectors(table, name) for name in states]
    rows = len(actions)
    if rows < 2:
        raise ClipRejected("decode", f"it has {rows} rows")
    frames = np.unique(np.linspace(0, rows - 1, config.frames_per_episode).round().astype(int))
    return OfflineEpisode(
        index=row.index,
        recording_id=clips[0].recording_id,
        heldout=heldout,
        clips=clips,
        frames=tuple(frames.tolist()),
        recorded=actions,
        proprioception=np.concatenate([np.zeros((rows, 0)), *parts], axis=1)[frames],
        captions=_captions(source, clips[0], table, frames),
    )


def _table(
    source: LeRobotSource, episode: Episode, names: tuple[str, ...]
) -> dict[str, pa.ChunkedArray]:
    try:
        found = read_columns(source.meta, episode, (*names, "task_index"), may_lack=True)
    except (OSError, pa.ArrowException) as error:
        first = str(error).splitlines()[0]
        name = source.meta.data_path(episode)
        raise ClipRejected("decode", f"cannot read {name}: {first}") from None
    for name in names:
        if name not in found:
            raise ClipRejected("decode", f"{source.meta.data_path(episode)} has no column {name}")
    return found


def _vectors(table: dict[str, pa.ChunkedArray], name: str) -> np.ndarray:
    """(rows, width) float64 of a column of numbers or of lists of them."""
    try:
        values = np.array(table[name].to_pylist(), np.float64)
    except (TypeError, ValueError):
        raise ClipRejected("decode", f"{name} holds no numbers, or rows of other widths") from None
    if not np.isfinite(values).all():
        raise ClipRejected("decode", f"{name} holds what is no finite number")
    return values.reshape(len(values), -1) if len(values) else values.reshape(0, 1)


def _captions(
    source: LeRobotSource, clip: Clip, table: dict[str, pa.ChunkedArray], frames: np.ndarray
) -> tuple[str, ...]:
    """The task at each chosen frame."""
    if len(clip.captions) < 2 or "task_index" not in table:
        return ((clip.captions or ("",))[0],) * len(frames)
    numbers = table["task_index"].to_pylist()
    return tuple(str(source.task_names.get(numbers[frame], "")) for frame in frames)


def _check_number(
    config: OfflineConfig,
    read: dict[bool, list[OfflineEpisode]],
    ids: list[str],
    left_out: list[str],
) -> None:
    """Refuse too few episodes on either side."""
    if len(read[False]) >= 1 and len(read[True]) >= 1:
        return
    side = "held out" if read[False] else "left to learn from"
    why = f"; {len(left_out)} cannot be used, the first: {left_out[0]}" if left_out else ""
    share = share_that_splits(ids)
    remedy = f"set --heldout_share {share:g}" if share is not None else "record more episodes"
    raise UserError(
        f"source: of {len(set(ids))} recordings in {config.source} none is {side} at "
        f"heldout_share {config.heldout_share:g}{why}; {remedy}"
    )


def share_that_splits(recording_ids: list[str]) -> float | None:
    """Least share, in steps of 0.05, that leaves recordings on both sides; None: none does."""
    for step in range(1, 20):
        share = round(0.05 * step, 2)
        if len({split_of(name, share) for name in recording_ids}) == 2:
            return share
    return None


def _check_widths(config: OfflineConfig, episodes: list[OfflineEpisode]) -> None:
    """Refuse episodes of other robots in one set: other widths, or other cameras."""
    first = episodes[0]
    for episode in episodes[1:]:
        for setting, name, one, other in (
            ("action", "actions", first.actions, episode.actions),
            ("proprioception", "proprioception", first.proprioception, episode.proprioception),
        ):
            if one.shape[1] != other.shape[1]:
                raise UserError(
                    f"{setting}: episode {first.index} of {config.source} has {name} of width "
                    f"{one.shape[1]}, episode {episode.index} of {other.shape[1]}; a policy needs "
                    f"one width, so split the data set"
                )
