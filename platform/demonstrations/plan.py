"""Which episodes make up a data set: each a function of the seed and its index alone."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from dynaflip.eval.envs.registry import environment
from dynaflip.eval.perturbations import layout_seed, sample, seen_factors
from dynaflip.platform.demonstrations.config import CollectConfig

SPLIT = "pretrain"  # the only one that is ever collected


@dataclass(frozen=True)
class EpisodePlan:
    """All that is decided about an episode before it is recorded."""

    index: int
    task: str
    caption: str
    layout_seed: int
    factors: dict[str, Any]  # of dynaflip.eval.perturbations; a moving camera has a path
    moving_camera: bool
    noise_seed: int


def plan_episodes(config: CollectConfig) -> list[EpisodePlan]:
    """The episodes of a data set, tasks taking turns."""
    total = len(config.tasks) * config.episodes_per_task
    return [_plan(config, index) for index in range(total)]


def _plan(config: CollectConfig, index: int) -> EpisodePlan:
    generator = random.Random(f"{config.seed}/{index}")
    task = config.tasks[index % len(config.tasks)]
    turn = index // len(config.tasks)
    assert config.perturbed_share is not None, "filled in by the settings"
    assert config.moving_camera_share is not None, "filled in by the settings"
    perturbed = _due(config.perturbed_share, turn, f"{config.seed}/{task}/perturbed")
    moving = _due(config.moving_camera_share, turn, f"{config.seed}/{task}/moving")
    spec = environment(config.environment)
    factors: dict[str, Any] = {}
    if perturbed:
        factors = sample(SPLIT, generator.getrandbits(32), seen_factors(spec.factors))
    if moving:
        camera = sample(SPLIT, generator.getrandbits(32), ["camera"])["camera"]
        # The magnitude bounds the path; a path of nearly none would be a static camera.
        factors["camera"] = {
            "u": 0.15 + camera["u"] / 2,
            "path": {
                "period_s": [generator.uniform(1.5, 3.0) for _ in range(2)],
                "phase": [generator.random() for _ in range(2)],
            },
        }
    return EpisodePlan(
        index=index,
        task=task,
        caption=generator.choice(spec.captions[task]),
        layout_seed=layout_seed(SPLIT, generator.getrandbits(32)),
        factors=factors,
        moving_camera=moving,
        noise_seed=generator.getrandbits(32),
    )


def _due(share: float, turn: int, seed: str) -> bool:
    """True if a task's episode ``turn`` is one of the ``share``: evenly spread, not drawn.

    Drawn, a task may end without unperturbed episodes, on which probes are fitted.
    """
    offset = random.Random(seed).random()
    return math.floor((turn + 1) * share + offset) > math.floor(turn * share + offset)
