"""Depth from a transformers model in a folder: tiny, random, but really loaded and run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_depth_model import tiny_depth_model

from dynaflip.errors import UserError
from dynaflip.platform.triplets.config import FilterConfig, PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.flow.config import CameraConfig
from dynaflip.platform.triplets.models.depth import (
    TransformersDepth,
    depth_of_inverse,
)
from dynaflip.platform.triplets.pipeline import preprocess


@pytest.fixture(
    scope="module",
    params=[pytest.param("relative", marks=pytest.mark.integration), "metric"],
)
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DepthAnything of a few thousand weights."""
    folder = tmp_path_factory.mktemp(request.param)
    return tiny_depth_model(folder, kind=request.param)


def test_pickled_weights_are_refused_before_any_work(model_folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    shutil.copytree(model_folder, folder)
    weights = folder / "model.safetensors"
    torch.save(load_file(str(weights)), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match=r"depth: model:.* has no weights as safetensors"):
        TransformersDepth.check(str(folder))
    with pytest.raises(OSError, match="safetensors"):
        TransformersDepth(str(folder))


def test_a_model_gives_depth_of_the_images_size(model_folder: Path) -> None:
    TransformersDepth.check(str(model_folder))
    model = TransformersDepth(str(model_folder))
    frames = np.random.default_rng(0).integers(0, 255, (3, 60, 80, 3), dtype=np.uint8)
    depth = model(frames)
    assert depth.shape == (3, 60, 80)
    assert depth.dtype == np.float32
    kinds = {"relative": "inverse", "metric": "metric"}
    assert model.scale == kinds[model_folder.name.rstrip("0123456789")]


def test_inverse_depth_becomes_depth_with_median_one() -> None:
    inverse = np.array([[[1.0, 2.0, 4.0]], [[1.0, 1.0, 1.0]]], np.float32)
    np.testing.assert_allclose(depth_of_inverse(inverse), [[[2, 1, 0.5]], [[2, 2, 2]]])
    assert np.isnan(depth_of_inverse(np.zeros((1, 2, 2), np.float32))).all()


def test_other_models_as_depth_models_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder nor"):
        TransformersDepth.check(str(tmp_path / "nothing"))
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="not a depth model"):
        TransformersDepth.check(str(tmp_path / "vit"))


@pytest.mark.ray
def test_triplets_name_the_model_they_are_from(
    model_folder: Path, video_folder: Callable[..., Path], tmp_path: Path, ray_cluster: None
) -> None:
    config = PreprocessConfig(
        source=SourceConfig(path=str(video_folder(2))),
        depth=f"model:{model_folder}",
        draws_per_clip=1,
        max_rejected_share=1.0,
        # Random weights make no scene: neither its camera nor its motion is judged here.
        camera=CameraConfig(motion="none"),
        filter=FilterConfig(min_moving_share=0, min_visible_share=0),
    )
    outcome = preprocess(config, str(tmp_path / "out"))
    rejected = pq.read_table(outcome.folder / "rejected.parquet").to_pylist()
    # Random weights may give nothing positive; that is then words as a depth problem.
    assert {row["stage"] for row in rejected} <= {"depth"}
    assert outcome.counts["kept"] + len(rejected) == 2
    if model_folder.name.startswith("metric"):
        assert not rejected
    for path in (outcome.folder / "triplets").glob("*.parquet"):
        table = pq.read_table(path)
        assert set(table["depth_kind"].to_pylist()) == {f"model:{model_folder}"}
        assert set(table["depth_scale"].to_pylist()) == {model_folder.name.rstrip("0123456789")}


def test_a_model_in_a_folder_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynaflip.jobs.preprocess import _with_absolute_paths

    (tmp_path / "depth").mkdir()
    monkeypatch.chdir(tmp_path)
    source = SourceConfig(path=str(tmp_path), depth="model:depth", captioner="depth")
    found = _with_absolute_paths(PreprocessConfig(source=source, depth="model:owner/name"))
    assert found.source.depth == f"model:{tmp_path / 'depth'}"
    assert found.source.captioner == str(tmp_path / "depth")
    assert found.depth == "model:owner/name"  # of a hub
