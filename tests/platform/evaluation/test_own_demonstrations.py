"""Policies that learn from a user's own recordings: ``--source`` of rollouts.

The environment is somebody else's, in one file and without an expert; the recordings are of the
same one with an expert, in its own units, as a person's would be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_rollouts import encoder_folder, tiny

pytest.importorskip("gymnasium")

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.demonstration_set import DemonstrationSet
from dynaflip.platform.evaluation.demonstrations import demonstration_sets, read_demonstrations
from dynaflip.platform.evaluation.plan import plan_rollouts
from dynaflip.platform.evaluation.suites.imitation import Imitation
from dynaflip.platform.evaluation.suites.rollouts import Rollouts
from tests.eval.point_reacher import PointReacher
from tests.platform.triplets.odd_lerobot import KEY, OddSet

OWN, HZ, EPISODES = "class:tests.eval.point_reacher:NoExpert", 10, 4


def recorded(change: Any = None, *, state: bool = True) -> OddSet:
    """Solved episodes as a person would have recorded them: 96x72, actions from -2 to 2."""
    odd, raw = OddSet(tasks=["fetch it"], video_fps=HZ), PointReacher(render_mode="rgb_array")
    odd.videos[KEY], begin = [], 0
    for n in range(EPISODES):
        observation, info = raw.reset(seed=1000 + n)
        images, solved = [], False
        while not solved or len(images) < 6:
            action = raw.expert_action(observation, info)
            row = {"episode_index": n, "frame_index": len(images), "task_index": 0}
            row |= {"timestamp": len(images) / HZ, "action": action.tolist()}
            odd.rows.append({**row, **({"observation.state": raw.hand.tolist()} if state else {})})
            images.append(np.kron(raw.render(), np.ones((2, 2, 1), np.uint8)))
            observation, *_, info = raw.step(action)
            solved = info["is_success"]
        odd.videos[KEY].append(np.stack(images))
        places = {f"videos/{KEY}/chunk_index": 0, f"videos/{KEY}/file_index": 0}
        places |= {f"videos/{KEY}/from_timestamp": begin / HZ}
        places |= {f"videos/{KEY}/to_timestamp": (begin + len(images)) / HZ}
        begin += len(images)
        about = {"episode_index": n, "length": len(images), "tasks": ["fetch it"]}
        odd.episodes.append({**about, "data/chunk_index": 0, "data/file_index": 0, **places})
    vector = {"dtype": "float32", "names": None, "shape": [2]}
    features = {KEY: {"dtype": "video", "shape": [96, 128, 3]}, "action": vector}
    if state:
        features["observation.state"] = vector
    odd.info = {"codebase_version": "v3.0", "fps": HZ, "features": features}
    if change is not None:
        change(odd)
    return odd


def settings(folder: Path, **changes: Any) -> Any:
    """Settings of an evaluation in the environment without an expert."""
    given = {"environment": OWN, "tasks": (), "factors": ("light",), "horizon_steps": 20}
    given |= {"source": str(folder), "demonstrations": 3, "check_harness": False}
    return tiny(folder.parent / "encoder", **{**given, **changes})


def shown(folder: Path, **changes: Any) -> DemonstrationSet:
    (one,) = demonstration_sets(settings(folder, **changes), ("NoExpert",)).values()
    return one


def test_policies_learn_from_ones_own_recordings_and_act(home: Path, tmp_path: Path) -> None:
    from dynaflip.platform.evaluation.worker import Worker

    encoder_folder(tmp_path / "encoder")
    config = settings(recorded().write(tmp_path / "mine"), baselines=(), seeds=1)
    _, sets, jobs = plan_rollouts(config)
    frames = read_demonstrations(sets["NoExpert"])
    assert frames.images.shape[1:] == (32, 32, 3)
    assert len(np.unique(frames.episode)) == 3
    # In [-1, 1], half of what they are in the environment's own units.
    first = np.array([row["action"] for row in recorded().rows[:5]])
    np.testing.assert_allclose(frames.actions[:5], first / 2, atol=1e-6)
    # The red hand is where the environment would show it.
    raw = PointReacher(render_mode="rgb_array")
    raw.reset(seed=1000)
    import cv2

    here = cv2.resize(raw.render(), (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(frames.images[0].astype(int) - here).mean() < 6

    worker = Worker()
    (weights,) = worker.fit([jobs[0].policy]).values()
    result = worker.roll_out(jobs[0], weights)
    assert len(result.steps) == 2
    assert not list((home / "evaluation").glob("demonstrations/*"))  # nothing was collected


def test_a_harness_without_an_expert_is_refused_before_anything_runs(
    home: Path, tmp_path: Path
) -> None:
    config = settings(recorded().write(tmp_path / "mine"), check_harness=True)
    with pytest.raises(UserError, match="has no scripted expert, which check_harness rolls out"):
        Rollouts().run(config)
    assert not (home / "mlflow").exists()


def test_notes_say_what_nobody_can_know(home: Path, tmp_path: Path, capsys: Any) -> None:
    def some_failed(odd: OddSet) -> None:
        for n, episode in enumerate(odd.episodes):
            episode["success"] = n != 1

    encoder_folder(tmp_path / "encoder")
    config = settings(recorded(some_failed).write(tmp_path / "mine"))
    _, sets, _ = plan_rollouts(config)
    own = sets["NoExpert"].own
    assert own is not None
    assert own.episodes == (0, 2, 3)
    said = capsys.readouterr().out
    assert "does not say which simulator recorded it" in said
    assert "with actions in its units (-2 to 2)" in said
    assert "calls its task 'fetch it'; it is taken for NoExpert" in said
    assert "recordings that are left out: 1 not solved" in said
    assert all(note in said for note in own.notes)


def test_recordings_of_another_simulator_or_version_are_said(home: Path, tmp_path: Path) -> None:
    import json

    folder = recorded().write(tmp_path / "mine")
    recipe = {"settings": {"environment": "class:elsewhere:Env"}, "simulator": "elsewhere 3"}
    (folder / "meta" / "dynaflip.json").write_text(json.dumps(recipe))
    # Collected here, its actions are in [-1, 1] and its images square.
    with pytest.raises(UserError, match=r"images of 128x96, and .*NoExpert shows policies squares"):
        shown(folder)
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"][KEY]["shape"] = [96, 96, 3]
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"actions from -2 to .*takes -1 to 1: they are in other"):
        shown(folder)


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (lambda odd: odd.info.update(fps=30), {}, "at 30 frames a second, .* acts 10 times"),
        (None, {"image_px": 112}, "see 112 px, .* images of 128x96; set --image_px to 96"),
        (None, {"demonstrations": 9}, "9 are wanted, .* has 4 of NoExpert"),
        (None, {"source_camera": "wrist"}, "has no camera wrist; it has top"),
        (
            lambda odd: odd.info["features"][KEY].update(shape=[96, 96, 3]),
            {},
            "images of 96x96, and .* renders 64x48",
        ),
        (
            lambda odd: [row.update(action=[*row["action"], 0.0]) for row in odd.rows],
            {},
            r"actions of width 3, and those of .* have 2 \(action_0, action_1\)",
        ),
        (
            lambda odd: odd.rows[3].update(action=[7.0, 0.0]),
            {},
            r"to 7 in entry 0 \(action_0\), and .* takes -2 to 2",
        ),
        (
            lambda odd: [row.update({"observation.state": [0.0] * 5}) for row in odd.rows],
            {},
            "observation.state of width 5, and .* gives policies 2",
        ),
        (
            lambda odd: odd.episodes[1].update(tasks=["leave it"]),
            {},
            "has no recording of NoExpert .* it has 'fetch it', 'leave it'",
        ),
        (
            lambda odd: [episode.update(success=False) for episode in odd.episodes],
            {},
            "it has none; .* that are left out: 4 not solved; name its tasks",
        ),
    ],
)
def test_what_contradicts_the_environment_is_refused_with_both_figures(
    change: Any, given: dict[str, Any], message: str, home: Path, tmp_path: Path
) -> None:
    folder = recorded(change).write(tmp_path / "mine")
    with pytest.raises(UserError, match=message):
        shown(folder, **given)


def test_without_proprioception_it_need_not_be_recorded(home: Path, tmp_path: Path) -> None:
    folder = recorded(state=False).write(tmp_path / "mine")
    with pytest.raises(UserError, match=r"has no observation.state, and .* gives policies 2"):
        shown(folder)
    assert read_demonstrations(shown(folder, proprioception=(False,))).proprioception.size == 0


def test_demonstrations_are_others_where_anything_that_policies_read_is(
    home: Path, tmp_path: Path
) -> None:
    folder = recorded().write(tmp_path / "mine")
    digests = {shown(folder).digest, shown(folder, image_px=64).digest}
    digests.add(shown(folder, demonstrations=2).digest)
    assert len(digests) == 3
    assert shown(folder).digest in digests


def test_a_camera_without_a_data_set_and_imitation_without_an_expert_are_refused(
    home: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="source_camera is a camera of source"):
        tiny(tmp_path / "encoder", source_camera="top")
    encoder_folder(tmp_path / "encoder")
    config = settings(recorded().write(tmp_path / "mine"))
    with pytest.raises(UserError, match="has no scripted expert, whose actions"):
        Imitation().run(config)
