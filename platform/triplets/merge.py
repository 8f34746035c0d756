"""Union of finished triplet folders, by the ids of their clips.

Nothing is made again: a Parquet file whose clips no other holds is linked or copied whole, and of
the others the clips that are new move to new files. The same folders give the same set in any
order. Memory holds about 300 bytes a clip.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from dynaflip.errors import UserError
from dynaflip.files import file_lock
from dynaflip.platform.paths import home
from dynaflip.platform.s3 import S3Path
from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.clips import content_hash
from dynaflip.platform.triplets.compaction import compact, plan_parts
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.counts import count
from dynaflip.platform.triplets.destination import Destination, destination_of
from dynaflip.platform.triplets.folder_index import parquet_files
from dynaflip.platform.triplets.ledger import Ledger
from dynaflip.platform.triplets.merged_manifest import union_entries, union_made_from
from dynaflip.platform.triplets.place import Place, place_of
from dynaflip.platform.triplets.publish import Outcome, finish, write_rejected
from dynaflip.platform.triplets.report.cautions import small_set_lines
from dynaflip.platform.triplets.reuse import changes, finished_work, read_finished, work_key
from dynaflip.platform.triplets.schema import TRIPLET_SCHEMA, read_manifest
from dynaflip.platform.triplets.work_folder import StoredClip, WorkFolder, read_stored

_FILES_AT_ONCE = 32
_SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class MergeInput:
    """A finished set that is merged."""

    name: str  # as the user gave it
    manifest: dict[str, Any]  # in today's form
    work: WorkFolder

    def clips(self, names: Sequence[str]) -> Iterator[tuple[str, list[StoredClip]]]:
        """Names of some of its files of summaries, and the clips of each."""
        for first in range(0, len(names), _FILES_AT_ONCE):
            some = names[first : first + _FILES_AT_ONCE]
            texts = place.read_texts([self.work.done / name for name in some])
            for name, text in zip(some, texts, strict=True):
                yield name, read_stored(text, self.work.triplets)


@dataclass
class Plan:
    """Clips that the union takes of which file.

    Args:
        whole: files of summaries, by input, whose clips are all taken: their Parquet files stay.
        loose: files of which only the clips at these places are taken.
        held: of every clip, by a hash of its id: a hash of its triplets, and its input.
        splits: of every recording, and its input.
        repeated: clips that a second input holds alike.
        dropped: clips whose triplets differ from the preferred ones.
    """

    whole: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    loose: dict[int, dict[str, list[int]]] = field(default_factory=lambda: defaultdict(dict))
    held: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    splits: dict[str, tuple[str, int]] = field(default_factory=dict)
    repeated: int = 0
    dropped: int = 0


def merge_folders(
    folders: Sequence[str], output: str, prefer: str = ""
) -> tuple[Outcome, list[str]]:
    """Make the union of finished triplet folders.

    Args:
        folders: absolute paths, or ``s3://bucket/prefix``.
        output: the same of the folder to make.
        prefer: one of the folders, whose triplets are taken where another's differ.

    Returns:
        The outcome, and lines about what was taken from where.

    Raises:
        UserError: a folder is no set of today's columns, or two contradict each other.
        StoreError: a bucket refuses or does not answer.
    """
    with place.one_line_errors("merge"):
        names = sorted({name.rstrip("/") for name in folders})
        _check_names(names, output, prefer.rstrip("/"))
        inputs = [_open(name) for name in names]
        first = names.index(prefer.rstrip("/")) if prefer else None
        _check_settings(inputs)
        target = destination_of(output)
        lock = home() / "locks" / f"{content_hash(str(target.folder))}.lock"
        with file_lock(lock, f"--output: another process is making {target.folder}"):
            return _merge(inputs, first, target)


def _check_names(names: list[str], output: str, prefer: str) -> None:
    if len(names) < 2:
        raise UserError("merge: give two or more triplet folders")
    if output.rstrip("/") in names:
        raise UserError(f"--output: {output} is one of the folders to merge; give a new one")
    if prefer and prefer not in names:
        raise UserError(f"--prefer: {prefer} is none of the folders: {', '.join(names)}")


def _open(name: str) -> MergeInput:
    read_manifest(name)  # refuses what is no triplet folder, or of another schema version
    folder = place_of(name)
    manifest, work = read_finished(folder), finished_work(folder)
    files = parquet_files(folder, manifest)
    done = {one.removesuffix(".json") for one in place.names(work.done) if one.startswith("part-")}
    again = f"run jobs/preprocess.py again with --output {name}"
    if not files or done != {file.stem for file in files}:
        raise UserError(
            f"merge: {name} was made by earlier code, or copied without its folder done; {again}"
        )
    with place.open_parquet(files[0]) as file:
        lacking = set(TRIPLET_SCHEMA.names) - set(file.schema_arrow.names)
    if lacking:
        raise UserError(
            f"merge: {name} was made by earlier code and lacks {', '.join(sorted(lacking))}; "
            f"{again}"
        )
    return MergeInput(name, manifest, work)


def _check_settings(inputs: list[MergeInput]) -> None:
    """Refuse what would make the union contradict itself."""
    weights: dict[str, tuple[float, str]] = {}
    first = inputs[0]
    for one in inputs:
        ours, theirs = (float(i.manifest["settings"]["heldout_share"]) for i in (first, one))
        if ours != theirs:
            raise UserError(
                f"merge: heldout_share is {ours:g} in {first.name} and {theirs:g} in {one.name}, "
                f"so that one trains on recordings that the other holds out; make one of them anew"
            )
        for source, about in one.manifest["sources"].items():
            weight = float(about.get("weight", 1.0))
            known, name = weights.setdefault(source, (weight, one.name))
            if known != weight:
                raise UserError(
                    f"merge: source {source} has weight {known:g} in {name} and {weight:g} in "
                    f"{one.name}; run jobs/preprocess.py on one of them with the other's, which "
                    f"makes no triplet anew"
                )


def _merge(
    inputs: list[MergeInput], first: int | None, target: Destination
) -> tuple[Outcome, list[str]]:
    target.restore()
    preferred = "" if first is None else str(inputs[first].manifest["digest"])
    made_from = union_made_from([one.manifest for one in inputs], preferred)
    key = work_key(made_from)
    finished = read_finished(target.folder)
    # A set in a bucket is never written over: see `destination`.
    work_name = content_hash(key, str(finished.get("files", "")))
    if target.recover(work_name):
        finished = read_finished(target.folder)
    if finished and "merged" not in finished:
        raise UserError(
            f"--output: {target.folder} holds triplets that were not merged; give a new folder"
        )
    if finished.get("work_key") == key:
        return _reuse(target, finished), []
    plan = _plan(inputs, first)
    work = target.work(work_name)
    names = _take(inputs, plan, work)
    with closing(Ledger(work.shards)) as ledger:
        files = sorted(f"{name}.json" for name in names)
        for _, clips in MergeInput("", {}, work).clips(files):
            ledger.add(clips)
        ledger.add(_rejected(inputs, plan))
        about = union_entries({one.name: one.manifest for one in inputs})
        about |= {"made_from": made_from, "work_key": key}
        write_rejected(work, ledger)
        counted, examples = count(ledger), PreprocessConfig().example_images
        outcome = finish(target, work, ledger, names, about, counted, examples)
    return outcome, _lines(inputs, plan)


def _reuse(target: Destination, finished: dict[str, Any]) -> Outcome:
    target.tidy()  # an earlier run was killed just before it did
    return Outcome(
        target.folder,
        finished["counts"],
        finished["digest"],
        reused=True,
        version=int(finished["version"]),
        notes=tuple(small_set_lines(finished)),
    )


def _plan(inputs: list[MergeInput], first: int | None) -> Plan:
    """Decide which clips are taken of which file.

    Files come in the order of their names, which are hashes of what they hold, so that the plan
    does not depend on the order of the inputs; the preferred input's come before all others.

    Raises:
        UserError: inputs hold other triplets of a clip, or other splits of a recording.
    """
    plan = Plan()
    conflicts: dict[tuple[int, int], list[str]] = defaultdict(list)
    for number, name, clips in _in_order(inputs, first):
        taken = []
        for at, clip in enumerate(clips):
            summary = clip.summary
            _note_split(inputs, plan, number, summary)
            rows = bytes.fromhex(content_hash(*sorted(summary["rows"])))
            clip_id = bytes.fromhex(content_hash(summary["clip_id"]))
            known = plan.held.get(clip_id)
            if known is None:
                plan.held[clip_id] = rows, number
                taken.append(at)
            elif known[0] == rows:
                plan.repeated += 1
            elif known[1] == first:
                plan.dropped += 1
            else:
                conflicts[known[1], number].append(summary["path"])
        if len(taken) == len(clips):
            plan.whole[number].append(name)
        elif taken:
            plan.loose[number][name] = taken
    if conflicts:
        raise UserError(_conflict(inputs, conflicts))
    return plan


def _in_order(
    inputs: list[MergeInput], first: int | None
) -> Iterator[tuple[int, str, list[StoredClip]]]:
    """The input, the name and the clips of every file of summaries, in the order of the plan."""
    files = sorted(
        (number != first, name, number)
        for number, one in enumerate(inputs)
        for name in place.names(one.work.done)
        if name.startswith("part-")
    )
    for begin in range(0, len(files), _FILES_AT_ONCE):
        some = files[begin : begin + _FILES_AT_ONCE]
        texts = place.read_texts([inputs[n].work.done / name for _, name, n in some])
        for (_, name, n), text in zip(some, texts, strict=True):
            yield n, name, read_stored(text, inputs[n].work.triplets)


def _note_split(
    inputs: list[MergeInput], plan: Plan, number: int, summary: dict[str, Any] | Any
) -> None:
    split = summary["split"]
    known, other = plan.splits.setdefault(summary["recording_id"], (split, number))
    if known != split:
        raise UserError(
            f"merge: {summary['path']} is in the split {known} of {inputs[other].name} and in "
            f"{split} of {inputs[number].name}: one of them has moved it "
            f"(join_near_duplicates); make one of them anew"
        )


def _conflict(inputs: list[MergeInput], conflicts: dict[tuple[int, int], list[str]]) -> str:
    """Other triplets of the same clips, in words."""
    (a, b), paths = min(conflicts.items())
    one, other = inputs[a], inputs[b]
    differ = changes(one.manifest["made_from"], other.manifest["made_from"])
    shown = [line for line in differ if not line.startswith("input:")][:_SHOWN_DIFFERENCES]
    why = "; ".join(shown) or "their recordings' captions, or settings of their sources"
    return (
        f"merge: {len(paths)} clips, such as {min(paths)}, have other triplets in {one.name} than "
        f"in {other.name} ({why}); say whose are taken: --prefer {one.name} or {other.name}"
    )


def _take(inputs: list[MergeInput], plan: Plan, work: WorkFolder) -> set[str]:
    """Give the work folder all of its Parquet files and summaries; their names."""
    there = set(place.names(work.done))
    names = {name.removesuffix(".json") for whole in plan.whole.values() for name in whole}
    for number, whole in sorted(plan.whole.items()):
        one = inputs[number].work
        missing = [name for name in whole if name not in there]
        for name in missing:
            file = f"{name.removesuffix('.json')}.parquet"
            _transfer(one.triplets / file, work.triplets / file)
        for name in missing:  # after its Parquet file: where it is, that is, too
            _transfer(one.done / name, work.done / name)
    part_bytes = PreprocessConfig().part_mb * 2**20
    for number, loose in sorted(plan.loose.items()):
        clips = [
            found[at] for name, found in inputs[number].clips(sorted(loose)) for at in loose[name]
        ]
        made_by = str(inputs[number].manifest["work_key"])
        names |= set(compact(plan_parts(clips, part_bytes, made_by), work))
    return names


def _transfer(file: Place, to: Place) -> None:
    """Copy a file to a folder or a bucket; within a file system or a bucket it is not read."""
    if isinstance(file, S3Path) == isinstance(to, S3Path):
        place.copy(file, to)
        return
    with place.local_copy(file) as local, place.new_file(to) as written:
        shutil.copyfile(local, written)


def _rejected(inputs: list[MergeInput], plan: Plan) -> list[StoredClip]:
    """Clips that no input has triplets of, each once."""
    found: dict[tuple[str, ...], str] = {}
    for one in inputs:
        names = [name for name in place.names(one.work.done) if name.startswith("rejected")]
        for _, clips in one.clips(names):
            for clip in clips:
                summary = clip.summary
                if bytes.fromhex(content_hash(summary["clip_id"])) in plan.held:
                    continue
                key = tuple(summary[name] for name in ("source", "path", "clip_id"))
                text = json.dumps(summary, sort_keys=True)
                found[key] = min(text, found.get(key, text))  # whatever their order
    return [StoredClip(json.loads(text), None) for _, text in sorted(found.items())]


def _lines(inputs: list[MergeInput], plan: Plan) -> list[str]:
    taken = [0] * len(inputs)
    for _, number in plan.held.values():
        taken[number] += 1
    lines = [
        f"{taken[number]:>8} clips of {one.name}: {len(plan.whole[number])} files whole, "
        f"{sum(map(len, plan.loose[number].values()))} clips moved to others"
        for number, one in enumerate(inputs)
    ]
    if plan.repeated:
        lines.append(f"{plan.repeated:>8} clips were in two folders, and are taken once")
    if plan.dropped:
        lines.append(f"{plan.dropped:>8} clips of other folders gave way to the preferred one's")
    differ = changes(*(inputs[n].manifest["made_from"] for n in (0, -1)))
    lines += [f"note: they differ in {line}" for line in differ if not line.startswith("input:")]
    return lines
