"""A small data set, collected for real: as LeRobot reads it, resumed, and never half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynaflip.errors import UserError
from dynaflip.eval.envs.exact_flow import exact_flow_for_episode
from dynaflip.eval.envs.metaworld import Scene, State
from dynaflip.eval.envs.metaworld_tasks import CAPTIONS
from dynaflip.eval.perturbations import SPLITS, belongs_to
from dynaflip.platform.demonstrations import collect as collecting
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.demonstrations.lerobot_episode import read_depth_codes
from dynaflip.platform.demonstrations.plan import plan_episodes
from dynaflip.platform.lerobot.depth_codec import decode_depth

pytestmark = [pytest.mark.sim, pytest.mark.ray]

# Episode 3 stops before it is solved: failures are kept.
CONFIG = CollectConfig(
    tasks=("button-press-topdown-v3", "drawer-open-v3"),
    episodes_per_task=2,
    image_px=64,
    perturbed_share=0.75,
    moving_camera_share=0.5,
    max_steps=80,
    seed=2,
)
RGB, DEPTH = "observation.images.corner4", "observation.images.corner4_depth"


@pytest.fixture(scope="module")
def dataset(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collected") / "set"
    outcome = collecting.collect(CONFIG, str(folder))
    assert outcome.recorded_now == outcome.episodes == 4
    return folder


@pytest.fixture(scope="module")
def episodes(dataset: Path) -> list[dict]:
    return pq.read_table(dataset / "meta/episodes/chunk-000/file-000.parquet").to_pylist()


@pytest.fixture(scope="module")
def frames(dataset: Path) -> pa.Table:
    return pq.read_table(dataset / "data/chunk-000/file-000.parquet")


@pytest.fixture(scope="module")
def info(dataset: Path) -> dict:
    return json.loads((dataset / "meta/info.json").read_text())


def column(frames: pa.Table, name: str, episode: dict) -> np.ndarray:
    rows = frames.slice(episode["dataset_from_index"], episode["length"])
    return np.stack(rows[name].to_numpy())


def test_info_declares_what_the_files_hold(
    dataset: Path, info: dict, frames: pa.Table, episodes: list[dict]
) -> None:
    assert (info["codebase_version"], info["fps"]) == ("v3.0", 80)
    assert info["total_episodes"] == len(episodes) == 4
    assert info["total_frames"] == len(frames) == sum(e["length"] for e in episodes)
    videos = {key for key, feature in info["features"].items() if feature["dtype"] == "video"}
    assert videos == {RGB, DEPTH}
    assert {*info["features"]} - videos == {*frames.column_names}
    for name in frames.column_names:
        feature, kind = info["features"][name], frames.schema.field(name).type
        assert "/" not in name
        if feature["shape"] == [1]:
            assert kind == pa.type_for_alias(feature["dtype"])
        else:
            assert kind.list_size == feature["shape"][0]
            assert kind.value_type == pa.type_for_alias(feature["dtype"])


def test_the_depth_feature_says_how_to_decode_it(info: dict) -> None:
    """The keys that LeRobot's DepthEncoderConfig.from_video_info and depth_keys look for."""
    feature = info["features"][DEPTH]
    assert feature["shape"] == [64, 64, 1]
    expected = {
        "is_depth_map": True,
        "depth_unit": "m",
        "video.codec": "hevc",
        "video.pix_fmt": "gray12le",
        "video.depth_min": 0.25,
        "video.depth_max": 7.0,
        "video.shift": 0.0,
        "video.use_log": True,
        "video.extra_options": {"x265-params": "lossless=1"},
    }
    assert expected.items() <= feature["info"].items()
    assert info["features"][RGB]["info"]["is_depth_map"] is False


def test_tasks_are_phrasings_in_the_pandas_index(
    dataset: Path, frames: pa.Table, episodes: list[dict]
) -> None:
    tasks = pd.read_parquet(dataset / "meta/tasks.parquet")
    assert tasks.index.name == "task"
    assert tasks["task_index"].tolist() == list(range(len(tasks)))
    for episode in episodes:
        [caption] = episode["tasks"]
        assert caption in CAPTIONS[episode["task_id"]]
        indices = column(frames, "task_index", episode)
        assert {tasks.iloc[i].name for i in indices} == {caption}


def test_indices_and_time_stamps_are_lerobots(
    dataset: Path, info: dict, frames: pa.Table, episodes: list[dict]
) -> None:
    np.testing.assert_array_equal(frames["index"].to_numpy(), np.arange(len(frames)))
    for index, episode in enumerate(episodes):
        length = episode["length"]
        assert episode["episode_index"] == index
        assert set(column(frames, "episode_index", episode)) == {index}
        np.testing.assert_array_equal(column(frames, "frame_index", episode), np.arange(length))
        times_s = column(frames, "timestamp", episode)
        for key in (RGB, DEPTH):
            path = info["video_path"].format(
                video_key=key,
                chunk_index=episode[f"videos/{key}/chunk_index"],
                file_index=episode[f"videos/{key}/file_index"],
            )
            with av.open(str(dataset / path)) as container:
                stream = container.streams.video[0]
                shown_s = [float(f.pts * stream.time_base) for f in container.decode(stream)]
            wanted_s = episode[f"videos/{key}/from_timestamp"] + times_s
            np.testing.assert_allclose(shown_s, wanted_s, atol=1e-4)
            assert episode[f"videos/{key}/to_timestamp"] == pytest.approx(length / 80)


def test_statistics_are_those_of_the_columns(
    dataset: Path, info: dict, frames: pa.Table, episodes: list[dict]
) -> None:
    stats = json.loads((dataset / "meta/stats.json").read_text())
    assert {*stats} == {*info["features"]}
    state = np.stack(frames["observation.state"].to_numpy())
    np.testing.assert_allclose(stats["observation.state"]["mean"], state.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["observation.state"]["std"], state.std(0), atol=1e-6)
    np.testing.assert_allclose(stats["observation.state"]["max"], state.max(0))
    assert stats["index"]["count"] == [len(frames)]
    for key, channels in ((RGB, 3), (DEPTH, 1)):
        for name in ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99"):
            assert np.shape(stats[key][name]) == (channels, 1, 1)
            assert np.shape(episodes[0][f"stats/{key}/{name}"]) == (channels, 1, 1)
    assert 0 <= np.min(stats[RGB]["min"]) <= np.max(stats[RGB]["max"]) <= 1
    assert 0.25 <= np.min(stats[DEPTH]["min"]) <= np.max(stats[DEPTH]["max"]) <= 7.001


def test_recorded_values_belong_to_pretraining_alone(episodes: list[dict]) -> None:
    for episode in episodes:
        assert episode["factor_split"] == "pretrain"
        drawn = {**json.loads(episode["factors"]), "layout_seed": episode["layout_seed"]}
        assert [s for s in SPLITS if belongs_to(drawn, s)] == ["pretrain"]
    assert any(episode["moving_camera"] for episode in episodes)
    assert any(episode["factors"] != "{}" for episode in episodes)


def test_failed_episodes_are_kept_and_marked(episodes: list[dict]) -> None:
    solved = {episode["task_id"]: episode["success"] for episode in episodes}
    assert solved == {"button-press-topdown-v3": True, "drawer-open-v3": False}
    assert all(e["length"] == 80 for e in episodes if not e["success"])


def test_what_policies_see_has_no_object_or_goal(frames: pa.Table, episodes: list[dict]) -> None:
    visible = [n for n in frames.column_names if n.startswith("observation.") or n == "action"]
    assert visible == [
        "observation.state",
        "action",
        "observation.camera_pose.corner4",
        "observation.intrinsics.corner4",
    ]
    assert frames.schema.field("observation.state").type.list_size == 4
    for episode in episodes:
        state = column(frames, "observation.state", episode)
        for name in ("privileged.object_position_m", "privileged.goal_position_m"):
            for value in column(frames, name, episode)[0]:
                assert not np.isclose(state[0], value, atol=1e-5).any()


def test_a_frame_is_restored_from_its_columns(
    dataset: Path, frames: pa.Table, episodes: list[dict]
) -> None:
    """Layout seed, qpos and camera pose give the recorded depth back."""
    for index, episode in enumerate(episodes):
        scene = Scene(episode["task_id"], height_px=64, width_px=64)
        scene.reset(episode["layout_seed"])
        now = scene.state()
        at = episode["length"] - 5
        qpos = column(frames, "privileged.qpos", episode)[at][: len(now.qpos)]
        scene.set_state(State(qpos, now.qvel, now.mocap_pos_m, now.mocap_quat))
        pose = column(frames, "observation.camera_pose.corner4", episode)[at]
        scene.set_camera_pose(pose.reshape(4, 4).astype(np.float64))
        recorded_m = decode_depth(
            read_depth_codes(dataset / f"videos/{DEPTH}/chunk-000/file-{index:03d}.mp4")
        )[at]
        error_m = np.abs(np.minimum(scene.depth_m(), 7.0) - recorded_m)
        assert np.quantile(error_m, 0.99) < 0.003
        scene.close()


def test_exact_flow_of_an_episode(frames: pa.Table, episodes: list[dict]) -> None:
    episode = episodes[0]
    steps = [episode["length"] - 45 + round(k * 40 / 7) for k in range(8)]
    centres = (np.arange(20) + 0.5) * 64 / 20
    flow = exact_flow_for_episode(
        task_id=episode["task_id"],
        layout_seed=episode["layout_seed"],
        factors=json.loads(episode["factors"]),
        qpos=column(frames, "privileged.qpos", episode)[steps],
        camera_poses=column(frames, "observation.camera_pose.corner4", episode)[steps],
        origins_px=np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2),
        height_px=64,
        width_px=64,
    )
    assert flow.displacement_m.shape == (7, 400, 3)
    motion_m = np.linalg.norm(flow.displacement_m[-1], axis=1)
    assert motion_m[flow.body == 0].max() < 1e-5
    assert motion_m.max() > 0.05  # the arm
    assert flow.visible.mean() > 0.4


def test_depth_error_is_measured(dataset: Path) -> None:
    error = json.loads((dataset / "meta/depth_error.json").read_text())
    assert 0 < error["median_mm"] < 0.4
    assert error["median_mm"] < error["p99_mm"] < 2.5
    assert error["p99_mm"] < error["max_mm"] < 3.0
    assert 0.3 < error["nearest_m"] < 1.0


def test_again_is_nothing_to_do_and_other_settings_are_refused(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.is_file()}
    again = collecting.collect(CONFIG, str(dataset))
    assert (again.recorded_now, again.episodes) == (0, 4)
    assert before == {p: p.stat().st_mtime_ns for p in dataset.rglob("*") if p.is_file()}
    other = CollectConfig(tasks=CONFIG.tasks, image_px=96)
    with pytest.raises(UserError, match=r"other settings \(.*image_px 64, now 96"):
        collecting.collect(other, str(dataset))


def test_a_folder_of_someone_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="not written by jobs/collect"):
        collecting.collect(CONFIG, str(tmp_path))
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"


def test_a_resumed_collection_is_the_uninterrupted_one(
    dataset: Path, episodes: list[dict], frames: pa.Table, tmp_path: Path, ray_cluster: None
) -> None:
    """Whatever the order and whatever was there: the same frames, bit for bit."""
    folder = tmp_path / "resumed"
    staging = tmp_path / "resumed.partial"
    recipe = json.loads((dataset / "meta/dynaflip.json").read_text())
    (staging / "episodes").mkdir(parents=True)
    (staging / "settings.json").write_text(json.dumps(recipe))
    # The last episode was done, and the first half-written, when the collection was killed.
    plans = plan_episodes(CONFIG)
    recorder = collecting.Recorder(CONFIG, str(staging / "episodes"))
    recorder.record(plans[3])
    shutil.copytree(staging / "episodes/episode-000003", staging / "episodes/episode-000000.tmp")
    outcome = collecting.collect(CONFIG, str(folder), num_cpus=1)
    assert outcome.recorded_now == 3
    assert not staging.exists()
    assert pq.read_table(folder / "data/chunk-000/file-000.parquet").equals(frames)
    for path in sorted(dataset.rglob("*.mp4")):
        assert (folder / path.relative_to(dataset)).read_bytes() == path.read_bytes()
