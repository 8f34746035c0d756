"""Collection, triplets and a policy evaluation in OGBench, by jobs on real Ray."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import polars as pl
import pytest
from tiny_rollouts import encoder_folder, tiny

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        importlib.util.find_spec("ogbench") is None,
        reason="OGBench is not installed: pip install 'dynaflip[ogbench]'",
    ),
]


def test_demonstrations_triplets_and_policies_in_ogbench(
    ray_cluster: None, home: Path, tmp_path: Path
) -> None:
    from dynaflip.platform.demonstrations.collect import collect
    from dynaflip.platform.demonstrations.config import CollectConfig
    from dynaflip.platform.evaluation.suites.imitation import Imitation
    from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
    from dynaflip.platform.triplets.pipeline import preprocess

    collected = collect(
        CollectConfig(
            environment="ogbench", tasks=("button-left",), episodes_per_task=3, image_px=64
        ),
        str(tmp_path / "data"),
    )
    assert collected.successes == {"button-left": (3, 3)}
    triplets = PreprocessConfig(
        source=SourceConfig(path=str(tmp_path / "data")),
        image_px=32,
        flow_source="simulator",
        example_images=0,
    )
    assert not preprocess(triplets, str(tmp_path / "triplets")).failure
    made = pl.read_parquet(tmp_path / "triplets" / "triplets" / "*.parquet")
    assert len(made) >= 3

    outcome = Imitation().run(
        tiny(
            encoder_folder(tmp_path / "encoder"),
            environment="ogbench",
            tasks=("button-left",),
            baselines=(),
            seeds=1,
        )
    )
    name = "agreement/proprioception/in_distribution"
    assert outcome.metrics[f"{name}/scripted_expert"] == 1
    # The policy of two demonstrations is no better than chance, which is near nothing here.
    assert outcome.metrics[f"{name}/random_policy"] < 0.2
    assert f"{name}/trained" in outcome.metrics
