"""One command from a data set to report, registered score and promotion: real sets and our own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from tiny_rollouts import encoder_folder

from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources.lerobot import LeRobotSource
from dynaflip.platform.triplets.split import split_of
from tests.platform.triplets.odd_lerobot import KEY, OddSet

pytestmark = [pytest.mark.ray, pytest.mark.integration]
# The robot's name → entries of its actions, frames a second, and its captions.
SETS = {"g1": (26, 30.0, 1), "bridge": (7, 5.0, 4), "demo": (4, 80.0, 2)}


def bridge_as_lerobot(record: Path, folder: Path) -> Path:
    """Real BridgeData episodes, as one who keeps them in LeRobot v2.1 has them."""
    from dynaflip.platform.triplets.sources.rlds import RLDSSource

    source = RLDSSource(SourceConfig(path=str(record)))
    clips = [clip for clip in source.list_clips() if clip.camera == "image_0"]
    odd = OddSet(version="v2.1", tasks=sorted({clip.captions[0] for clip in clips}), video_fps=5)
    image = {"dtype": "video", "shape": [64, 64, 3], "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": [7], "names": None}
    odd.info = {"codebase_version": "v2.1", "fps": 5, "total_episodes": len(clips)}
    odd.info["features"] = {KEY: image, "action": vector, "observation.state": vector}
    odd.videos[KEY] = []
    for number, clip in enumerate(clips):
        recording = source.open(clip)
        steps = len(recording.times_s())
        odd.videos[KEY].append(recording.read_frames(list(range(steps)), 64))
        columns = [
            np.reshape(recording.features[name], (steps, 7)).tolist()
            for name in ("steps/action", "steps/observation/state")
        ]
        task = odd.tasks.index(clip.captions[0])
        odd.episodes.append({"episode_index": number, "length": steps, "tasks": [odd.tasks[task]]})
        for step, (action, state) in enumerate(zip(*columns, strict=True)):
            place = {"episode_index": number, "frame_index": step, "timestamp": step / 5}
            values = {"action": action, "observation.state": state, "task_index": task}
            odd.rows.append({**place, **values})
    return odd.write(folder)


def demo_set(folder: Path) -> Path:
    """What the demo collects, small."""
    from dynaflip.platform.demonstrations.collect import collect
    from dynaflip.platform.demonstrations.config import CollectConfig

    plain = {"perturbed_share": 0.0, "moving_camera_share": 0.0}
    collect(
        CollectConfig(tasks=("reach",), episodes_per_task=6, image_px=32, max_steps=40, **plain),
        str(folder),
    )
    return folder


def registered(folder: Path) -> str:
    """URI of a version whose weights nobody trained."""
    from dynaflip.platform import tracking
    from dynaflip.platform.tracking import registry

    maker = tracking.open_run("dynaflip-pretrain", "maker", {"kind": "pretrain"})
    encoder = encoder_folder(folder)
    described = json.loads((encoder / "config.json").read_text())
    described["info"]["mlflow_run_id"] = maker.run_id
    (encoder / "config.json").write_text(json.dumps(described))
    version = registry.register(encoder, maker, name="mine")
    maker.end("FINISHED")
    return f"models:/mine/{version}"


def share_holding_out(data: Path, least: int) -> float:
    """The least share, in steps of 0.05, that holds out so many recordings."""
    clips = LeRobotSource(SourceConfig(path=str(data))).list_clips()
    ids = {clip.recording_id for clip in clips}
    shares = [round(0.05 * step, 2) for step in range(1, 20)]
    return next(s for s in shares if sum(split_of(i, s) == "heldout" for i in ids) >= least)


@pytest.mark.parametrize("name", [*SETS])
def test_one_command_from_a_set_to_report_score_and_promotion(
    name: str,
    request: pytest.FixtureRequest,
    ray_cluster: None,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import dynaflip
    from dynaflip.jobs import evaluate
    from dynaflip.platform.tracking import registry

    if name == "demo":
        data = demo_set(tmp_path / "data")
    else:
        clips = request.getfixturevalue("shared_clips")
        data = clips / "g1_lerobot_v21"
        if name == "bridge":
            data = bridge_as_lerobot(clips / "bridge_debug.tfrecord", tmp_path / "data")
    settings = {
        "source": str(data),
        "encoder": registered(tmp_path / "encoder"),
        "baselines": ["initialization"],
        "split": "test",
        "seeds": 2,
        "factors": ["light"],
        "all_at_once": False,
        "frames_per_episode": 8,
        "heldout_share": share_holding_out(data, 1 if name == "g1" else 2),
        "image_px": 32,
        "behaviour_cloning": {"hidden_dim": 16, "layers": 1, "steps": 40},
        "promote": True,
        "promotion": {"suite": "offline", "factors": ["light"], "episodes": 2},
    }
    (tmp_path / "offline.yaml").write_text(yaml.safe_dump(settings))
    config = str(tmp_path / "offline.yaml")
    assert evaluate.main(["--suite", "offline", "--config", config]) == 0
    said = capsys.readouterr().out

    (report,) = (home / "reports").glob("*.html")
    assert f"report: {report}" in said
    results = pl.read_parquet(report.with_suffix(".parquet"))
    assert set(results["encoder"]) >= {"trained", "initialization"}
    tags = registry.version_tags("mine", "1")
    assert float(tags["offline_test/action_error/in_distribution/trained"]) > 0
    # One held-out episode is refused as evidence; of several, equal weights gain nothing.
    few = "lacks 2 held-out episodes (it has 1)"
    reason = few if name == "g1" else "perturbed +0.000 [+0.000, +0.000] sigma"
    assert reason in said.partition("mine version 1 is not promoted: ")[2]

    uri = said.partition('load_policy("')[2].partition('"')[0]
    policy = dynaflip.load_policy(uri)
    width, rate, tasks = SETS[name]
    assert (len(policy.description.actions), policy.description.control_hz) == (width, rate)
    assert len(policy.tasks) == tasks
    image = np.zeros((48, 64, 3), np.uint8)
    state = np.zeros(len(policy.description.proprioception))
    actions = policy.act(image, state, task=policy.tasks[-1])
    assert actions.shape == (1, width)
    assert np.isfinite(actions).all()
