"""Scores of the suite ``probes``: a trained model beside its initialisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig

if TYPE_CHECKING:
    from dynaflip.encoders.model import DynaFLIP
    from dynaflip.eval.labelled_frames import LabelledFrames
    from dynaflip.eval.metrics.probe_report import ProbeReport
    from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest


@dataclass(frozen=True)
class Pair:
    """A trained model and the same model before its first step."""

    trained: DynaFLIP
    initial: DynaFLIP
    info: dict[str, Any]
    volume: float  # the run's weights in the energy
    cosine: float

    @property
    def device(self) -> Any:
        """Where both models are."""
        return next(self.trained.parameters()).device


@dataclass(frozen=True)
class Probed:
    """Probes' scores and some of the images they were tested on."""

    report: ProbeReport
    views: LabelledFrames


def load_pair(folder: Path, backbone: str | None = None) -> Pair:
    """The model of an encoder's folder, and its initialisation rebuilt from its settings.

    Args:
        folder: of the encoder.
        backbone: the user's own class, where they have named one.
    """
    import torch

    from dynaflip.encoders.checkpoint import allowed_backbone, load_model
    from dynaflip.platform.evaluation.initialisation import initialisation_of
    from dynaflip.platform.training.config import PretrainConfig

    trained = load_model(folder, backbone=allowed_backbone(folder, backbone))
    info = trained.image.info
    saved = info.get("config", {}).get("objective", {})
    weights = {**dataclasses.asdict(PretrainConfig().objective), **saved}
    initial = initialisation_of(trained)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    volume, cosine = float(weights["volume"]), float(weights["cosine"])
    return Pair(trained.to(device), initial.to(device), info, volume, cosine)


def score_retrieval(pair: Pair, config: ProbeSuiteConfig) -> dict[str, dict[str, float]]:
    """Retrieval of both models over the same fixed gallery of held-out transitions."""
    from dynaflip.eval.retrieval import retrieval_report
    from dynaflip.platform.training.config import DataConfig
    from dynaflip.platform.training.data.caption_cache import caption_table
    from dynaflip.platform.training.data.collate import Collate
    from dynaflip.platform.training.data.gallery import gallery_batch
    from dynaflip.platform.training.data.index import read_index

    assert config.triplets is not None
    index = read_index(config.triplets)
    settings = pair.trained.config
    text = caption_table(lambda: index.captions, settings.language, digest=index.captions_digest)
    collate = Collate(DataConfig(), settings.image.image_px, text, seed=config.seed, augment=False)
    gallery = gallery_batch(index, collate, config.gallery_size)
    if gallery is None:
        raise UserError(
            f"--triplets: {config.triplets} holds out {index.counts['heldout']} transitions, "
            f"too few to retrieve among; preprocess more recordings"
        )
    return {
        name: retrieval_report(
            model, gallery, volume=pair.volume, cosine=pair.cosine, seed=config.seed
        )
        for name, model in (("trained", pair.trained), ("initial", pair.initial))
    }


def score_positions(
    pair: Pair,
    config: ProbeSuiteConfig,
    triplets: dict[str, Any],
    others: Sequence[EncoderUnderTest] = (),
) -> Probed:
    """Fit probes on unperturbed training recordings; test them on held-out and rendered ones."""
    import numpy as np

    from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
    from dynaflip.eval.labelled_frames import concatenate, embed, raw_pixels
    from dynaflip.eval.metrics.probe_report import score_probes
    from dynaflip.eval.plots import ONE_FACTOR, RECORDED
    from dynaflip.platform.evaluation.encoders_under_test import load
    from dynaflip.platform.evaluation.probe_frames import make_probe_frames
    from dynaflip.platform.evaluation.recordings import open_recordings, read_frames
    from dynaflip.platform.evaluation.report.tables import INITIAL, PIXELS, TRAINED

    assert config.data is not None
    recordings = open_recordings(config.data, triplets)
    number = config.probes.frames_per_episode
    frames = make_probe_frames(recordings, config.views, number, "views")
    train, views, factors = frames.train, frames.views, frames.single_factors
    heldout = [clip for clip in recordings.heldout if clip.task in frames.tasks]
    parts = [read_frames(recordings, heldout, number, RECORDED)] if heldout else []
    test = concatenate([*parts, views])
    alone = [*([RECORDED] if heldout else []), UNPERTURBED, ALL_FACTORS]
    groups = {name: (name,) for name in alone} | {ONE_FACTOR: factors}
    groups |= {name: (name,) for name in factors}
    together = np.concatenate([train.images, test.images])
    features = {
        TRAINED: embed(pair.trained.image, together, config.batch_size),
        INITIAL: embed(pair.initial.image, together, config.batch_size),
        PIXELS: raw_pixels(together, config.probes.raw_pixels_px),
    }
    for entry in others:
        encoder = load(entry.encoders[0])
        features[entry.name] = embed(encoder.to(pair.device), together, config.batch_size)
    report = score_probes(
        train,
        test,
        {name: (both[: len(train)], both[len(train) :]) for name, both in features.items()},
        compared=(TRAINED, INITIAL),
        further=[entry.name for entry in others],
        groups=groups,
        folds=config.probes.folds,
        seed=config.seed,
    )
    print(
        f"probes: {len(train)} training frames of {len(np.unique(train.episode))} recordings, "
        f"{len(test)} test frames of {len(np.unique(test.episode))}, {len(frames.tasks)} tasks"
    )
    return Probed(report, views)
