"""``--dry-run`` of the suite ``offline``: images to encode, policies to fit, and how long it takes.

Which episodes, frames and conditions is the suite's own plan, and features that are cached cost
nothing. Policies are fitted anew each time.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.cost_table import makespan, span, time_section
from dynaflip.platform.evaluation.cost_units import (
    calibration_file,
    fit_seconds,
    key_of,
    known_or,
    timed,
    together,
)
from dynaflip.platform.evaluation.encoders_under_test import Encoder, resolve_encoders
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import OfflineData, read_offline
from dynaflip.platform.evaluation.offline_features import feature_batches
from dynaflip.platform.evaluation.offline_plan import OfflinePlan, plan_offline, with_no_image
from dynaflip.platform.evaluation.offline_worker import FeatureJob
from dynaflip.platform.evaluation.report.tables import Section

_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
_IMAGES = 16  # that unit costs are measured on


@dataclass(frozen=True)
class FrameCosts:
    """Of a frame through one camera; seconds."""

    decode_s: float
    perturb_s: float  # under a condition, the mean over them


@dataclass(frozen=True)
class EncoderCosts:
    """Of an encoder's architecture with a head; seconds."""

    encode_s: float  # an image
    fit_s: float  # a policy, its features at hand


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
    from dynaflip.eval.policies.registry import head_settings

    head_settings(config.head, config.settings_of_head())
    if scales_of(config.readout, config.settings_of_readout()) is not None:
        raise UserError(
            f"--dry-run: of the suite offline, readout {config.readout} is not estimated"
        )
    data = read_offline(config)
    plan = plan_offline(config, data)
    for note in data.notes:
        print(note, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tested = with_no_image(data, resolve_encoders(config, Path(folder)))
        fits = [(one.name, one.encoder(seed)) for one in tested for seed in range(config.seeds)]
        batches = [j for j in feature_batches(config, data, plan, tested) if j.wanted]
        work = OfflineWork(batches, fits, _images(data, plan, [one for _, one in fits], batches))
        frames = _frame_costs(config, data, plan)
        encoders = {one.digest: _encoder_costs(config, data, one) for _, one in fits}
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
    heldout = len(data.heldout)
    title = (
        f"Policies on {data.name}: {len(data.train)} episodes to learn from, {heldout} held out, "
        f"under {len(plan.conditions)} conditions"
    )
    section = Section(title, [], ("encoder", "policies", "images to encode", "images cached"))
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


def _frame_costs(config: OfflineConfig, data: OfflineData, plan: OfflinePlan) -> FrameCosts:
    (job,) = feature_batches(config, replace(data, train=[], heldout=data.heldout[:1]), plan, [])
    names = [one.name for one in plan.conditions]
    key = key_of("frames", [data.source.path, config.image_px, len(job.episode.frames), names])
    values = known_or(key, lambda: together(_ONE_THREAD, _measure_frames, job))
    return FrameCosts(**values)


def _encoder_costs(config: OfflineConfig, data: OfflineData, encoder: Encoder) -> EncoderCosts:
    recipe: list[Any] = [config.head, config.settings_of_head(), config.image_px]
    if encoder.folder is not None:
        described = json.loads((Path(encoder.folder) / "config.json").read_text())
        recipe += [described[k] for k in ("preprocessing", "image_architecture", "model")]
    first = data.train[0]
    number = sum(len(episode.frames) for episode in data.train)
    widths = (first.actions.shape[1], first.proprioception.shape[1], len(first.clips))
    settings = (config.head, config.settings_of_head())
    values = known_or(
        key_of("offline policy", [*recipe, number, widths]),
        lambda: together(
            _ONE_THREAD, _measure_encoder, encoder, config.image_px, settings, number, widths
        ),
    )
    return EncoderCosts(**values)


def _measure_frames(job: FeatureJob) -> FrameCosts:
    from dynaflip.eval.image_perturbations import perturb
    from dynaflip.platform.evaluation.offline_worker import decode_frames
    from dynaflip.platform.triplets.clips import ClipRejected

    try:
        first = replace(job.episode, frames=job.episode.frames[:1])
        decode_frames(job.source, first, job.image_px)  # imports what decodes
        images, decode_s = timed(lambda: decode_frames(job.source, job.episode, job.image_px))
    except ClipRejected as error:
        raise UserError(f"source: episode {job.episode.index}: {error.reason}") from None
    number = len(job.episode.frames) * len(job.episode.clips)

    def show() -> None:
        for values in job.values.values():
            for camera, one in enumerate(images):
                perturb(one, values, job.episode.frames, camera)

    perturb_s = timed(show)[1]
    return FrameCosts(decode_s / number, perturb_s / number / len(job.values))


def _measure_encoder(
    encoder: Encoder,
    image_px: int,
    settings: tuple[str, dict[str, Any]],
    number: int,
    widths: tuple[int, int, int],
) -> EncoderCosts:
    import numpy as np
    import torch

    from dynaflip.eval.policies.base import Demonstrations
    from dynaflip.eval.policies.encoder_policy import features_of
    from dynaflip.eval.policies.registry import head_settings, policy_head
    from dynaflip.platform.evaluation.encoders_under_test import load

    torch.set_num_threads(1)
    (head, given), (actions, states, cameras) = settings, widths
    rng, encode_s, width = np.random.default_rng(0), 0.0, 0
    if encoder.folder is not None:
        network = load(encoder)
        images = rng.integers(0, 256, (_IMAGES, image_px, image_px, 3), np.uint8)
        width = features_of(network, images).shape[1]
        encode_s = timed(lambda: features_of(network, images))[1] / _IMAGES
    shown = Demonstrations(
        rng.standard_normal((number, width * cameras), np.float32),
        rng.standard_normal((number, states), np.float32),
        rng.uniform(-1, 1, (number, actions)).astype(np.float32),
        np.arange(number) // 10,
    )
    _, fit_s = fit_seconds(
        head,
        given,
        lambda some: policy_head(head).fit(
            shown, head_settings(head, some), use_proprioception=states > 0, seed=0
        ),
    )
    return EncoderCosts(encode_s, fit_s)
