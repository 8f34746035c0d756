"""A dozen clips of a source made as the job would make them, to see the result and its cost first.

Clips are drawn from all over the source. They are made by :func:`.shard.process_shard`, as in the
job, in processes of this machine: that starts at once, where Ray needs some seconds. Nothing is
written to the triplets' folder.
"""

from __future__ import annotations

import heapq
import itertools
import json
import multiprocessing
import os
import pickle
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.platform.cluster import available_cpus
from dynaflip.platform.triplets.batches import BatchNews
from dynaflip.platform.triplets.clip_in_work import MAX_STARTS
from dynaflip.platform.triplets.clips import Clip, Frames, Recording, Source, content_hash
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.models.loading import (
    check_models,
    digests_of_models,
    uses_models,
)
from dynaflip.platform.triplets.shard import process_shard
from dynaflip.platform.triplets.sources.formats import Mix, open_sources
from dynaflip.platform.triplets.stage_graph import ModelShards
from dynaflip.platform.triplets.work_folder import WorkFolder

_LIST_S = 20.0  # of a huge source only the clips that are listed by then are drawn from
_THUMBNAIL_PX = 240


@dataclass(frozen=True)
class Drawn:
    """Clips drawn from a source.

    Args:
        clips: the drawn ones.
        listed: clips by source among which they were drawn.
        complete: whether these are all; else listing was stopped.
        seconds: that listing took.
    """

    clips: tuple[Clip, ...]
    listed: Counter[str]
    complete: bool
    seconds: float


@dataclass(frozen=True)
class Made:
    """A clip that was made.

    Args:
        clip: the clip.
        summary: see :func:`.shard.process_shard`.
        seconds: of one worker.
    """

    clip: Clip
    summary: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Thumbnail:
    """Frames of a clip or window that was rejected; ``frames`` is empty where none can be read."""

    clip: Clip
    reason: str
    frames: tuple[Frames, ...]
    at_s: tuple[float, float] | None = None  # of a window, in the file


def open_and_draw(config: PreprocessConfig, count: int) -> tuple[Mix, Drawn]:
    """Open the sources of a configuration and draw clips.

    Raises:
        UserError: a source is missing or empty, or a model cannot be loaded.
    """
    source = open_sources(config)
    check_models(config)
    pairs = zip(source.sources.values(), source.configs, strict=True)
    drawn = draw_clips([Mix([one], [own]) for one, own in pairs], count, config.seed)
    if not drawn.clips:
        raise UserError(f"source.path: {config.source.path} holds no recording")
    return source, drawn


def draw_clips(sources: Sequence[Source], count: int, seed: int, limit_s: float = _LIST_S) -> Drawn:
    """Draw clips that are spread over sources, cameras and recordings.

    A hash decides, so that a clip is drawn whatever the order of listing. Of every camera of a
    source ``count`` clips are held, and no more.

    Args:
        sources: to list; each is left when its share of the time is over.
        count: how many.
        seed: another one draws others.
        limit_s: for listing all of them, seconds.
    """
    began_s = time.monotonic()
    held: dict[tuple[str, str], list[tuple[int, int, Clip]]] = {}
    listed: Counter[str] = Counter()
    complete = True
    for number, source in enumerate(sources, 1):
        for clip in source.list_clips():
            listed[clip.source] += 1
            rank = int(content_hash(str(seed), clip.clip_id, clip.path), 16)
            some = held.setdefault((clip.source, clip.camera), [])
            # A heap of the smallest ranks: the largest of them is on top.
            push = heapq.heappush if len(some) < count else heapq.heappushpop
            push(some, (-rank, listed.total(), clip))
            if time.monotonic() - began_s > limit_s * number / len(sources):
                complete = False
                break
    by_source: dict[str, list[list[Clip]]] = {}
    for (name, _), some in sorted(held.items(), key=lambda item: item[0]):
        ranked = sorted(some, reverse=True, key=lambda one: one[0])
        by_source.setdefault(name, []).append([clip for _, _, clip in ranked])
    turns = _in_turn([_in_turn(cameras) for cameras in by_source.values()])
    clips = tuple(_new_recordings_first(turns)[:count])
    return Drawn(clips, listed, complete, time.monotonic() - began_s)


def _in_turn(lists: list[list[Clip]]) -> list[Clip]:
    """The first of each list, then the second of each, and so on."""
    turns = itertools.zip_longest(*lists)
    return [clip for turn in turns for clip in turn if clip is not None]


def _new_recordings_first(clips: list[Clip]) -> list[Clip]:
    """Clips in their order, but further ones of a recording after all others."""
    seen: set[str] = set()
    first: list[Clip] = []
    later: list[Clip] = []
    for clip in clips:
        (later if clip.recording_id in seen else first).append(clip)
        seen.add(clip.recording_id)
    return first + later


def make_clips(
    clips: Iterable[Clip], source: Source, config: PreprocessConfig, folder: Path
) -> Iterator[Made]:
    """Make clips as the job does, and yield them as they are done.

    A worker that dies is replaced, and what it had in work is made again; the clip that it dies
    of is rejected, as in the job.

    Args:
        clips: to make.
        source: of the clips.
        config: settings.
        folder: a new one, that takes the shards.

    Raises:
        UserError: workers die without a clip that is done.
        Exception: whatever a model raises that cannot be loaded.
    """
    work = WorkFolder(folder)
    for part in (folder / "shards", folder / "attempts"):
        part.mkdir(parents=True, exist_ok=True)
    left = dict(enumerate(clips))
    digests = digests_of_models(config) if uses_models(config) else {}
    start = (config, source, str(work.path), digests)
    alone = False
    broken = 0  # times in a row without a clip that was done
    while left:
        # Models are loaded once; they use all of the machine.
        many = 1 if alone or uses_models(config) else min(available_cpus(), len(left))
        with ProcessPoolExecutor(
            many, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=start
        ) as pool:
            futures = {pool.submit(_make, n, clip.to_json()): n for n, clip in left.items()}
            try:
                for future in as_completed(futures):
                    summary, seconds = future.result()
                    broken = 0
                    yield Made(left.pop(futures[future]), summary, seconds)
            except BrokenProcessPool:
                alone = True  # so that the one that it died of is known
                broken += 1
                if broken > MAX_STARTS:  # a clip that kills its process is rejected by then
                    raise UserError(
                        f"the preview's process died {broken} times without a clip that was done, "
                        f"killed from outside or while it loaded models: is there too little "
                        f"memory for them?"
                    ) from None


# What a worker process works with.
_worker: dict[str, Any] = {}


def _start_worker(
    config: PreprocessConfig, source: Source, folder: str, digests: dict[str, str]
) -> None:
    _worker.update(config=config, source=source, folder=folder)
    if uses_models(config):
        try:
            _worker["models"] = ModelShards(config, folder, source, digests)
        except Exception as error:  # raised here, it would break the pool and be lost
            _worker["error"] = _travelling(error)


def _travelling(error: Exception) -> Exception:
    """An error that can be sent to another process: some of the hub's cannot."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class needs to be made again
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _make(number: int, clip: str) -> tuple[dict[str, Any], float]:
    """Summary of a clip, and the seconds that it took."""
    began_s = time.monotonic()
    if "error" in _worker:
        raise _worker["error"]
    if "models" in _worker:
        row = _worker["models"]({"name": f"part-{number}", "clips": [clip]})
        (summary,) = json.loads(row["summaries"])
        for line in BatchNews().lines(json.loads(row["news"])):
            print(line, flush=True)
    else:
        work = WorkFolder(Path(_worker["folder"]))
        clips = [Clip.from_json(clip)]
        (summary,) = process_shard(
            f"part-{number}", clips, _worker["source"], _worker["config"], work
        )
    return summary, time.monotonic() - began_s


def workers_of_job(config: PreprocessConfig) -> tuple[int, str]:
    """How many clips the job would make at a time, and where: on the cluster, or here."""
    if os.environ.get("RAY_ADDRESS", "local") not in ("", "local"):
        from dynaflip.platform.cluster import start_ray

        start_ray()
        import ray

        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        where = "this cluster"
    else:
        cpus, gpus, where = available_cpus(), 0, "this machine"
        if uses_models(config):
            import torch

            gpus = torch.cuda.device_count()
    if not uses_models(config):
        return cpus, f"{cpus} CPUs of {where}"
    if gpus:
        return gpus, f"{gpus} GPUs of {where}"
    return max(1, cpus - 1), f"{cpus} CPUs of {where}"


def whole_set_s(made: Iterable[Made], listed: Counter[str], workers: int) -> tuple[float, float]:
    """Seconds that all listed clips would take, and twice the standard error of that.

    Sources differ in what a clip costs: each counts with its own mean.

    Args:
        made: the clips that were made.
        listed: clips by source.
        workers: that work at a time.
    """
    by_source: dict[str, list[float]] = {}
    for one in made:
        by_source.setdefault(one.clip.source, []).append(one.seconds)
    everything = [second for seconds in by_source.values() for second in seconds]
    workers = min(workers, listed.total())
    total, variance = 0.0, 0.0
    for name, clips in listed.items():
        seconds = by_source.get(name, everything)
        spread = seconds if len(seconds) > 1 else everything
        total += clips * float(np.mean(seconds))
        left = 1 - min(1.0, len(seconds) / clips)  # nothing is unknown of clips that were made
        variance += clips**2 * left * float(np.var(spread)) / len(seconds)
    return total / workers, 2 * float(np.sqrt(variance)) / workers


def rejected_clips(made: Iterable[Made], source: Mix) -> list[Thumbnail]:
    """The clips that were rejected, with their first, middle and last frame."""
    out = []
    for one in made:
        stage, reason = one.summary["stage"], one.summary["reason"]
        if stage:
            frames = () if stage == "crash" else _frames(source, one.clip, None)
            out.append(Thumbnail(one.clip, f"{stage}: {reason}", frames))
    return out


def left_out_windows(made: Iterable[Made], source: Mix, most: int) -> list[Thumbnail]:
    """A window for each clip and reason, with its first and last frame.

    Args:
        made: the clips that were made.
        source: of the clips.
        most: how many; every reason has its share.
    """
    by_reason: dict[str, list[Thumbnail]] = {}
    for one in made:
        for reason, (at_s, window_s) in one.summary["left_out_at"].items():
            window = Thumbnail(one.clip, reason, (), (at_s, at_s + window_s))
            by_reason.setdefault(reason, []).append(window)
    turns = itertools.zip_longest(*by_reason.values())
    some = itertools.islice((one for turn in turns for one in turn if one), most)
    return [replace(one, frames=_frames(source, one.clip, one.at_s)) for one in some]


def _frames(source: Mix, clip: Clip, at_s: tuple[float, float] | None) -> tuple[Frames, ...]:
    """Small frames of a clip or of a window of it; none where they cannot be read."""
    try:
        recording: Recording = source.open(replace(clip, problem=None))
        times_s = recording.times_s()
        if at_s is None:
            wanted = {0, len(times_s) // 2, len(times_s) - 1}
        else:
            ends_s = np.asarray(at_s) - clip.start_s
            wanted = {int(np.abs(times_s - end_s).argmin()) for end_s in ends_s}
        return tuple(recording.read_frames(sorted(wanted), _THUMBNAIL_PX))
    except Exception:  # whatever the clip was rejected for may stand against it here as well
        return ()
