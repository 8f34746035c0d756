"""Fitted policies of the suite ``offline`` as artifacts of its run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import dynaflip
from dynaflip.eval.policies.policy_folder import PolicyDescription, write_policy
from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest
from dynaflip.platform.evaluation.kept_policies import (
    Writer,
    how_to_use,
    log_policies,
    safe_name,
    write_encoder_of,
)
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import OfflineData
from dynaflip.platform.evaluation.offline_run import OfflineResult

if TYPE_CHECKING:
    from dynaflip.platform import tracking


def keep_offline_policies(
    config: OfflineConfig,
    data: OfflineData,
    entry: EncoderUnderTest,
    found: OfflineResult,
    run: tracking.Run,
) -> list[str]:
    """Log the fitted policies of the encoder under test.

    Args:
        config: of the evaluation.
        data: that they learnt from.
        entry: the encoder under test.
        found: the policies.
        run: the evaluation's.

    Returns:
        A note of how to load one; none where nothing is kept.
    """
    if not config.keep_policies:
        return []

    def writer(seed: int) -> Writer:
        return lambda folder, logged: write_offline_policy(
            folder, config, data, entry, found, seed, logged
        )

    writers = {_name(data, seed): writer(seed) for seed in range(config.seeds)}
    log_policies(writers, run)
    several = len(data.cameras) > 1
    given = ['{"' + data.cameras[0] + '": image, …}' if several else "image"]
    given += ["proprioception"] if found.recipe.use_proprioception else []
    given += ["task=TASK"] if found.words is not None else []
    return [how_to_use(len(writers), run, next(iter(writers)), given)]


def write_offline_policy(
    folder: Path,
    config: OfflineConfig,
    data: OfflineData,
    entry: EncoderUnderTest,
    found: OfflineResult,
    seed: int,
    logged: set[str],
) -> None:
    """Write a fitted policy, and its encoder beside it where that is not written yet.

    Args:
        folder: of all policies.
        config, data, entry, found: of the evaluation.
        seed: of the policy.
        logged: digests of the encoders that are written; this policy's is added.
    """
    encoder, captions = entry.encoder(seed), tuple(found.words or ()) or data.captions()
    write_encoder_of(folder, encoder, logged)
    description = PolicyDescription(
        head=found.recipe.head,
        head_settings=found.recipe.head_settings,
        readout=found.recipe.readout,
        readout_settings=found.recipe.readout_settings,
        adaptation="frozen",
        seed=seed,
        environment="",
        tasks=captions,
        captions=captions,
        demonstrations=len(data.train),
        image_px=config.image_px,
        proprioception=data.proprioception_names if found.recipe.use_proprioception else (),
        actions=data.action_names,
        control_hz=data.fps,
        encoder=encoder.name,
        encoder_digest=encoder.digest,
        dynaflip_version=dynaflip.__version__,
        data=data.name,
        cameras=data.cameras,
        precision=config.encoder_actor.precision,
    )
    words = None if found.words is None else np.stack([found.words[one] for one in captions])
    tensors = found.policies[entry.name, seed]
    write_policy(folder / _name(data, seed), description, tensors, words, found.scale)


def _name(data: OfflineData, seed: int) -> str:
    """A policy's name within its run."""
    return f"{safe_name(data.name)}-seed{seed}"
