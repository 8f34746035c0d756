"""Evaluation on a user's own recordings: which are held out, mistakes, and the whole job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_rollouts import encoder_folder

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.encoders_under_test import Encoder, EncoderUnderTest
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import read_offline
from dynaflip.platform.evaluation.offline_plan import heldout_share_notes
from dynaflip.platform.promotion_config import PromotionConfig
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources.lerobot import LeRobotSource
from dynaflip.platform.triplets.split import split_of
from tests.encoders.outside_folders import outside_folder
from tests.platform.evaluation.own_robot import CONSTANT, own_robot, write

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_held_out_is_what_preprocessing_holds_out(tmp_path: Path, version: str) -> None:
    path = write(tmp_path, version)
    data = read_offline(OfflineConfig(source=path, heldout_share=0.4, frames_per_episode=4))
    clips = LeRobotSource(SourceConfig(path=path)).list_clips()
    expected = {c.episode_index for c in clips if split_of(c.recording_id, 0.4) == "heldout"}
    assert {episode.index for episode in data.heldout} == expected
    assert len(data.train) == 8 - len(expected)
    one = data.train[0]
    assert one.frames == (0, 3, 6, 9)
    assert one.actions.shape == (4, 5)
    rows = [r["action"] for r in own_robot().rows if r["episode_index"] == one.index]
    np.testing.assert_allclose(one.actions, np.array(rows)[[0, 3, 6, 9]])
    assert one.proprioception.shape == (4, 3)
    alone = read_offline(OfflineConfig(source=path, heldout_share=0.4, proprioception=()))
    assert alone.train[0].proprioception.shape == (10, 0)


def test_few_episodes_are_chosen_by_content_and_not_by_place(tmp_path: Path) -> None:
    path = write(tmp_path)
    few = read_offline(OfflineConfig(source=path, heldout_share=0.4, train_episodes=2))
    more = read_offline(OfflineConfig(source=path, heldout_share=0.4, train_episodes=3))
    assert [e.index for e in few.train] == [e.index for e in more.train[:2]]


def test_mistakes_are_said_in_one_line(tmp_path: Path) -> None:
    def refused(path: str, **changes: object) -> str:
        with pytest.raises(UserError) as error:
            read_offline(OfflineConfig(source=path, **changes))  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "give the folder" in refused("")
    path = write(tmp_path / "sound")
    said = refused(path, action="actions")
    assert "action: " in said
    assert "no column actions" in said
    assert "observation.state" in said
    assert "no column gripper" in refused(path, proprioception=("gripper",))
    assert "no camera wrist" in refused(path, cameras=("wrist",))

    two = write(tmp_path / "two", episodes=2)
    assert "of 2 recordings" in refused(two, heldout_share=0.01)
    assert "--heldout_share" in refused(two, heldout_share=0.01)
    one = write(tmp_path / "one", episodes=1)
    assert "record more episodes" in refused(one, heldout_share=0.5)

    other = own_robot("v2.1")  # a file an episode, so that widths may differ
    for row in other.rows:
        if row["episode_index"] == 3:
            row["action"] = row["action"][:4]
    said = refused(str(other.write(tmp_path / "other")), heldout_share=0.4)
    assert "of width 5" in said
    assert "of 4" in said
    assert "episode 3" in said

    broken = own_robot()
    for row in broken.rows:
        row["action"] = [float("nan")] * 5
    said = refused(str(broken.write(tmp_path / "broken")), heldout_share=0.4)
    assert "8 cannot be used" in said
    assert "no finite number" in said


def test_an_episode_that_cannot_be_used_is_left_out_and_said(tmp_path: Path) -> None:
    odd = own_robot()
    odd.rows[0]["action"] = [float("inf")] * 5
    data = read_offline(OfflineConfig(source=str(odd.write(tmp_path)), heldout_share=0.4))
    assert len(data.train) + len(data.heldout) == 7
    assert any("left out episode 0" in note for note in data.notes)


def test_a_pretraining_that_held_out_less_is_said_with_both_shares(tmp_path: Path) -> None:
    def notes(share: float | None) -> list[str]:
        folder = encoder_folder(tmp_path / f"encoder-{share}")
        described = json.loads((folder / "config.json").read_text())
        described["info"]["heldout_share"] = share
        (folder / "config.json").write_text(json.dumps(described))
        encoder = Encoder("mine", str(folder), "digest")
        return heldout_share_notes(0.2, [EncoderUnderTest("trained", (encoder, encoder))])

    (said,) = notes(0.05)
    assert "heldout_share 0.05, and here it is 0.2" in said
    assert notes(0.2) == notes(0.5) == notes(None) == []


def started(home: Path, *words: str) -> dict[str, Any]:
    """How the job is started as a program of its own."""
    return {
        "args": [sys.executable, str(ROOT / "jobs/evaluate.py"), "--suite", "offline", *words],
        "env": {**os.environ, "DYNAFLIP_HOME": str(home), "PYTHONPATH": str(ROOT)},
        "cwd": home.parent,
    }


def evaluate(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        **started(home, *words),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.integration
def test_one_command_compares_two_encoders_on_own_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynaflip.platform import tracking
    from dynaflip.platform.promotion import promote
    from dynaflip.platform.tracking import registry

    home = tmp_path / "home"
    monkeypatch.setenv("DYNAFLIP_HOME", str(home))
    maker = tracking.open_run("dynaflip-pretrain", "maker", {"kind": "pretrain"})
    folder = encoder_folder(tmp_path / "encoder")
    described = json.loads((folder / "config.json").read_text())
    described["info"]["mlflow_run_id"] = maker.run_id
    (folder / "config.json").write_text(json.dumps(described))
    registry.register(folder, maker, name="mine")
    maker.end("FINISHED")
    words = ["--source", write(tmp_path / "data", episodes=12), "--heldout_share", "0.4"]
    words += ["--encoder", "models:/mine/1", "--baselines", "[initialization]"]
    dinov2 = outside_folder("dinov2", tmp_path / "dinov2")
    words += ["--encoders", f'["dinov2[28px]={dinov2}"]', "--factors", "light,blur"]
    words += ["--split", "test", "--seeds", "2", "--behaviour_cloning.steps", "200"]
    words += ["--behaviour_cloning.input_norm", "std_floor"]
    done = evaluate(home, *words)
    assert done.returncode == 0, done.stderr
    (saved,) = (home / "reports").glob("*.parquet")
    results = pl.read_parquet(saved)
    # 4 encoders ("no image" is one) x 2 policies x 4 conditions x 2 metrics.
    assert len(results) == 64
    assert results["encoder"].unique(maintain_order=True).to_list() == [
        "trained", "initialization", "dinov2", "no image",
    ]  # fmt: skip
    clean = results.filter(
        (pl.col("metric") == "action_error") & (pl.col("factor") == "none")
    ).group_by("encoder", maintain_order=True).agg(pl.col("value").mean())  # fmt: skip
    errors = dict(clean.iter_rows())
    # Most of the actions are in the image alone.
    assert errors["trained"] < errors["no image"]
    assert f"entries {CONSTANT} of action are constant" in done.stdout
    assert "this is evaluation 1 on the test split" in done.stdout
    assert saved.with_suffix(".html").stat().st_size > 10_000

    # The score is on the version, and promotion reads the evidence: here both are equal.
    tags = registry.version_tags("mine", "1")
    score = float(tags["offline_test/action_error/in_distribution/trained"])
    assert score == pytest.approx(errors["trained"], rel=1e-3)
    needed = PromotionConfig(suite="offline", factors=("light", "blur"), episodes=5)
    decision = promote("mine", "1", needed=needed)
    assert not decision.promoted
    assert "perturbed +0.000 [+0.000, +0.000] sigma" in decision.explanation

    # Nothing is encoded twice; equal evaluations are one look at test.
    again = evaluate(home, *words)
    assert "\n0 images to encode" in again.stdout
    assert "this is evaluation 1 on the test split" in again.stdout
    for line in done.stdout.splitlines():
        if line.startswith(("  trained", "  dinov2")):
            assert line in again.stdout


@pytest.mark.integration
def test_a_killed_evaluation_on_tokens_resumes_to_the_table_of_an_uninterrupted_one(
    tmp_path: Path,
) -> None:
    encoder = encoder_folder(tmp_path / "encoder")
    words = ["--source", write(tmp_path / "data", episodes=12), "--heldout_share", "0.4"]
    words += ["--encoder", str(encoder), "--baselines", "[random]", "--factors", "light"]
    words += ["--readout", "spatial_softmax", "--seeds", "2", "--behaviour_cloning.steps", "200"]
    home = tmp_path / "killed"
    killed = subprocess.Popen(
        **started(home, *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    kept = home / "evaluation" / "offline"
    deadline = time.monotonic() + 240
    try:
        while not list(kept.glob("*.safetensors")) and killed.poll() is None:
            assert time.monotonic() < deadline, "no policy was fitted"
            time.sleep(0.02)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it ended before it was killed"
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()}
    assert before
    assert not list((home / "reports").glob("*")), "nothing half-written is left behind"

    done = evaluate(home, *words)
    assert done.returncode == 0, done.stderr
    after = {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()}
    assert before.items() <= after.items(), "what was done is done again"
    assert len(after) > len(before)
    whole = evaluate(tmp_path / "whole", *words)
    assert whole.returncode == 0, whole.stderr
    tables = [
        pl.read_parquet(next((folder / "reports").glob("*.parquet"))).drop("run")
        for folder in (home, tmp_path / "whole")
    ]
    assert tables[0].equals(tables[1])
