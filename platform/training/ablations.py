"""Named variants of a pretraining: the paper's ablations and single-term baselines.

A variant is a few settings by dotted key that replace those of any configuration;
`jobs/pretrain.py --variant`, `jobs/ablate.py` and the evaluation read this one table. Imports
no torch.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.training.config import PretrainConfig

FULL = "full"
NO_NEGATIVES = "no_negatives"

# Variant to its settings. The paper (arXiv 2605.30350) names its ablations and does not print
# their settings; each comment tells how the name is understood here.
VARIANTS: dict[str, dict[str, Any]] = {
    FULL: {},
    # L_act off: the frame's embedding need not predict motion.
    "no_flow_prediction": {"objective.flow": 0.0},
    # The energy is the triangle's area alone.
    "no_cosine": {"objective.cosine": 0.0},
    # L_tcn off.
    "no_temporal": {"objective.temporal": 0.0},
    # Image and language alone are aligned, and no flow is predicted either.
    "no_flow": {"objective.modalities": ["image", "language"], "objective.flow": 0.0},
    # Image and flow alone are aligned, and equal captions are negatives like any other.
    "no_language": {
        "objective.modalities": ["image", "flow"],
        "objective.mask_same_caption": [],
    },
    # InfoNCE of language with image and of language with flow, instead of triangles.
    "pairwise": {"objective.alignment": "pairwise"},
    # Neither the contrastive nor the time-contrastive term has a denominator.
    NO_NEGATIVES: {"objective.negatives": []},
    # One term alone.
    "time_contrast_only": {"objective.contrastive": 0.0, "objective.flow": 0.0},
    "flow_prediction_only": {"objective.contrastive": 0.0, "objective.temporal": 0.0},
    "language_image_only": {
        "objective.modalities": ["image", "language"],
        "objective.temporal": 0.0,
        "objective.flow": 0.0,
    },
}

# The paper's ablation in its order: LIBERO, frozen encoder and diffusion policy, mean success
# of four suites in percent.
PAPER_SUCCESS_PERCENT = {
    FULL: 44.0,
    "no_flow_prediction": 43.4,
    "no_cosine": 39.8,
    "no_temporal": 39.6,
    "no_flow": 37.1,
    "no_language": 35.4,
    "pairwise": 31.8,
    NO_NEGATIVES: 18.1,
}


def apply_variant(config: PretrainConfig, variant: str) -> PretrainConfig:
    """The configuration with a variant's settings.

    A variant that leaves two modalities of three has a segment in the triangle's place. At
    orthogonal embeddings a step towards each other shortens it √6 times as much as the area, so
    its volume weighs 1/√6: the image is pulled as before. (With the weight of 15 unchanged, image
    and language stay at opposite poles and their loss at chance: LOG.md, 2026-11-25.)

    Raises:
        UserError: there is no such variant, it changes nothing, or its settings contradict the
            configuration's.
    """
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise UserError(f"--variant {variant}: there is no such variant; known: {known}")
    settings, given = dict(VARIANTS[variant]), config
    if len(settings.get("objective.modalities", ())) == 2 < len(config.objective.modalities):
        settings["objective.volume"] = config.objective.volume / math.sqrt(6)
    for key, value in settings.items():
        section, name = key.split(".")
        value = tuple(value) if isinstance(value, list) else value
        try:
            part = dataclasses.replace(getattr(config, section), **{name: value})
        except ValueError as error:
            raise UserError(f"--variant {variant}: {section}.{error}") from None
        config = dataclasses.replace(config, **{section: part})
    if settings and config == given:
        raise UserError(
            f"--variant {variant}: the settings have it already: there is nothing to leave out"
        )
    return config
