"""The whole pipeline on simulator recordings, scored against the simulator's exact flow."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dynaflip.platform.triplets.build import clip_table
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.sources.formats import open_source

pytestmark = pytest.mark.sim
TASKS = ("door-open-v3", "plate-slide-v3", "drawer-open-v3")
MOVING_M = 0.01


def recorded(folder: Path, moving_camera: bool) -> Path:
    """A LeRobot data set of an episode of each task, written as collect writes it."""
    from dynaflip.eval.envs.metaworld import Scene
    from dynaflip.platform.demonstrations.config import CollectConfig
    from dynaflip.platform.demonstrations.lerobot_dataset import assemble
    from dynaflip.platform.demonstrations.lerobot_episode import write_episode
    from dynaflip.platform.demonstrations.plan import plan_episodes
    from dynaflip.platform.demonstrations.record import record_episode

    config = CollectConfig(
        tasks=TASKS,
        episodes_per_task=1,
        perturbed_share=0.0,
        moving_camera_share=float(moving_camera),
        max_steps=100,
        seed=7,
    )
    folders = []
    for plan in plan_episodes(config):
        assert plan.moving_camera == moving_camera
        scene = Scene(plan.task, height_px=config.image_px, width_px=config.image_px)
        folders.append(folder / f"episode{plan.index}")
        write_episode(folders[-1], plan, record_episode(scene, plan, config), scene.spec)
        scene.close()
    assemble(folder / "set", folders, Scene.spec)
    return folder / "set"


def tensors(table, name: str) -> np.ndarray:
    return table[name].combine_chunks().to_numpy_ndarray()


def both(ours, truth):
    """The windows that both kept: whether something moved is judged by the flow itself."""
    first, second = ours["triplet_id"].to_pylist(), truth["triplet_id"].to_pylist()
    shared = [name for name in first if name in set(second)]
    assert len(shared) >= 0.5 * min(len(first), len(second))
    ours, truth = (
        table.take([names.index(name) for name in shared])
        for table, names in ((ours, first), (truth, second))
    )
    return ours, truth


@pytest.mark.parametrize(
    "moving_camera",
    [pytest.param(False, marks=pytest.mark.slow, id="static"), pytest.param(True, id="moving")],
)
def test_recovered_flow_against_truth(tmp_path: Path, moving_camera: bool) -> None:
    root = recorded(tmp_path, moving_camera)
    source = open_source(SourceConfig(path=str(root)))
    still, moving, motion, kept, precise = [], [], [], [], []
    for clip in source.list_clips():
        tracked = PreprocessConfig(source=SourceConfig(path=str(root)), draws_per_clip=2)
        exact = dataclasses.replace(tracked, flow_source="simulator")
        ours = clip_table(clip, source.open(clip), tracked)
        truth = clip_table(clip, source.open(clip), exact)
        ours, truth = both(ours, truth)
        assert set(truth["flow_source"].to_pylist()) == {"simulator"}
        assert set(ours["camera_motion"].to_pylist()) == {"pose"}
        moved = tensors(truth, "flow_displacement_m")[:, -1]
        found = tensors(ours, "flow_displacement_m")[:, -1]
        exists = np.linalg.norm(tensors(truth, "flow_origin_m"), axis=-1) > 0
        seen = tensors(ours, "flow_visible")[:, -1].astype(bool) & exists
        error = np.linalg.norm(found - moved, axis=-1)
        length = np.linalg.norm(moved, axis=-1)
        moves = exists & (length > MOVING_M)
        still.append(error[seen & exists & (length < 1e-4)])
        moving.append((error / np.maximum(length, 1e-9))[seen & moves])
        motion.append(length[moves])
        kept.append(seen[moves])
        precise.append(moves[seen & (np.linalg.norm(found, axis=-1) > MOVING_M)])
    still_mm = np.concatenate(still) * 1e3
    relative = np.concatenate(moving)
    print(
        f"\nstill: {len(still_mm)} points, median {np.median(still_mm):.2f} mm, "
        f"p90 {np.percentile(still_mm, 90):.1f} mm, beyond 1 cm {(still_mm > 10).mean():.1%}; "
        f"moving: {np.concatenate(kept).size} points of median "
        f"{np.median(np.concatenate(motion)) * 1e3:.0f} mm, "
        f"kept {np.concatenate(kept).mean():.0%}, "
        f"median end error {np.median(relative):.1%}; "
        f"truly moving among moving {np.concatenate(precise).mean():.0%}"
    )
    assert len(relative) > 100
    assert np.median(still_mm) <= 5
    assert np.percentile(still_mm, 90) <= 5
    assert np.median(relative) < 0.25
    # By the tracker alone it is a half, and a quarter when the camera moves.
    assert np.concatenate(precise).mean() > 0.7
