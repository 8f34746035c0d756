"""Action error against the scripted expert, on images of the expert's own episodes.

The expert's episodes are rolled out once; the same moments are then rendered under every
condition, and the policy's action is compared with the expert's. No episode depends on what the
policy did before, so minutes separate encoders that hours of rollouts near zero success do not. It
is not success: states that a policy reaches by its own errors are never shown.
Legend of shapes: N moments shown, H, W image size, A action width, P width of
proprioception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.eval.envs.base import Env
from dynaflip.eval.labelled_frames import as_recorded
from dynaflip.eval.rollout import EpisodeStart

MOMENT_EVERY_S = 0.1


@dataclass(frozen=True)
class ExpertViews:
    """The expert's actions, and the images at those moments under each condition."""

    images: np.ndarray  # (N, H, W, 3) uint8
    proprioception: np.ndarray  # (N, P) float32
    actions: np.ndarray  # (N, A) float32, the expert's
    condition: np.ndarray  # (N,) name of the condition
    episode: np.ndarray  # (N,) int, index of the episode's start


def show_expert(
    scene: Env, starts: Mapping[str, Sequence[EpisodeStart]], *, horizon_steps: int
) -> ExpertViews:
    """Roll the expert out from each layout and render its moments under each condition.

    Args:
        scene: of the task, unperturbed; unperturbed again afterwards.
        starts: condition → its episodes' starts. The i-th start has the same layout in all.
        horizon_steps: the expert gives up after so many control steps.
    """
    images, proprioception, actions, names, episodes = [], [], [], [], []
    layouts = [start.layout_seed for start in next(iter(starts.values()))]
    for index, layout_seed in enumerate(layouts):
        moments = _expert_moments(scene, layout_seed, horizon_steps)
        for name, ones in starts.items():
            assert ones[index].layout_seed == layout_seed, "conditions share their layouts"
            scene.apply(ones[index].factors)
            for state, known, action in moments:
                scene.set_state(state)
                images.append(as_recorded(scene.rgb()))
                proprioception.append(known)
                actions.append(action)
                names.append(name)
                episodes.append(index)
        scene.restore()
    return ExpertViews(
        np.stack(images),
        np.stack(proprioception),
        np.stack(actions),
        np.array(names),
        np.array(episodes),
    )


def action_score(actions: np.ndarray, expert: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """One minus the normalised action error at each moment: (N,) in [0, 1].

    max(0, 1 − ‖a − a*‖² / V) with V the variance of the expert's actions, summed over their
    components: 1 is the expert's own action, and a policy that always does what the expert does
    on average scores little above 0. Bounded, so that a few wild actions do not outweigh the rest.

    Args:
        actions, expert: (N, A).
        unit: (M, A) expert's actions whose variance is V.
    """
    variance = float(np.asarray(unit, np.float64).var(axis=0).sum())
    assert variance > 0, "an expert that always does the same cannot be told from its mean"
    squared = ((np.asarray(actions, np.float64) - expert) ** 2).sum(axis=1)
    return np.maximum(0.0, 1.0 - squared / variance)


def _expert_moments(
    scene: Env, layout_seed: int, horizon_steps: int
) -> list[tuple[Any, np.ndarray, np.ndarray]]:
    """(state, proprioception, action) every tenth of a second, until the task is solved."""
    scene.reset(layout_seed)
    every_steps = max(1, round(MOMENT_EVERY_S * scene.spec.control_hz))
    moments = []
    for step in range(horizon_steps):
        action = scene.expert_action()
        if step % every_steps == 0:
            moments.append((scene.state(), scene.proprioception(), action))
        after = scene.step(action)
        if after.success or after.ended:
            break
    return moments
