"""``--dry-run`` of the suite ``offline`` where a read-out reads tokens.

Tokens are not kept, so an encoder's training frames are encoded once for all of its policies that
are not fitted yet, and held-out frames once for those whose actions are not kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynaflip.platform.evaluation.cost_offline_units import (
    IMAGES,
    ONE_THREAD,
    FrameCosts,
    encoder_costs,
    frame_costs,
    inputs_like,
    title_of,
)
from dynaflip.platform.evaluation.cost_table import makespan, span, time_section
from dynaflip.platform.evaluation.cost_units import (
    calibration_file,
    fit_seconds,
    key_of,
    known_or,
    timed,
    together,
)
from dynaflip.platform.evaluation.encoders_under_test import (
    NO_IMAGE,
    Encoder,
    EncoderUnderTest,
    load,
)
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import OfflineData
from dynaflip.platform.evaluation.offline_plan import OfflinePlan, words_of
from dynaflip.platform.evaluation.offline_run import offline_recipe
from dynaflip.platform.evaluation.offline_tokens import act_jobs, token_fits, training_of
from dynaflip.platform.evaluation.report.tables import Section

if TYPE_CHECKING:
    from dynaflip.eval.policies.recipe import PolicyRecipe
    from dynaflip.platform.evaluation.offline_worker import ActJob, FitKey, TokenFitJob


@dataclass(frozen=True)
class TokenCosts:
    """Of an encoder's architecture with a read-out and a head; seconds."""

    encode_s: float  # an image to tokens
    fit_s: float  # a policy, its tokens at hand
    act_s: float  # a moment, its tokens at hand


@dataclass(frozen=True)
class TokenWork:
    """Work of an offline evaluation on tokens; counts of what is not kept."""

    train_images: int  # of all cameras, that an encoder's policies learn from
    fits: list[TokenFitJob]
    acts: list[ActJob]
    encoders: dict[FitKey, Encoder]  # of every policy on tokens
    blind: list[float]  # seconds of each fit of policies that see no image


def sections(
    config: OfflineConfig,
    data: OfflineData,
    plan: OfflinePlan,
    tested: Sequence[EncoderUnderTest],
    gpu_images_per_s: float,
) -> list[Section]:
    """Tables of what would run and how long it takes."""
    from dynaflip.eval.policies.frozen_fit import scales_of

    recipe = offline_recipe(config, data)
    scales = scales_of(recipe.readout, recipe.readout_settings)
    assert scales is not None, "the read-out reads tokens"
    on_tokens = [entry for entry in tested if entry.name != NO_IMAGE]
    training = training_of(config, data, words_of(data), recipe, scales)
    fits, files = token_fits(config, data, training, on_tokens)
    encoders = {key: e.encoder(key[1]) for e in on_tokens for key in files if key[0] == e.name}
    blind = [
        encoder_costs(config, data, entry.encoder(seed)).fit_s
        for entry in tested
        if entry.name == NO_IMAGE
        for seed in range(config.seeds)
    ]
    images = sum(len(episode.frames) * len(episode.clips) for episode in data.train)
    acts = act_jobs(config, data, plan, encoders, files)
    work = TokenWork(images, fits, acts, encoders, blind)
    frames = frame_costs(config, data, plan)
    costs = {e.digest: token_costs(config, data, recipe, scales, e) for e in encoders.values()}
    return [
        _jobs_section(data, plan, work),
        _work_section(work, frames, costs),
        time_section(
            ("fits", "actions"),
            lambda cores, rate: stages_s(work, frames, costs, cores, rate),
            gpu_images_per_s,
            str(calibration_file()),
        ),
    ]


def stages_s(
    work: TokenWork,
    frames: FrameCosts,
    costs: Mapping[str, TokenCosts],
    workers: int,
    gpu_images_per_s: float | None,
) -> tuple[float, float]:
    """Seconds of fits and of actions on so many workers."""
    here, rate = gpu_images_per_s is None, gpu_images_per_s or math.inf
    fits, encoded = [], 0
    for fit in work.fits:
        cost = costs[fit.encoder.digest]
        image_s = frames.decode_s + (cost.encode_s if here else 0.0)
        fits.append(work.train_images * image_s + len(fit.seeds) * cost.fit_s)
        encoded += work.train_images
    acts, shown = [], 0
    for act in work.acts:
        moments, conditions = len(act.episode.frames), len(act.values)
        images = moments * len(act.episode.clips)
        distinct = {work.encoders[key].digest for key in act.wanted}
        encode_s = sum(costs[digest].encode_s for digest in distinct) if here else 0.0
        act_s = sum(costs[work.encoders[key].digest].act_s for key in act.wanted)
        under_one = images * (frames.perturb_s + encode_s) + moments * act_s
        acts.append(images * frames.decode_s + conditions * under_one)
        shown += images * conditions * len(distinct)
    fits_s = max(makespan(fits, workers), encoded / rate) + makespan(work.blind, workers)
    return fits_s, max(makespan(acts, workers), shown / rate)


def token_costs(
    config: OfflineConfig, data: OfflineData, recipe: PolicyRecipe, scales: int, encoder: Encoder
) -> TokenCosts:
    """Of an encoder's policies, from the file or measured now."""
    number, widths = inputs_like(data)
    assert encoder.folder is not None, "policies on tokens have an encoder"
    described = json.loads((Path(encoder.folder) / "config.json").read_text())
    kind = [described[name] for name in ("preprocessing", "image_architecture", "model")]
    kind += [recipe.head, recipe.head_settings, recipe.readout, recipe.readout_settings]
    values = known_or(
        key_of("offline policy on tokens", [*kind, config.image_px, number, widths]),
        lambda: together(
            ONE_THREAD, measure, encoder, config.image_px, recipe, scales, number, widths
        ),
    )
    return TokenCosts(**values)


def measure(
    encoder: Encoder,
    image_px: int,
    recipe: PolicyRecipe,
    scales: int,
    number: int,
    widths: tuple[int, int, int],
) -> TokenCosts:
    """Time a few images and a fit of few steps.

    Args:
        encoder: whose tokens are read.
        image_px: size of the images.
        recipe: of the policy.
        scales: feature maps that its read-out reads.
        number: of training frames.
        widths: of action and proprioception, and number of cameras.
    """
    from dataclasses import replace

    import numpy as np
    import torch

    from dynaflip.eval.policies.base import Demonstrations
    from dynaflip.eval.policies.encoder_policy import tokens_of_views
    from dynaflip.eval.policies.frozen_fit import fit_frozen, store_tokens
    from dynaflip.eval.policies.recipe import assemble, split_tensors

    torch.set_num_threads(1)
    actions, states, cameras = widths
    rng, network = np.random.default_rng(0), load(encoder)
    views = [rng.integers(0, 256, (IMAGES, image_px, image_px, 3), np.uint8)] * cameras
    tokens_of_views(network, views, scales)  # warms up
    seen, encode_s = timed(lambda: tokens_of_views(network, views, scales))
    rows = np.arange(number) % IMAGES
    shown = Demonstrations(
        np.zeros((number, 0), np.float32),
        rng.standard_normal((number, states), np.float32),
        rng.uniform(-1, 1, (number, actions)).astype(np.float32),
        np.arange(number) // 10,
        tokens=store_tokens([seen], IMAGES).some(rows),
    )
    tensors, fit_s = fit_seconds(
        recipe.head,
        recipe.head_settings,
        lambda settings: fit_frozen(replace(recipe, head_settings=settings), shown, 0),
    )
    policy = assemble(recipe, split_tensors(tensors), network, cameras=cameras)
    state = np.zeros((IMAGES, states), np.float32)
    policy.plan(seen[0], state)
    _, act_s = timed(lambda: policy.plan(seen[0], state))
    return TokenCosts(encode_s / IMAGES / cameras, fit_s, act_s / IMAGES)


def _jobs_section(data: OfflineData, plan: OfflinePlan, work: TokenWork) -> Section:
    columns = ("encoder", "policies", "to fit", "episodes to act in")
    section = Section(title_of(data, plan), [], columns)
    for name in dict.fromkeys(key[0] for key in work.encoders):
        policies = [key for key in work.encoders if key[0] == name]
        to_fit = sum(len(fit.seeds) for fit in work.fits if fit.under_test == name)
        left = sum(key in act.wanted for act in work.acts for key in policies)
        section.rows.append([name, *map(str, (len(policies), to_fit, left))])
    if work.blind:
        number = str(len(work.blind))
        section.rows.append([NO_IMAGE, number, number, "0"])
    return section


def _work_section(work: TokenWork, frames: FrameCosts, costs: Mapping[str, TokenCosts]) -> Section:
    section = Section("Work that is not kept", [], ("", "number", "measured, of one core"))
    used = list(costs.values())
    acted = [(len(act.episode.frames), act) for act in work.acts]
    shown = sum(moments * len(act.episode.clips) * len(act.values) for moments, act in acted)
    distinct = [{work.encoders[key].digest for key in act.wanted} for act in work.acts]
    encoded = sum(
        moments * len(act.episode.clips) * len(act.values) * len(encoders)
        for (moments, act), encoders in zip(acted, distinct, strict=True)
    )
    asked = sum(moments * len(act.values) * len(act.wanted) for moments, act in acted)
    fitted = sum(len(fit.seeds) for fit in work.fits)
    learnt = len(work.fits) * work.train_images
    encode = f"{span([one.encode_s for one in used])} an image"
    section.rows += [
        ["images to encode for fits", str(learnt), encode],
        ["policies to fit", str(fitted), f"{span([one.fit_s for one in used], 0)} a policy"],
        ["frames to show under conditions, times", str(shown), f"{span([frames.perturb_s])} each"],
        ["images to encode to act", str(encoded), encode],
        ["moments to act in", str(asked), f"{span([one.act_s for one in used])} each"],
    ]
    if work.blind:
        blind = f"{span(work.blind, 0)} a policy"
        section.rows.append(["policies without an image to fit", str(len(work.blind)), blind])
    return section
