"""Recordings to a triplet folder, on Ray Data.

Ray Data hands shards of clips to CPU tasks (or to actors that hold a depth
model). A task writes its Parquet file and then its clips' summaries, so an interrupted job
resumes; the folder takes its final name in one rename.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.errors import UserError
from dynaflip.files import UNFINISHED, file_lock, move, replace_folder, restore_folder
from dynaflip.platform.cluster import start_ray
from dynaflip.platform.config_loader import to_dict
from dynaflip.platform.paths import home
from dynaflip.platform.triplets.clips import Clip, Source, content_hash
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.digest import digest_of
from dynaflip.platform.triplets.models.actor import (
    ModelShards,
    check_models,
    digests_of_models,
    uses_models,
)
from dynaflip.platform.triplets.progress import Progress
from dynaflip.platform.triplets.report.overlays import write_examples
from dynaflip.platform.triplets.reuse import (
    adopt_shards,
    changes,
    read_finished,
    temporary_rejections,
    work_key,
    work_of,
    write_manifest,
)
from dynaflip.platform.triplets.schema import REJECTED_SCHEMA, SCHEMA_VERSION
from dynaflip.platform.triplets.shard import WorkFolder, process_shard
from dynaflip.platform.triplets.sources.formats import Mix, open_sources

_MAX_BLOCKS = 4096
_KEY_LETTERS = 12  # of a work folder's name
_LEAST_SHARDS = 16  # of a set that has as many clips


@dataclass(frozen=True)
class Outcome:
    """Result of preprocessing.

    Args:
        folder: the triplet folder, or where ``rejected.parquet`` lies if it failed.
        counts: read, kept, rejected, triplets, by split and by reason.
        reused: the folder existed, made from the same input by the same stage versions.
        failure: why there are no triplets, or "".
        version: 1 for a new folder, one more whenever it is made anew.
        changed: what differs from the version before.
    """

    folder: Path
    counts: dict[str, Any]
    digest: str
    reused: bool = False
    failure: str = ""
    version: int = 1
    changed: tuple[str, ...] = ()


def preprocess(config: PreprocessConfig, output: str) -> Outcome:
    """Make a triplet folder of a source; finished work is reused.

    Args:
        config: settings; ``source.path`` is absolute.
        output: absolute path of the folder to make.

    Raises:
        UserError: the source is missing or empty, or the output is something else.
    """
    folder = _check_output(output)
    lock = home() / "locks" / f"{content_hash(str(folder))}.lock"
    with file_lock(lock, f"--output: another process is making {folder}"):
        return _preprocess(config, folder)


def _preprocess(config: PreprocessConfig, folder: Path) -> Outcome:
    restore_folder(folder)
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
    adopted_from = content_hash(
        key, str(read_finished(folder).get("work_key", "")), str(config.clips_per_shard)
    )
    work = WorkFolder(folder.parent / f".{folder.name}.{adopted_from[:_KEY_LETTERS]}")
    if read_finished(work.path).get("work_key") == key:
        replace_folder(work.path, folder)  # an earlier run was killed just before this
    finished = read_finished(folder)
    again = temporary_rejections(folder) if finished.get("work_key") == key else 0
    if finished.get("work_key") == key and not again:
        return _reuse(folder, finished, source, settings)
    if again:
        print(f"{again} clips were rejected for a temporary reason: they are tried again")
    for part in (work.triplets, work.done, work.attempts):
        part.mkdir(parents=True, exist_ok=True)
    shards = adopt_shards(folder, made_from, clips, work)
    shards |= _new_shards(shards, clips, config.clips_per_shard)
    summaries = _read_done(work, shards)
    progress = Progress("triplets", total=len(clips))
    progress.update([s["stage"] for s in summaries])
    missing = {n: s for n, s in shards.items() if not (work.done / f"part-{n:05d}.json").exists()}
    for summary in _run(missing, config, work, source):
        summaries.append(summary)
        progress.update([summary["stage"]])
    progress.close()
    _check_complete(clips, summaries)
    about = {"settings": settings, "made_from": made_from, "work_key": key}
    return _finish(folder, work, summaries, config, about | {"sources": source.about()})


def _new_shards(
    adopted: dict[int, list[Clip]], clips: list[Clip], most: int
) -> dict[int, list[Clip]]:
    """Shards of the clips that no adopted one holds, by numbers that are free."""
    held = Counter(clip for shard in adopted.values() for clip in shard)
    left = []
    for clip in clips:
        if held[clip]:
            held[clip] -= 1
        else:
            left.append(clip)
    # Small sets in small shards, so that every CPU has work.
    size = max(1, min(most, len(left) // _LEAST_SHARDS))
    first = max(adopted, default=-1) + 1
    return {first + n: left[i : i + size] for n, i in enumerate(range(0, len(left), size))}


def _reuse(
    folder: Path, manifest: dict[str, Any], source: Mix, settings: dict[str, Any]
) -> Outcome:
    """Reuse the triplets; settings that change none of them are updated in the manifest."""
    sources = {
        name: {**manifest["sources"][name], **about} for name, about in source.about().items()
    }
    new = {**manifest, "sources": sources, "settings": settings}
    if new != manifest:
        write_manifest(folder, new)
    return Outcome(
        folder, new["counts"], new["digest"], reused=True, version=int(manifest["version"])
    )


def _run(
    shards: dict[int, list[Clip]], config: PreprocessConfig, work: WorkFolder, source: Source
) -> Iterator[dict[str, Any]]:
    """Yield a summary a clip as Ray Data finishes shards."""
    if not shards:
        return
    start_ray()
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    items = [{"number": n, "clips": [c.to_json() for c in clips]} for n, clips in shards.items()]
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would report beside our progress
    dataset: Any = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_BLOCKS))
    arguments = {"config": config, "folder": str(work.path), "source": source}
    # Ray Data repeats a dead worker's task without end: most deaths are not the clip's fault, and
    # `attempts` counts the clips that kill workers.
    if uses_models(config):
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        dataset = dataset.flat_map(
            ModelShards,
            fn_constructor_kwargs=arguments,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, gpus or cpus - 1)),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
    else:
        dataset = dataset.flat_map(_shard_task, fn_kwargs=arguments, num_cpus=1)
    for row in dataset.iter_rows():
        yield json.loads(row["summary"])


def _shard_task(
    row: dict[str, Any], config: PreprocessConfig, folder: str, source: Source
) -> list[dict[str, str]]:
    clips = [Clip.from_json(text) for text in row["clips"]]
    summaries = process_shard(row["number"], clips, source, config, WorkFolder(Path(folder)))
    return [{"summary": json.dumps(summary)} for summary in summaries]


def _check_output(output: str) -> Path:
    # Where a link leads: the link itself must not be replaced by a folder.
    folder = Path(os.path.realpath(output))
    if folder.is_file():
        raise UserError(f"--output: {folder} is a file")
    # Other programs have a manifest.json, too.
    ours = {"work_key", "digest"} <= read_finished(folder).keys()
    if folder.is_dir() and not ours:
        others = [p.name for p in folder.iterdir() if p.name != "rejected.parquet"]
        if others:
            raise UserError(
                f"--output: {folder} holds something else than triplets ({sorted(others)[0]}); "
                f"give a new folder"
            )
    return folder


def _read_done(work: WorkFolder, shards: dict[int, list[Clip]]) -> list[dict[str, Any]]:
    done = [work.done / f"part-{n:05d}.json" for n in shards]
    return [summary for path in done if path.exists() for summary in json.loads(path.read_text())]


def _check_complete(clips: list[Clip], summaries: list[dict[str, Any]]) -> None:
    """Check that every clip is there once: published triplets miss none and hold none twice."""
    wanted = Counter(clip.digest() for clip in clips)
    found = Counter(summary["clip_digest"] for summary in summaries)
    if wanted != found:
        missing, extra = wanted - found, found - wanted
        raise RuntimeError(
            f"{missing.total()} clips are missing and {extra.total()} too many among the finished "
            f"shards; nothing was published"
        )


def _finish(
    folder: Path,
    work: WorkFolder,
    summaries: list[dict[str, Any]],
    config: PreprocessConfig,
    about: dict[str, Any],
) -> Outcome:
    """Write the rejected clips and the manifest, and give the folder its name."""
    for part in work.triplets.glob(f".*{UNFINISHED}"):
        part.unlink()  # of workers that were killed
    counts = _counts(summaries)
    rejected = [s for s in summaries if s["stage"]]
    table = [{k: s[k] for k in REJECTED_SCHEMA.names} for s in rejected]
    table.sort(key=lambda row: (row["path"], row["clip_id"]))
    pq.write_table(
        pa.Table.from_pylist(table, schema=REJECTED_SCHEMA), work.path / "rejected.parquet"
    )
    digest = digest_of(row for s in summaries for row in s["rows"])
    share = len(rejected) / max(1, len(summaries))
    if share > config.max_rejected_share or not counts["triplets"]:
        failed = _set_aside(folder, work)
        too_many = (
            f", more than max_rejected_share={config.max_rejected_share:g} allows"
            if share > config.max_rejected_share
            else ", and no triplet is left"
        )
        failure = (
            f"{len(rejected)} of {len(summaries)} clips were rejected ({share:.0%}){too_many}; "
            f"most: {next(iter(counts['reasons']), 'none')}; all of them: "
            f"{failed / 'rejected.parquet'}"
        )
        return Outcome(failed, counts, digest, failure=failure)
    write_examples(work.path, config.example_images)
    before = read_finished(folder)
    same = (before.get("digest"), before.get("work_key")) == (digest, about["work_key"])
    version = int(before.get("version", 0)) + (0 if same else 1)
    changed = changes(before.get("made_from", {}), about["made_from"])
    sources = {
        name: {**known, **counts["sources"].get(name, {})}
        for name, known in about["sources"].items()
    }
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "digest": digest,
        "version": version,
        "changed": changed,
        "counts": counts,
        **about,
        "sources": sources,
    }
    write_manifest(work.path, manifest)
    replace_folder(work.path, folder)
    # Only now: after a kill before this line the manifest is there, and nothing is made again.
    shutil.rmtree(folder / work.attempts.name)
    # Unfinished work for other settings, or for this folder as it was, has nowhere to go.
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * _KEY_LETTERS}"):
        shutil.rmtree(left, ignore_errors=True)
    return Outcome(folder, counts, digest, version=version, changed=tuple(changed))


def _set_aside(folder: Path, work: WorkFolder) -> Path:
    """Write the list of rejected clips beside the output; the next run begins with the rest.

    Shards with a rejected clip are made again, because the cause may be repaired by then.
    """
    target = (
        folder
        if not (folder / "manifest.json").exists()
        else folder.with_name(f"{folder.name}.failed")
    )
    target.mkdir(parents=True, exist_ok=True)
    move(work.path / "rejected.parquet", target / "rejected.parquet")
    for done in list(work.done.glob("part-*.json")):
        if any(summary["stage"] for summary in json.loads(done.read_text())):
            done.unlink()
            for file in work.triplets.glob(f"{done.stem}-*.parquet"):
                file.unlink()
    if any(work.done.iterdir()):
        shutil.rmtree(work.attempts)
    else:
        shutil.rmtree(work.path)
    return target


def _counts(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    kept = [s for s in summaries if not s["stage"]]
    triplets = sum(len(s["rows"]) for s in kept)
    reasons = Counter(f"{s['stage']}: {s['reason']}" for s in summaries if s["stage"])
    left_out: Counter[str] = Counter()
    for summary in summaries:
        left_out.update(summary["left_out"])
    splits: dict[str, dict[str, int]] = {}
    for split in ("train", "heldout"):
        mine = [s for s in kept if s["split"] == split]
        splits[split] = {
            "recordings": len({s["recording_id"] for s in mine}),
            "clips": len(mine),
            "triplets": sum(len(s["rows"]) for s in mine),
        }
    sources = {
        name: {
            "clips": sum(s["source"] == name for s in summaries),
            "kept": sum(s["source"] == name for s in kept),
            "triplets": sum(len(s["rows"]) for s in kept if s["source"] == name),
        }
        for name in sorted({s["source"] for s in summaries})
    }
    return {
        "read": len(summaries),
        "kept": len(kept),
        "rejected": len(summaries) - len(kept),
        "triplets": triplets,
        "splits": splits,
        "sources": sources,
        "reasons": dict(reasons.most_common()),
        "windows_left_out": dict(left_out.most_common()),
        "tasks": len({task for s in kept for task in s["tasks"]}),
        "assumed_focal": sum(s["assumed_focal"] for s in kept),
        "visible_share": sum(s["visible"] for s in kept) / max(1, triplets),
        "moving_share": sum(s["moving"] for s in kept) / max(1, triplets),
    }
