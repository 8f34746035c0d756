"""Recordings to a triplet folder, on Ray Data.

The source is listed while its first clips are in work (:mod:`.listing`). Ray Data runs the stages
(:mod:`.stage_graph`) over shards of clips. The last one writes a shard's Parquet file and then its
clips' summaries, so an interrupted job resumes. When all are done, :mod:`.publish` compacts them to
large files, and the folder or the bucket's prefix shows the new set in one moment
(:mod:`.destination`).
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

from dynaflip.errors import UserError
from dynaflip.files import file_lock
from dynaflip.platform.config_loader import to_dict
from dynaflip.platform.free_memory import give_back, share_arenas
from dynaflip.platform.paths import home
from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.batches import forget
from dynaflip.platform.triplets.clips import TEMPORARY_STAGES, content_hash
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.destination import Destination, destination_of
from dynaflip.platform.triplets.flow.tracker_3d_checks import AdapterWatch
from dynaflip.platform.triplets.ledger import Ledger
from dynaflip.platform.triplets.listing import Listing, Shard
from dynaflip.platform.triplets.model_hosts import ModelHosts
from dynaflip.platform.triplets.models.loading import (
    check_models,
    digests_of_models,
    stage_names,
)
from dynaflip.platform.triplets.progress import Progress
from dynaflip.platform.triplets.publish import Outcome, publish
from dynaflip.platform.triplets.ray_tasks import cluster_cpus
from dynaflip.platform.triplets.report.cautions import small_set_lines
from dynaflip.platform.triplets.reuse import (
    can_adopt,
    finished_work,
    read_finished,
    temporary_rejections,
    without_input,
    work_key,
    work_of,
    write_manifest,
)
from dynaflip.platform.triplets.sources.formats import Mix, open_sources
from dynaflip.platform.triplets.stage_graph import run_stages
from dynaflip.platform.triplets.store_watch import StoreWatch
from dynaflip.platform.triplets.work_folder import (
    WorkFolder,
    read_stored,
    stored_clip,
)


def preprocess(config: PreprocessConfig, output: str) -> Outcome:
    """Make a triplet folder of a source; finished work is reused.

    Args:
        config: settings; ``source.path`` is absolute.
        output: absolute path of the folder to make, or ``s3://bucket/prefix``.

    Raises:
        UserError: the source is missing or empty, or the output is something else.
        StoreError: a bucket refuses or does not answer.
    """
    share_arenas()
    with place.one_line_errors("--output"):
        target = destination_of(output)
        lock = home() / "locks" / f"{content_hash(str(target.folder))}.lock"
        with file_lock(lock, f"--output: another process is making {target.folder}"):
            return _preprocess(config, target)


def _preprocess(config: PreprocessConfig, target: Destination) -> Outcome:
    target.restore()
    source = open_sources(config)
    check_models(config)
    settings = to_dict(config)
    made_from = work_of(settings, digests_of_models(config))
    if target.recover(_work_name(target, made_from, config)):
        print(f"{target.folder} was whole when its run was stopped")
    finished = read_finished(target.folder)
    if "merged" in finished:
        names = " and ".join(one["folder"] for one in finished["merged"])
        raise UserError(
            f"--output: {target.folder} was merged from {names}: preprocess into one of them, and "
            f"merge again"
        )
    same = without_input(finished.get("made_from", {})) == made_from
    again = temporary_rejections(target.folder) if same else 0
    files = source.listing_digest()
    if same and not again and files and finished.get("listing") == files:
        return _reuse(target, finished, source, settings, files)
    if again:
        print(f"{again} clips were rejected for a temporary reason: they are tried again")
    work = target.work(_work_name(target, made_from, config))
    adopted = finished_work(target.folder) if can_adopt(finished, made_from) else None
    with closing(Ledger(work.shards, adopted)) as ledger:
        listing = Listing(source, ledger, config.clips_per_shard)
        _make_all(listing, ledger, config, work, source, made_from["models"])
        if not listing.clips:
            raise UserError(f"source.path: {config.source.path} holds no recording")
        made_from = {**made_from, "input": listing.digest()}
        key = work_key(made_from)
        files = files if source.is_listing_complete() else ""
        if finished.get("work_key") == key and not again:
            return _reuse(target, finished, source, settings, files)
        ledger.forget_others()
        if ledger.checksum() != (listing.clips, listing.checksum):
            raise RuntimeError(
                f"{listing.clips} clips are listed and {ledger.checksum()[0]} done, and they are "
                f"not the same ones; nothing was published; delete {work.path} and run again"
            )
        about = {"settings": settings, "made_from": made_from, "work_key": key, "listing": files}
        return publish(target, work, ledger, config, about | {"sources": source.about()})


def _work_name(target: Destination, made_from: dict[str, Any], config: PreprocessConfig) -> str:
    """Key of the work folder: of all but the input, which is known when it is listed.

    It depends on the set that clips are adopted from as well, and on the size of shards.
    """
    finished = read_finished(target.folder)
    depends_on = [work_key(made_from), str(finished.get("work_key", ""))]
    # The last, so that a set in a bucket is never written over.
    depends_on += [str(config.clips_per_shard), str(finished.get("files", ""))]
    return content_hash(*depends_on)


def _make_all(
    listing: Listing,
    ledger: Ledger,
    config: PreprocessConfig,
    work: WorkFolder,
    source: Mix,
    models: dict[str, str],
) -> None:
    """Make the clips that are listed and not done; the ledger has all of them then."""
    progress = Progress("triplets")
    watch = AdapterWatch(config.track.tracker)
    stores = StoreWatch(one.path for one in config.sources or (config.source,))
    ledger.note_shards(n for n in place.each_name(work.shards) if n.endswith(".json"))
    forget(work.attempts, stage_names(config))
    # Closed at once where a job ends early: a thread lists meanwhile.
    with closing(ModelHosts()) as hosts, closing(listing.waves(cluster_cpus)) as waves:
        for wave in waves:
            progress.expect(listing.clips, more=not listing.ended)
            progress.update(listing.claimed(), earlier=True)
            names = _take_finished(wave, work, ledger, progress)
            missing = {s.name: list(s.clips) for s in wave if s.name not in names}
            if missing:
                made = run_stages(missing, config, work, source, models, progress, hosts)
                with closing(made):
                    for summary in made:
                        watch.see(summary["stage"], summary["reason"])
                        stores.see(summary["stage"])
                        ledger.add([stored_clip(summary, work.shards)])
                        progress.update([summary["stage"]])
            give_back()
    progress.expect(listing.clips, more=False)
    progress.update(listing.claimed(), earlier=True)
    progress.close()


def _take_finished(
    wave: list[Shard], work: WorkFolder, ledger: Ledger, progress: Progress
) -> set[str]:
    """Give the ledger the clips of shards that an earlier run made; names of these shards.

    Args:
        wave: shards that were listed.
        work: that folder.
        ledger: takes the clips; it has the names of the folder's files.
        progress: is told of them.
    """
    done = [p for s in wave if ledger.has_shard((p := work.shard_summaries(s.name)).name)]
    names = set()
    for path, text in zip(done, place.read_texts(done), strict=True):
        clips = read_stored(text, work.shards)
        stages = [clip.summary["stage"] for clip in clips]
        if not TEMPORARY_STAGES.intersection(stages):  # otherwise the shard is made again
            names.add(path.stem)
            ledger.add(clips)
            progress.update(stages, earlier=True)
    return names


def _reuse(
    target: Destination,
    manifest: dict[str, Any],
    source: Mix,
    settings: dict[str, Any],
    listing: str,
) -> Outcome:
    """Reuse the triplets; settings that change none of them are updated in the manifest."""
    target.tidy()  # an earlier run was killed just before it did
    sources = {
        name: {**manifest["sources"][name], **about} for name, about in source.about().items()
    }
    new = {**manifest, "sources": sources, "settings": settings, "listing": listing}
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
