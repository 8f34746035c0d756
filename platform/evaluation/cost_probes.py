"""``--dry-run`` of the suite ``probes``: images to render and to encode, and how long it takes.

Rendering is spread over workers; encoding is done by the job's own process, and its threads are
counted as two cores at most. Ridges and intervals are part of the assumed start.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.eval.expert_views import EpisodePlan
from dynaflip.eval.rollout import EpisodeStart
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.evaluation.config import TUNING_SPLIT
from dynaflip.platform.evaluation.cost_table import makespan, span, time_section
from dynaflip.platform.evaluation.cost_units import (
    SceneCosts,
    SceneToMeasure,
    calibration_file,
    key_of,
    known_or,
    scene_costs,
    timed,
    together,
)
from dynaflip.platform.evaluation.encoders_under_test import (
    Encoder,
    encoder_at,
    load,
    resolve_others,
)
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig
from dynaflip.platform.evaluation.recordings import labels_missing, open_recordings
from dynaflip.platform.evaluation.rendered_views import missing_views, plan_views
from dynaflip.platform.evaluation.report.tables import Section
from dynaflip.platform.evaluation.score_cache import resolved
from dynaflip.platform.triplets.schema import read_manifest

_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
_ENCODING_CORES = 2  # of the job's own process, at most
_IMAGES = 16  # that an encoder is measured on


@dataclass(frozen=True)
class EncodeCosts:
    """Of an encoder's architecture; seconds."""

    encode_s: float  # an image


@dataclass(frozen=True)
class ProbeWork:
    """Work of a score."""

    rows: list[list[str]]  # of the table
    encoded: dict[Encoder, int]  # images that it encodes, as do others of its architecture
    rendered: list[list[EpisodePlan]]  # a list a task, of those that are not cached


def dry_run(config: ProbeSuiteConfig, *, gpu_images_per_s: float) -> list[Section]:
    """Tables of what would run and how long it takes; writes nothing but unit costs.

    Raises:
        UserError: as the suite itself would raise.
    """
    config = resolved(config)
    with tempfile.TemporaryDirectory() as built:
        trained = encoder_at(config.encoder, config.backbone)
        others = [one.encoders[0] for one in resolve_others(config, Path(built))]
        work = _work_of(config, trained, others)
        costs = {encoder: _encode_costs(encoder) for encoder in work.encoded}
        scene = _scene_costs(work.rendered[0]) if work.rendered else None
    section = Section("Work", work.rows, ("", "number", "of which"))
    units = Section("Unit costs", [], ("", "measured, of one core"))
    units.rows.append(["encoding", f"{span([c.encode_s for c in costs.values()])} an image"])
    if scene is not None:
        render = f"{1000 * scene.render_s:.1f} ms an image, {1000 * scene.step_s:.2f} ms a step"
        units.rows.append(["rendering", render])

    def seconds(cores: int, rate: float | None) -> tuple[float, float]:
        rendering = [_render_s(plans, scene) for plans in work.rendered if scene is not None]
        used = min(cores, _ENCODING_CORES)
        encoding = sum(n * costs[one].encode_s for one, n in work.encoded.items()) / used
        if rate is not None:
            encoding = sum(work.encoded.values()) / rate
        return makespan(rendering, cores), encoding

    kept = str(calibration_file())
    return [
        section,
        units,
        time_section(("views", "encoding"), seconds, gpu_images_per_s, kept),
    ]


def _work_of(config: ProbeSuiteConfig, trained: Encoder, others: Sequence[Encoder]) -> ProbeWork:
    from dynaflip.platform.training.data.index import read_index

    assert config.triplets is not None
    assert config.data is not None
    index, manifest = read_index(config.triplets), read_manifest(config.triplets)
    gallery = min(config.gallery_size, index.counts["heldout"])
    flow = config.flow_probe
    windows = _windows(index.train.rows, flow.clips, flow.windows_per_clip)
    windows += _windows(index.heldout.rows, flow.heldout_clips, flow.windows_per_clip)
    rows = [
        ["transitions of the gallery, two images each", str(gallery), "2 encoders"],
        ["windows of the flow probe", str(windows), f"{3 + len(others)} encoders"],
    ]
    # The initialisation, and random weights, are of the trained encoder's architecture.
    encoded = {trained: 4 * gallery + 3 * windows} | dict.fromkeys(others, windows)
    why = "probes.enabled is false" if not config.probes.enabled else labels_missing(config.data)
    if why is not None:
        return ProbeWork([*rows, ["frames of probes", "0", why]], encoded, [])
    recordings = open_recordings(config.data, manifest)
    tasks = list(config.views.tasks) or recordings.tasks()
    frames = config.probes.frames_per_episode
    clips = [clip for clip in (*recordings.train, *recordings.heldout) if clip.task in tasks]
    plans = plan_views(config.views, tasks, recordings.camera, recordings.size_px, TUNING_SPLIT)
    views = sum(images_of(plan) for several in plans.values() for plan in several)
    missing = missing_views(plans)
    left = sum(images_of(plan) for task in missing for plan in plans[task])
    number = len(clips) * frames + views
    rows += [
        ["recorded frames of probes", str(len(clips) * frames), f"{2 + len(others)} encoders"],
        ["rendered views of probes", str(views), f"{views - left} cached"],
    ]
    encoded[trained] += 2 * number
    for other in others:
        encoded[other] += number
    return ProbeWork(rows, encoded, [plans[task] for task in missing])


def _windows(rows: np.ndarray, clips: int, most: int) -> int:
    """Windows of the first clips, at most so many of each."""
    return int(np.minimum(np.asarray(rows)[:clips], most).sum())


def images_of(plan: EpisodePlan) -> int:
    """Images that an episode is shown in."""
    alone = len(plan.single_factors())
    return (len(plan.conditions) - alone) * plan.frames + alone * plan.frames_a_factor


def _render_s(plans: Sequence[EpisodePlan], scene: SceneCosts) -> float:
    """Seconds of a task's episodes on one worker."""
    images = sum(map(images_of, plans))
    steps = len(plans) * scene.demonstration_steps
    return scene.open_s + steps * scene.step_s + images * scene.render_s


def _scene_costs(plans: Sequence[EpisodePlan]) -> SceneCosts:
    first = plans[0]
    starts = {
        name: EpisodeStart(first.layout_seed, factors) for name, factors in first.conditions.items()
    }
    collect = CollectConfig(
        environment=first.environment,
        tasks=(first.task,),
        episodes_per_task=1,
        perturbed_share=0.0,
        moving_camera_share=0.0,
    )
    size_px = (first.height_px, first.width_px)
    return scene_costs(SceneToMeasure(first.environment, first.task, size_px, starts, collect))


def _encode_costs(encoder: Encoder) -> EncodeCosts:
    assert encoder.folder is not None
    described = json.loads((Path(encoder.folder) / "config.json").read_text())
    recipe: list[Any] = [described[k] for k in ("preprocessing", "image_architecture", "model")]
    values = known_or(
        key_of("encoder", recipe), lambda: together(_ONE_THREAD, _measure_encoder, encoder)
    )
    return EncodeCosts(**values)


def _measure_encoder(encoder: Encoder) -> EncodeCosts:
    import torch

    from dynaflip.eval.labelled_frames import embed

    torch.set_num_threads(1)
    network = load(encoder)
    side = int(network.config.image_px)
    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, side, side, 3), np.uint8)
    embed(network, images)
    return EncodeCosts(timed(lambda: embed(network, images))[1] / _IMAGES)
