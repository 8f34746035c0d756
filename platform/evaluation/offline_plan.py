"""What the suite ``offline`` shows: conditions, factor values, and versions of its recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.image_perturbations import (
    IMAGE_FACTOR_NAMES,
    IMAGE_FACTORS,
    IMAGE_VERSION,
    check_changes_frames,
    draw_values,
)
from dynaflip.eval.policies.readouts.config import POOLED
from dynaflip.eval.policies.registry import code_of_policy
from dynaflip.platform.evaluation.encoders_under_test import (
    NO_IMAGE,
    Encoder,
    EncoderUnderTest,
    code_of_backbone,
    info_of,
)
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import OfflineData, OfflineEpisode
from dynaflip.platform.evaluation.plan import Condition
from dynaflip.platform.provenance import versions_of

CLEAN = Condition(UNPERTURBED, 0)


def offline_version(config: OfflineConfig) -> int:
    """Raised when the same recipe gives other results than before.

    2: heads that predict several actions learn those of the next rows, not of the next chosen
    frames; cloning of one action is what it was.
    """
    one = config.head == "behaviour_cloning" and config.behaviour_cloning.chunk == 1
    return 1 if one else 2


def version_tag(config: OfflineConfig) -> str:
    """Versions that results of equal settings depend on, too: they are pairs where it is equal."""
    return f"{offline_version(config)}, images {IMAGE_VERSION}"


@dataclass(frozen=True)
class OfflinePlan:
    """What is shown: conditions, and for each held-out episode its factor values."""

    conditions: tuple[Condition, ...]
    values: dict[str, dict[str, dict[str, Any]]]  # recording → name of a condition → values

    def of(self, episode: OfflineEpisode) -> dict[str, dict[str, Any]]:
        """Name of a condition → values; training episodes are clean."""
        return self.values[episode.recording_id] if episode.heldout else {CLEAN.name: {}}


def plan_offline(config: OfflineConfig, data: OfflineData) -> OfflinePlan:
    """Conditions, and values that are a function of split, recording, condition and seed alone.

    Raises:
        UserError: a factor does not exist, or changes no pixel.
    """
    names = config.factors or IMAGE_FACTOR_NAMES
    for name in names:
        check_changes_frames(name)
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    if config.all_at_once and len(names) > 1:
        groups[ALL_FACTORS] = names
    perturbed = [Condition(group, level) for group in groups for level in config.levels]
    clean: dict[str, dict[str, Any]] = {CLEAN.name: {}}
    values = {
        episode.recording_id: clean
        | {
            one.name: draw_values(
                config.split,
                f"{config.seed}/{episode.recording_id}/{one.factor}",
                groups[one.factor],
                one.level,
            )
            for one in perturbed
        }
        for episode in data.heldout
    }
    return OfflinePlan((CLEAN, *perturbed), values)


def code_of_policies(config: OfflineConfig) -> tuple[str, ...]:
    """Versions of head, read-out and backbone that are not built in, for digests."""
    return (*code_of_policy(config.head, config.readout), *code_of_backbone(config.backbone))


def code_of_images(config: OfflineConfig, values: Any) -> list[str]:
    """Versions of backbone and perturbations that are not built in, for digests of features.

    Args:
        config: of the evaluation.
        values: factor → value, or such mappings in others.
    """
    own = [name for name in _names(values) if not {*IMAGE_FACTORS.table} & {name}]
    codes = [code for name in dict.fromkeys(own) for code in IMAGE_FACTORS.code_of(name)]
    return [*code_of_backbone(config.backbone), *codes]


def _names(values: Any) -> Iterator[str]:
    """Keys of mappings in mappings; others than names of factors stand for no code."""
    if isinstance(values, dict):
        for name, inner in values.items():
            yield name
            yield from _names(inner)


def evaluation_digest(
    config: OfflineConfig, data: OfflineData, plan: OfflinePlan, tested: list[EncoderUnderTest]
) -> str:
    """Equal for evaluations that show the same images to the same policies."""
    recipe: list[Any] = [
        [offline_version(config), IMAGE_VERSION, *versions_of(("torch",))],
        [episode.digest() for episode in (*data.train, *data.heldout)],
        plan.values,
        [[entry.name, *(encoder.digest for encoder in entry.encoders)] for entry in tested],
        [config.head, config.settings_of_head(), config.seeds, config.image_px],
        [config.action, data.proprioception],
    ]
    if config.readout != POOLED:  # as before there were others
        recipe.append([config.readout, config.settings_of_readout()])
    recipe += config.encoder_actor.recipe()
    recipe += [*code_of_policies(config), *code_of_images(config, plan.values)]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def drop_lost(config: OfflineConfig, data: OfflineData, lost: dict[str, str]) -> list[str]:
    """Take episodes that cannot be decoded out of the data; why, an entry an episode.

    Args:
        config: of the evaluation.
        data: changed in place.
        lost: digest of an episode → reason.

    Raises:
        UserError: a side of the split has none left.
    """
    reasons = [
        f"episode {episode.index}: {lost[episode.digest()]}"
        for episode in (*data.train, *data.heldout)
        if episode.digest() in lost
    ]
    for side in (data.train, data.heldout):
        side[:] = [episode for episode in side if episode.digest() not in lost]
        if not side:
            raise UserError(
                f"source: no episode of {config.source} that is "
                f"{'held out' if side is data.heldout else 'to learn from'} can be decoded; the "
                f"first: {reasons[0]}"
            )
    return reasons


def heldout_share_notes(share: float, tested: Sequence[EncoderUnderTest]) -> list[str]:
    """A note for each pretraining that held out a smaller share than is held out here.

    Both splits are by the same hash, so a smaller share's recordings are among a larger one's:
    where pretraining read this data set, the encoder knows the others, which are held out here.
    Encoders made before the share was recorded, or elsewhere, give no note.

    Args:
        share: held out here.
        tested: the encoders, as their folders describe them.
    """
    notes = []
    for encoder in (encoder for entry in tested for encoder in entry.encoders):
        own = info_of(encoder).get("heldout_share")
        if own is not None and float(own) < share:
            notes.append(
                f"note: {encoder.name} was pretrained on triplets with heldout_share {own:g}, and "
                f"here it is {share:g}: if those were made from this data set, it has seen some of "
                f"the recordings that are held out here; set --heldout_share {own:g}"
            )
    return list(dict.fromkeys(notes))


def with_no_image(data: OfflineData, tested: list[EncoderUnderTest]) -> list[EncoderUnderTest]:
    """The entries, and policies that see no image where they are given anything else."""
    if not data.train[0].proprioception.shape[1] and words_of(data) is None:
        return tested
    return [*tested, EncoderUnderTest(NO_IMAGE, (Encoder(NO_IMAGE, None, NO_IMAGE),))]


def words_of(data: OfflineData) -> dict[str, np.ndarray] | None:
    """Caption → its features, where there are several tasks to tell apart."""
    captions = data.captions()
    if len(captions) < 2:
        return None
    from dynaflip.encoders.config import LanguageConfig
    from dynaflip.encoders.language import embed_captions

    features = embed_captions(list(captions), LanguageConfig()).numpy()
    return dict(zip(captions, features, strict=True))
