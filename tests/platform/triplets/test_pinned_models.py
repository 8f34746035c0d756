"""Depth models and captioners of a hub: every actor loads the commit that the triplets record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub
from tiny_depth_model import tiny_depth_model

from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.models.loading import digests_of_models
from dynaflip.platform.triplets.stage_graph import ModelShards


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.model.parameters()])


@pytest.mark.parametrize("written", ["lab/depth", "lab/depth@main"])
def test_actors_load_the_commit_that_the_triplets_name(
    written: str, model_hub: Hub, tmp_path: Path
) -> None:
    first = model_hub.push("lab/depth", tiny_depth_model(tmp_path / "a", seed=0))
    name = f"model:{written}"
    config = PreprocessConfig(source=SourceConfig(path=str(tmp_path)), depth=name)
    digests = digests_of_models(config)
    assert digests == {written: first}
    one = ModelShards(config, str(tmp_path), None, digests)  # type: ignore[arg-type]
    second = model_hub.push("lab/depth", tiny_depth_model(tmp_path / "b", seed=1))
    model_hub.requests.clear()
    other = ModelShards(config, str(tmp_path), None, digests)  # type: ignore[arg-type]
    assert torch.equal(
        weights(one.stages["depth"].models[name]), weights(other.stages["depth"].models[name])
    )
    assert model_hub.requests == [], "actors do not ask the hub"
    assert digests_of_models(config) == {written: second}, "other weights make other triplets"
