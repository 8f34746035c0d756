"""Publication of a triplet folder: compaction, index, counts, and then manifest and name."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.files import UNFINISHED
from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.compaction import compact, parts_of, read_indexes
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.counts import count
from dynaflip.platform.triplets.destination import Destination
from dynaflip.platform.triplets.folder_index import INDEX
from dynaflip.platform.triplets.index_writer import write_index
from dynaflip.platform.triplets.joined_splits import join_near_duplicates
from dynaflip.platform.triplets.ledger import Ledger
from dynaflip.platform.triplets.place import Place
from dynaflip.platform.triplets.report.cautions import small_set_lines
from dynaflip.platform.triplets.report.overlays import write_examples
from dynaflip.platform.triplets.reuse import (
    changes,
    finished_work,
    link_parts,
    read_finished,
)
from dynaflip.platform.triplets.schema import REJECTED_SCHEMA, SCHEMA_VERSION
from dynaflip.platform.triplets.work_folder import WorkFolder

_REJECTED_AT_ONCE = 2_000


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
    ledger: Ledger,
    config: PreprocessConfig,
    about: dict[str, Any],
) -> Outcome:
    """Finish a work folder whose clips are all done, and give it its name.

    Args:
        target: where it goes.
        work: of the shards.
        ledger: of every clip, those included that the folder of that name holds.
        config: settings.
        about: entries of the manifest: settings, made_from, work_key, sources, listing.
    """
    before = read_finished(target.folder).get("moved_recordings", {})
    moved = join_near_duplicates(work, ledger, config, before)
    about = {**about, "moved_recordings": moved} if moved else about
    counts, digest = count(ledger)
    write_rejected(work, ledger)
    if failure := _failure(counts, config.max_rejected_share):
        failed = _set_aside(target, work)
        failure += f"; all of them: {failed / 'rejected.parquet'}"
        return Outcome(failed, counts, digest, failure=failure)
    whole = ledger.whole_parts()
    link_parts(finished_work(target.folder), whole, work)
    parts = parts_of(ledger.to_place(), config.part_mb * 2**20, about["work_key"])
    names = {*whole, *compact(parts, work, ledger.summary_of)}
    return finish(target, work, ledger, names, about, (counts, digest), config.example_images)


def finish(
    target: Destination,
    work: WorkFolder,
    ledger: Ledger,
    names: set[str],
    about: dict[str, Any],
    counted: tuple[dict[str, Any], str],
    examples: int,
) -> Outcome:
    """Index the Parquet files of a set, write all else of it and then its manifest and name.

    Args:
        target: where it goes.
        work: that holds the files, their summaries and the table of rejected clips.
        ledger: of every clip.
        names: of the Parquet files, without suffix.
        about: as of :func:`publish`.
        counted: of the ledger: :func:`.counts.count`.
        examples: images of flow in ``pictures/examples.png``.
    """
    counts, digest = counted
    _remove_others(work, names)
    _write_rejected_summaries(work, ledger)
    try:
        indexes = read_indexes(work, ledger.index_of)
        summary = write_index(work.path / INDEX, indexes, counts["triplets"])
    except ValueError as error:
        raise RuntimeError(
            f"{work.triplets}: {error}; nothing was published; delete {work.path} and run again"
        ) from None
    files = [f"{name}.parquet" for name in sorted(names)]
    image = work.path / "pictures" / "examples.png"
    write_examples([work.triplets / name for name in files], image, examples)
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
        "index": summary,
        **about,
        "sources": sources,
    }
    target.publish(work, manifest, files)
    notes = tuple(small_set_lines(manifest))
    return Outcome(
        target.folder, counts, digest, version=version, changed=tuple(changed), notes=notes
    )


def _remove_others(work: WorkFolder, names: set[str]) -> None:
    """Remove files of workers that were killed, and of another size of parts."""
    for name in place.names(work.done):
        if name.removesuffix(".json") not in names:
            (work.done / name).unlink()
    if work.parts is None and isinstance(work.triplets, Path):  # not another set's, too
        for file in work.triplets.iterdir():
            if file.stem not in names or file.name.endswith(UNFINISHED):
                file.unlink()


def write_rejected(work: WorkFolder, ledger: Ledger) -> None:
    """Write ``rejected.parquet``."""
    summaries = ledger.summaries(rejected_only=True)
    path = work.path / "rejected.parquet"
    with place.new_file(path) as unfinished, pq.ParquetWriter(unfinished, REJECTED_SCHEMA) as file:
        while some := list(islice(summaries, _REJECTED_AT_ONCE)):
            rows = [{name: s[name] for name in REJECTED_SCHEMA.names} for s in some]
            file.write_table(pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA))


def _write_rejected_summaries(work: WorkFolder, ledger: Ledger) -> None:
    """Write ``done/rejected.json``, and ``rejected-N.json`` where they are many."""
    summaries = ledger.summaries(rejected_only=True)
    for number in count_from(0):
        some = list(islice(summaries, _REJECTED_AT_ONCE))
        if number and not some:
            return
        name = f"rejected-{number}.json" if number else "rejected.json"
        place.write(work.done / name, json.dumps({"clips": some}))


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
    parts: dict[str, list[str]] = defaultdict(list)  # by their shard
    for name in names:
        if name.endswith(".parquet"):
            parts[name.rpartition("-")[0]].append(name)
    whole = 0
    for file, text in zip(done, place.read_texts(done), strict=True):
        if any(summary["stage"] for summary in json.loads(text)["clips"]):
            file.unlink()
            for name in parts[file.stem]:
                (work.shards / name).unlink()
        else:
            whole += 1
    place.remove(work.attempts if whole else work.path)
    return folder
