"""Publication of a triplet folder: compaction, index, counts, and then manifest and name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dynaflip.files import UNFINISHED
from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.compaction import compact, plan_parts, read_index
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.destination import Destination
from dynaflip.platform.triplets.digest import digest_of
from dynaflip.platform.triplets.folder_index import INDEX, write_index
from dynaflip.platform.triplets.place import Place
from dynaflip.platform.triplets.report.cautions import small_set_lines
from dynaflip.platform.triplets.report.overlays import write_examples
from dynaflip.platform.triplets.reuse import (
    Adopted,
    changes,
    link_parts,
    read_finished,
)
from dynaflip.platform.triplets.schema import REJECTED_SCHEMA, SCHEMA_VERSION
from dynaflip.platform.triplets.split import share_for_two
from dynaflip.platform.triplets.work_folder import StoredClip, WorkFolder

Summary = Mapping[str, Any]

_SHOWN_LEFT_OUT = 3  # windows a reason


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
        notes: what the set is too small for.
    """

    folder: Place
    counts: dict[str, Any]
    digest: str
    reused: bool = False
    failure: str = ""
    version: int = 1
    changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def publish(
    target: Destination,
    work: WorkFolder,
    stored: list[StoredClip],
    adopted: Adopted,
    config: PreprocessConfig,
    about: dict[str, Any],
) -> Outcome:
    """Finish a work folder whose clips are all done, and give it its name.

    Args:
        target: where it goes.
        work: of the shards.
        stored: every clip, the adopted ones first.
        adopted: those of them that the folder of that name holds.
        config: settings.
        about: entries of the manifest: settings, made_from, work_key, sources.
    """
    summaries = [clip.summary for clip in stored]
    counts = _counts(summaries)
    digest = digest_of(row for s in summaries for row in s["rows"])
    _write_rejected(work, summaries)
    if failure := _failure(counts, config.max_rejected_share):
        failed = _set_aside(target, work)
        failure += f"; all of them: {failed / 'rejected.parquet'}"
        return Outcome(failed, counts, digest, failure=failure)
    parts, index = _compact(work, stored, adopted, config, about["work_key"])
    examples = work.path / "pictures" / "examples.png"
    write_examples([work.triplets / name for name in parts], examples, config.example_images)
    before = read_finished(target.folder)
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
        "index": index,
        **about,
        "sources": sources,
    }
    target.publish(work, manifest, parts)
    notes = tuple(small_set_lines(manifest))
    return Outcome(
        target.folder, counts, digest, version=version, changed=tuple(changed), notes=notes
    )


def _compact(
    work: WorkFolder,
    stored: list[StoredClip],
    adopted: Adopted,
    config: PreprocessConfig,
    made_by: str,
) -> tuple[list[str], dict[str, Any]]:
    """Write large Parquet files and their index; the files' names, and the index's summary."""
    link_parts(adopted, work)
    made = stored[len(adopted.clips) :]
    parts = plan_parts([*adopted.loose(), *made], config.part_mb * 2**20, made_by)
    compact(parts, work)
    names = {part.name for part in parts} | {done.stem for done in adopted.parts}
    _remove_others(work, names)
    rejected = [clip.summary for clip in stored if clip.file is None]
    place.write(work.done / "rejected.json", json.dumps({"clips": rejected}))
    index = read_index(work)
    rows = sum(len(clip.summary["rows"]) for clip in stored)
    if pc.sum(index.clips["rows"]).as_py() != rows:
        raise RuntimeError(
            f"{work.triplets} holds {pc.sum(index.clips['rows'])} triplets instead of {rows}; "
            f"nothing was published; delete {work.path} and run again"
        )
    files = [f"{name}.parquet" for name in sorted(names)]
    return files, write_index(work.path / INDEX, index)


def _remove_others(work: WorkFolder, names: set[str]) -> None:
    """Remove files of workers that were killed, and of another size of parts."""
    for name in place.names(work.done):
        if name.startswith("part-") and name.removesuffix(".json") not in names:
            (work.done / name).unlink()
    if work.parts is None and isinstance(work.triplets, Path):  # not another set's, too
        for file in work.triplets.iterdir():
            if file.stem not in names or file.name.endswith(UNFINISHED):
                file.unlink()


def _write_rejected(work: WorkFolder, summaries: Sequence[Summary]) -> None:
    table = [{k: s[k] for k in REJECTED_SCHEMA.names} for s in summaries if s["stage"]]
    table.sort(key=lambda row: (row["path"], row["clip_id"]))
    with place.new_file(work.path / "rejected.parquet") as file:
        pq.write_table(pa.Table.from_pylist(table, schema=REJECTED_SCHEMA), file)


def _failure(counts: dict[str, Any], max_rejected_share: float) -> str:
    """Why there is no triplet folder, or ""."""
    share = counts["rejected"] / max(1, counts["read"])
    if share > max_rejected_share:
        why = f", more than max_rejected_share={max_rejected_share:g} allows"
    elif not counts["triplets"]:
        why = ", and no triplet is left"
    else:
        return ""
    return (
        f"{counts['rejected']} of {counts['read']} clips were rejected ({share:.0%}){why}; "
        f"most: {next(iter(counts['reasons']), 'none')}"
    )


def _set_aside(target: Destination, work: WorkFolder) -> Place:
    """Write the list of rejected clips beside the output; the next run begins with the rest.

    Shards with a rejected clip are made again, because the cause may be repaired by then.
    """
    folder = target.for_failures()
    rejected = (work.path / "rejected.parquet").read_bytes()
    place.write(folder / "rejected.parquet", rejected)
    (work.path / "rejected.parquet").unlink()
    names = place.names(work.shards)
    done = [work.shards / name for name in names if name.endswith(".json")]
    whole = 0
    for file, text in zip(done, place.read_texts(done), strict=True):
        if any(summary["stage"] for summary in json.loads(text)["clips"]):
            file.unlink()
            for name in names:
                if name.startswith(f"{file.stem}-") and name.endswith(".parquet"):
                    (work.shards / name).unlink()
        else:
            whole += 1
    place.remove(work.attempts if whole else work.path)
    return folder


def _counts(summaries: Sequence[Summary]) -> dict[str, Any]:
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
            "interpolated": sum(s["interpolated"] for s in kept if s["source"] == name),
        }
        for name in sorted({s["source"] for s in summaries})
    }
    recordings = {s["recording_id"] for s in kept}
    return {
        "read": len(summaries),
        "kept": len(kept),
        "rejected": len(summaries) - len(kept),
        "triplets": triplets,
        "splits": splits,
        "share_for_two": share_for_two(recordings) if splits["heldout"]["recordings"] < 2 else None,
        "sources": sources,
        "short_sides_px": _short_sides(kept),
        "reasons": dict(reasons.most_common()),
        "windows_left_out": dict(left_out.most_common()),
        "windows_left_out_at": _some_left_out(summaries),
        "tasks": len({task for s in kept for task in s["tasks"]}),
        "assumed_focal": sum(s["assumed_focal"] for s in kept),
        "visible_share": sum(s["visible"] for s in kept) / max(1, triplets),
        "moving_share": sum(s["moving"] for s in kept) / max(1, triplets),
    }


def _some_left_out(summaries: Sequence[Summary]) -> dict[str, list[dict[str, Any]]]:
    """The first windows that were left out, by reason: file, and from when to when in it."""
    found: dict[str, list[tuple[str, str, float, float]]] = {}
    for summary in summaries:
        # Clips that were made before November 2026 do not say where.
        for reason, (at_s, window_s) in summary.get("left_out_at", {}).items():
            some = found.setdefault(reason, [])
            some.append((summary["source"], summary["path"], at_s, at_s + window_s))
            some.sort()  # so that they depend on the clips alone, not on their order
            del some[_SHOWN_LEFT_OUT:]
    names = ("source", "path", "from_s", "to_s")
    return {
        reason: [dict(zip(names, one, strict=True)) for one in some]
        for reason, some in found.items()
    }


def _short_sides(kept: Sequence[Summary]) -> dict[str, dict[str, int]]:
    """Clips by source and by the short side of their stored images, in pixels."""
    out: dict[str, Counter[int]] = {}
    for summary in kept:
        out.setdefault(summary["source"], Counter())[summary["short_side_px"]] += 1
    return {
        name: {str(px): clips for px, clips in sorted(sides.items())}
        for name, sides in sorted(out.items())
    }
