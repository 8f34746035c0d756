"""Unit costs of the suite ``offline``: of a frame, and of an encoder whose features are pooled."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.cost_units import fit_seconds, key_of, known_or, timed, together
from dynaflip.platform.evaluation.encoders_under_test import Encoder
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import OfflineData
from dynaflip.platform.evaluation.offline_features import feature_batches
from dynaflip.platform.evaluation.offline_plan import OfflinePlan
from dynaflip.platform.evaluation.offline_worker import FeatureJob

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
IMAGES = 16  # that unit costs are measured on


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


def title_of(data: OfflineData, plan: OfflinePlan) -> str:
    """Title of a table: the data that policies learn from and are tested on."""
    return (
        f"Policies on {data.name}: {len(data.train)} episodes to learn from, {len(data.heldout)} "
        f"held out, under {len(plan.conditions)} conditions"
    )


def frame_costs(config: OfflineConfig, data: OfflineData, plan: OfflinePlan) -> FrameCosts:
    """Of the data set's frames, from the file or measured now."""
    (job,) = feature_batches(config, replace(data, train=[], heldout=data.heldout[:1]), plan, [])
    names = [one.name for one in plan.conditions]
    key = key_of("frames", [data.source.path, config.image_px, len(job.episode.frames), names])
    values = known_or(key, lambda: together(ONE_THREAD, _measure_frames, job))
    return FrameCosts(**values)


def encoder_costs(config: OfflineConfig, data: OfflineData, encoder: Encoder) -> EncoderCosts:
    """Of an encoder whose features are pooled, from the file or measured now."""
    recipe: list[Any] = [config.head, config.settings_of_head(), config.image_px]
    if encoder.folder is not None:
        described = json.loads((Path(encoder.folder) / "config.json").read_text())
        recipe += [described[k] for k in ("preprocessing", "image_architecture", "model")]
    number, widths = inputs_like(data)
    settings = (config.head, config.settings_of_head())
    values = known_or(
        key_of("offline policy", [*recipe, number, widths]),
        lambda: together(
            ONE_THREAD, _measure_encoder, encoder, config.image_px, settings, number, widths
        ),
    )
    return EncoderCosts(**values)


def inputs_like(data: OfflineData) -> tuple[int, tuple[int, int, int]]:
    """Number of training frames; widths of action and proprioception, and number of cameras."""
    first = data.train[0]
    number = sum(len(episode.frames) for episode in data.train)
    return number, (first.actions.shape[1], first.proprioception.shape[1], len(first.clips))


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
        images = rng.integers(0, 256, (IMAGES, image_px, image_px, 3), np.uint8)
        width = features_of(network, images).shape[1]
        encode_s = timed(lambda: features_of(network, images))[1] / IMAGES
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
