"""The evaluation as a user meets it: clear mistakes, and the whole of it, small."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.probe_config import ProbesConfig, ProbeSuiteConfig, ViewsConfig
from dynaflip.platform.tracking.store import client
from tests.encoders.outside_folders import outside_folder

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("drawer-open-v3", "button-press-v3")
SHARE = 0.3  # of the recordings held out


def job(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "evaluate.py"), *words],
        env={**os.environ, "DYNAFLIP_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--encoder", "models:/dynaflip-encoder@candidate"], "registered: nothing yet"),
        (["--encoder", "nowhere"], "does not exist"),
        (["--views.level", "9"], "level must be in [1, 5]"),
        (["--views.episodes", "3"], "did you mean views.episodes_per_task?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, words: list[str], said: str) -> None:
    done = job(*words, home=tmp_path / "home")
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "home" / "mlflow").exists()


def encoder_folder(path: Path) -> Path:
    """A small model exactly as pretraining with seed 0 begins it."""
    from dynaflip.encoders.checkpoint import save_folder
    from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
    from dynaflip.encoders.model import DynaFLIP
    from dynaflip.platform.training.checkpoint_format import seed_step

    seed_step(0, 0, 0)
    flow = FlowConfig(width=32, layers=1, heads=2, channels=8)
    image = ImageConfig(image_px=32, pretrained=False)
    model = DynaFLIP(ModelConfig(image=image, flow=flow, embedding_dim=16, hidden_dim=32))
    return save_folder(path, model, {"config": {"train": {"seed": 0}}, "run_name": "toy"})


def recordings(folder: Path) -> tuple[Path, Path]:
    """A small data set of two tasks and its triplets."""
    from dynaflip.platform.demonstrations.collect import collect
    from dynaflip.platform.demonstrations.config import CollectConfig
    from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
    from dynaflip.platform.triplets.pipeline import preprocess

    plain = {"perturbed_share": 0.0, "moving_camera_share": 0.0}
    collect(
        CollectConfig(tasks=TASKS, episodes_per_task=6, image_px=64, **plain), str(folder / "data")
    )
    source = SourceConfig(path=str(folder / "data"))
    config = PreprocessConfig(
        source=source,
        image_px=32,
        heldout_share=SHARE,
        flow_window_s=0.2,
        draws_per_clip=1,
        example_images=0,
    )
    assert not preprocess(config, str(folder / "triplets")).failure
    return folder / "data", folder / "triplets"


@pytest.mark.sim
@pytest.mark.ray
def test_an_untrained_encoder_scores_as_its_own_initialisation(
    ray_cluster: None, home: Path, tmp_path: Path
) -> None:
    from dynaflip.platform.evaluation.suites.probes import Probes

    data, triplets = recordings(tmp_path)
    config = ProbeSuiteConfig(
        encoder=str(encoder_folder(tmp_path / "encoder")),
        data=str(data),
        triplets=str(triplets),
        views=ViewsConfig(
            episodes_per_task=2, frames_per_episode=3, frames_per_factor=2, factors=("camera",)
        ),
        probes=ProbesConfig(frames_per_episode=6),
        encoders=(f"siglip2={outside_folder('siglip2', tmp_path / 'siglip2')}",),
    )
    outcome = Probes().run(config)
    # Rebuilt from its settings and seed, the initialisation is the same network.
    for key, value in outcome.metrics.items():
        if key.startswith("trained/"):
            assert value == pytest.approx(outcome.metrics[key.replace("trained", "initial", 1)])
    for target in ("hand", "object"):
        for condition in ("recorded", "none", "all", "one", "camera"):
            name = f"probe/{target}/{condition}"
            assert outcome.metrics[f"{name}/difference_cm"] == pytest.approx(0, abs=1e-6)
            assert outcome.metrics[f"{name}/mean_cm"] > 0
            gap = outcome.metrics[f"{name}/trained_cm"] - outcome.metrics[f"{name}/siglip2_cm"]
            assert outcome.metrics[f"{name}/difference_from_siglip2_cm"] == pytest.approx(gap)
    results = pl.read_parquet(outcome.results)
    shown = results.filter(pl.col("metric") == "probe/hand", pl.col("encoder") == "siglip2")
    assert dict(shown.select("factor", "level").iter_rows()) == {
        "recorded": 0, "none": 0, "all": 3, "one": 3, "camera": 3,
    }  # fmt: skip
    assert shown["weights"].unique().item().endswith("siglip2")
    chance = results.filter(pl.col("metric") == "retrieval/task/top1")["chance"]
    assert chance.unique().item() == outcome.metrics["trained/retrieval/task/chance"]
    assert "same task" in outcome.table
    assert "all factors" in outcome.table
    page = outcome.report.read_text()
    assert page.count("data:image/") == 3
    assert "http" not in page
    run = client().get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["perturbation_split"] == "dev"
    assert run.data.metrics["probe/hand/all/trained_cm"] > 0
    # A second evaluation renders nothing and says the same.
    cached = sorted((home / "evaluation").glob("*.parquet"))
    assert len(cached) == len(TASKS)
    written = [path.stat().st_mtime_ns for path in cached]
    again = Probes().run(config)
    assert again.metrics == outcome.metrics
    assert [path.stat().st_mtime_ns for path in cached] == written
    # Who asks to reuse it gets the newest score of these weights, and no other.
    found = Probes().find_finished(config)
    assert found is not None
    assert (found.run_id, found.table) == (again.run_id, again.table)
    for change in ({"seed": 1}, {"encoders": ()}):
        assert Probes().find_finished(dataclasses.replace(config, **change)) is None


def test_probes_are_skipped_in_words_where_nothing_is_labelled(tmp_path: Path) -> None:
    from dynaflip.platform.evaluation.recordings import labels_missing

    assert "there is no data set" in str(labels_missing(str(tmp_path / "none")))
    (tmp_path / "meta").mkdir()
    assert "no LeRobot data set" in str(labels_missing(str(tmp_path)))
    info = tmp_path / "meta" / "info.json"
    info.write_text(json.dumps({"features": {"observation.state": {}}}))
    assert "no privileged.object_position_m" in str(labels_missing(str(tmp_path)))
    info.write_text(json.dumps({"features": {}})[:-1])
    with pytest.raises(UserError, match="damaged"):
        labels_missing(str(tmp_path))


def test_an_unknown_factor_is_refused_before_anything_is_rendered() -> None:
    with pytest.raises(UserError, match="there is no factor 'fog'"):
        ViewsConfig(factors=("fog",))


def test_a_task_that_no_probe_can_be_fitted_on_is_refused_by_the_setting_s_name() -> None:
    from types import SimpleNamespace
    from typing import Any

    from dynaflip.platform.evaluation.probe_frames import make_probe_frames

    source = SimpleNamespace(root="/data")
    recordings: Any = SimpleNamespace(source=source, tasks=lambda: ["open"])
    views = ViewsConfig(tasks=("open", "close"))
    with pytest.raises(UserError, match=r"score\.views\.tasks: /data .* of close, .* of open$"):
        make_probe_frames(recordings, views, 2, "score.views")
    none: Any = SimpleNamespace(source=source, tasks=list)
    with pytest.raises(UserError, match=r"of any task, .*collect more"):
        make_probe_frames(none, ViewsConfig(), 2, "views")
