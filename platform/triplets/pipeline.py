"""Recordings to a triplet folder, on Ray Data.

Ray Data runs the stages (:mod:`.stage_graph`) over shards of clips. The last one writes a shard's
Parquet file and then its clips' summaries, so an interrupted job resumes. When all are done,
:mod:`.publish` compacts them to large files, and the folder or the bucket's prefix shows the new
set in one moment (:mod:`.destination`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from dynaflip.errors import UserError
from dynaflip.files import file_lock
from dynaflip.platform.config_loader import to_dict
from dynaflip.platform.paths import home
from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.clips import Clip, content_hash
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.destination import Destination, destination_of
from dynaflip.platform.triplets.flow.tracker_3d_checks import AdapterWatch
from dynaflip.platform.triplets.models.actor import check_models, digests_of_models
from dynaflip.platform.triplets.progress import Progress
from dynaflip.platform.triplets.publish import Outcome, publish
from dynaflip.platform.triplets.report.cautions import small_set_lines
from dynaflip.platform.triplets.reuse import (
    adopt_clips,
    read_finished,
    temporary_rejections,
    work_key,
    work_of,
    write_manifest,
)
from dynaflip.platform.triplets.sources.formats import Mix, open_sources
from dynaflip.platform.triplets.stage_graph import run_stages
from dynaflip.platform.triplets.work_folder import (
    StoredClip,
    WorkFolder,
    read_stored,
    stored_clip,
)

_LEAST_SHARDS = 16  # of a set that has as many clips


def preprocess(config: PreprocessConfig, output: str) -> Outcome:
    """Make a triplet folder of a source; finished work is reused.

    Args:
        config: settings; ``source.path`` is absolute.
        output: absolute path of the folder to make, or ``s3://bucket/prefix``.

    Raises:
        UserError: the source is missing or empty, or the output is something else.
        StoreError: a bucket refuses or does not answer.
    """
    with place.one_line_errors("--output"):
        target = destination_of(output)
        lock = home() / "locks" / f"{content_hash(str(target.folder))}.lock"
        with file_lock(lock, f"--output: another process is making {target.folder}"):
            return _preprocess(config, target)


def _preprocess(config: PreprocessConfig, target: Destination) -> Outcome:
    target.restore()
    folder = target.folder
    source = open_sources(config)
    clips = source.list_clips()
    if not clips:
        raise UserError(f"source.path: {config.source.path} holds no recording")
    check_models(config)
    settings = to_dict(config)
    made_from = work_of(settings, clips, digests_of_models(config))
    key = work_key(made_from)
    # Named by what the shards' numbers depend on as well: their size, and the folder that some
    # are adopted from.
    finished = read_finished(folder)
    depends_on = [key, str(finished.get("work_key", "")), str(config.clips_per_shard)]
    if "files" in finished:  # so that a set is never written over
        depends_on.append(finished["files"])
    adopted_from = content_hash(*depends_on)
    target.recover(adopted_from, key)
    finished = read_finished(folder)
    again = temporary_rejections(folder) if finished.get("work_key") == key else 0
    if finished.get("work_key") == key and not again:
        return _reuse(target, finished, source, settings)
    if again:
        print(f"{again} clips were rejected for a temporary reason: they are tried again")
    work = target.work(adopted_from)
    adopted = adopt_clips(folder, made_from, clips)
    stored = list(adopted.clips)
    shards = _new_shards([clip.summary["clip_digest"] for clip in stored], clips, config)
    stored += _read_done(work, shards)
    progress = Progress("triplets", total=len(clips))
    progress.update([clip.summary["stage"] for clip in stored])
    done = set(place.names(work.shards))
    missing = {n: s for n, s in shards.items() if work.shard_summaries(n).name not in done}
    watch = AdapterWatch(config.track.tracker)
    for summary in run_stages(missing, config, work, source, made_from["models"]):
        watch.see(summary["stage"], summary["reason"])
        stored.append(stored_clip(summary, work.shards))
        progress.update([summary["stage"]])
    progress.close()
    _check_complete(clips, stored)
    about = {"settings": settings, "made_from": made_from, "work_key": key}
    return publish(target, work, stored, adopted, config, about | {"sources": source.about()})


def _new_shards(
    adopted: list[str], clips: list[Clip], config: PreprocessConfig
) -> dict[int, list[Clip]]:
    """Shards of the clips whose digest is not among the adopted ones."""
    held = Counter(adopted)
    left = []
    for clip in clips:
        digest = clip.digest()
        if held[digest]:
            held[digest] -= 1
        else:
            left.append(clip)
    # Small sets in small shards, so that every CPU has work.
    size = max(1, min(config.clips_per_shard, len(left) // _LEAST_SHARDS))
    return {n: left[i : i + size] for n, i in enumerate(range(0, len(left), size))}


def _reuse(
    target: Destination, manifest: dict[str, Any], source: Mix, settings: dict[str, Any]
) -> Outcome:
    """Reuse the triplets; settings that change none of them are updated in the manifest."""
    target.tidy()  # an earlier run was killed just before it did
    sources = {
        name: {**manifest["sources"][name], **about} for name, about in source.about().items()
    }
    new = {**manifest, "sources": sources, "settings": settings}
    if new != manifest:
        write_manifest(target.folder, new)
    return Outcome(
        target.folder,
        new["counts"],
        new["digest"],
        reused=True,
        version=int(manifest["version"]),
        notes=tuple(small_set_lines(new)),
    )


def _read_done(work: WorkFolder, shards: dict[int, list[Clip]]) -> list[StoredClip]:
    there = set(place.names(work.shards))
    done = [path for path in map(work.shard_summaries, shards) if path.name in there]
    return [clip for text in place.read_texts(done) for clip in read_stored(text, work.shards)]


def _check_complete(clips: list[Clip], stored: list[StoredClip]) -> None:
    """Check that every clip is there once: published triplets miss none and hold none twice."""
    wanted = Counter(clip.digest() for clip in clips)
    found = Counter(clip.summary["clip_digest"] for clip in stored)
    if wanted != found:
        missing, extra = wanted - found, found - wanted
        raise RuntimeError(
            f"{missing.total()} clips are missing and {extra.total()} too many among the finished "
            f"shards; nothing was published"
        )
