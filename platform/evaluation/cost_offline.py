"""``--dry-run`` of the suite ``offline``: images to encode, policies to fit, and how long it takes.

Which episodes, frames and conditions is the suite's own plan, and features that are cached cost
nothing. Policies are fitted anew each time.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynaflip.platform.evaluation import cost_offline_tokens
from dynaflip.platform.evaluation.cost_offline_units import (
    EncoderCosts,
    FrameCosts,
    encoder_costs,
    frame_costs,
    title_of,
)
from dynaflip.platform.evaluation.cost_table import makespan, span, time_section
from dynaflip.platform.evaluation.cost_units import calibration_file
from dynaflip.platform.evaluation.encoders_under_test import Encoder, resolve_encoders
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import OfflineData, read_offline
from dynaflip.platform.evaluation.offline_features import feature_batches
from dynaflip.platform.evaluation.offline_plan import OfflinePlan, plan_offline, with_no_image
from dynaflip.platform.evaluation.offline_worker import FeatureJob
from dynaflip.platform.evaluation.report.tables import Section


@dataclass(frozen=True)
class OfflineWork:
    """Work of an offline evaluation."""

    batches: list[FeatureJob]  # episodes whose features are not cached
    fits: list[tuple[str, Encoder]]  # of each policy: name of its entry, and its encoder
    images: dict[str, tuple[int, int]]  # digest of an encoder → images to encode, cached ones


def dry_run(config: OfflineConfig, *, gpu_images_per_s: float) -> list[Section]:
    """Tables of what would run and how long it takes; writes nothing but unit costs.

    Raises:
        UserError: as the evaluation itself would raise.
    """
    from dynaflip.eval.policies.frozen_fit import scales_of
    from dynaflip.eval.policies.registry import check_reads, head_settings, readout_settings

    head_settings(config.head, config.settings_of_head())
    readout_settings(config.readout, config.settings_of_readout())
    check_reads(config.head, config.readout)
    data = read_offline(config)
    plan = plan_offline(config, data)
    for note in data.notes:
        print(note, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tested = with_no_image(data, resolve_encoders(config, Path(folder)))
        if scales_of(config.readout, config.settings_of_readout()) is not None:
            return cost_offline_tokens.sections(config, data, plan, tested, gpu_images_per_s)
        fits = [(one.name, one.encoder(seed)) for one in tested for seed in range(config.seeds)]
        batches = [j for j in feature_batches(config, data, plan, tested) if j.wanted]
        work = OfflineWork(batches, fits, _images(data, plan, [one for _, one in fits], batches))
        frames = frame_costs(config, data, plan)
        encoders = {one.digest: encoder_costs(config, data, one) for _, one in fits}
    return [
        _jobs_section(config, data, plan, work),
        _work_section(work, frames, encoders),
        time_section(
            ("features", "fits"),
            lambda cores, rate: _stages_s(work, frames, encoders, cores, rate),
            gpu_images_per_s,
            str(calibration_file()),
        ),
    ]


def _images(
    data: OfflineData, plan: OfflinePlan, encoders: Sequence[Encoder], batches: list[FeatureJob]
) -> dict[str, tuple[int, int]]:
    """Digest of an encoder → images to encode, and those whose features are cached."""
    episodes = [*data.train, *data.heldout]
    whole = sum(len(plan.of(e)) * len(e.frames) * len(e.clips) for e in episodes)
    wanted = {encoder.digest: 0 for encoder in encoders if encoder.folder is not None}
    for job in batches:
        for encoder, _ in job.wanted:
            wanted[encoder.digest] += len(job.episode.frames) * len(job.episode.clips)
    return {digest: (number, whole - number) for digest, number in wanted.items()}


def _stages_s(
    work: OfflineWork,
    frames: FrameCosts,
    encoders: Mapping[str, EncoderCosts],
    workers: int,
    gpu_images_per_s: float | None,
) -> tuple[float, float]:
    """Seconds of features and of fits on so many workers."""
    seconds, encoded = [], 0
    for job in work.batches:
        shown = len(job.episode.frames) * len(job.episode.clips)
        conditions = {name for _, name in job.wanted}
        one = shown * (frames.decode_s + len(conditions) * frames.perturb_s)
        if gpu_images_per_s is None:
            one += shown * sum(encoders[e.digest].encode_s for e, _ in job.wanted)
        encoded += shown * len(job.wanted)
        seconds.append(one)
    fitted = [encoders[encoder.digest].fit_s for _, encoder in work.fits]
    features_s = max(makespan(seconds, workers), encoded / (gpu_images_per_s or math.inf))
    return features_s, makespan(fitted, workers)


def _jobs_section(
    config: OfflineConfig, data: OfflineData, plan: OfflinePlan, work: OfflineWork
) -> Section:
    columns = ("encoder", "policies", "images to encode", "images cached")
    section = Section(title_of(data, plan), [], columns)
    seen: set[str] = set()
    for name in dict.fromkeys(name for name, _ in work.fits):
        digests = [encoder.digest for other, encoder in work.fits if other == name]
        counts = [work.images.get(digest, (0, 0)) for digest in {*digests} - seen]
        left, cached = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
        # Encoders of equal weights share their features.
        shared = " (those above)" if {*digests} <= seen else ""
        section.rows.append([name, str(len(digests)), f"{left}{shared}", str(cached)])
        seen |= {*digests}
    return section


def _work_section(
    work: OfflineWork, frames: FrameCosts, encoders: Mapping[str, EncoderCosts]
) -> Section:
    decoded = sum(len(job.episode.frames) * len(job.episode.clips) for job in work.batches)
    perturbed = sum(
        len(job.episode.frames) * len(job.episode.clips) * len({name for _, name in job.wanted})
        for job in work.batches
    )
    encoded = sum(left for left, _ in work.images.values())
    section = Section("Work that is not cached", [], ("", "number", "measured, of one core"))
    section.rows.append(["frames to decode", str(decoded), f"{span([frames.decode_s])} each"])
    perturb = f"{span([frames.perturb_s])} each"
    section.rows.append(["… to show under conditions, times", str(perturbed), perturb])
    with_image = [encoders[digest].encode_s for digest in work.images]
    section.rows.append(["images to encode", str(encoded), f"{span(with_image)} an image"])
    fit = f"{span([one.fit_s for one in encoders.values()], 0)} a policy"
    section.rows.append(["policies to fit", str(len(work.fits)), fit])
    return section
