"""The ablation's job: what is made is reused, and the table says what was found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from checkout import REPOSITORY

from dynaflip.errors import UserError
from dynaflip.eval.intervals.ranking import Ranking, rank_variants
from dynaflip.platform.ablation import AblationConfig, ablate, metrics_of, table_of
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.tracking.store import client
from dynaflip.platform.training.ablations import NO_NEGATIVES, PAPER_SUCCESS_PERCENT, VARIANTS
from dynaflip.platform.training.config import PretrainConfig


def ranking() -> Ranking:
    """Successes with the paper's own rates, and one arm that the paper does not have."""
    luck = np.random.default_rng(0).random((3, 3, 3, 40))
    rates = {**PAPER_SUCCESS_PERCENT, "time_contrast_only": 5.0}
    return rank_variants({arm: (luck < rate / 100).astype(float) for arm, rate in rates.items()})


def test_the_table_stands_in_the_paper_s_order_with_its_verdicts() -> None:
    found = metrics_of(ranking())
    assert found["spearman"] > 0.9
    # Among the paper's arms alone: that another one is worse still does not count.
    assert found["probability_no_negatives_last"] == 1.0
    lines = table_of(ranking(), {NO_NEGATIVES: "2/2/1"}).splitlines()
    names = [line.split()[0] for line in lines[1:-2]]
    assert names == [*PAPER_SUCCESS_PERCENT, "time_contrast_only"]
    collapsed = next(line for line in lines if line.startswith(NO_NEGATIVES))
    assert collapsed.endswith("18.1  2/2/1")
    assert lines[-1] == "probability that no_negatives is last: 1.00"


def test_the_job_s_settings_are_known_and_cover_the_paper_s_arms() -> None:
    path = REPOSITORY / "jobs" / "configs" / "ablate.yaml"
    config = load_config(AblationConfig, str(path), {})
    assert config.chosen() == list(PAPER_SUCCESS_PERCENT)
    assert AblationConfig().chosen() == list(VARIANTS)
    assert len(config.rollouts.tasks) == len(config.rollouts.factors) == len(config.seeds) == 3
    for key, value, said in (
        ("variants", "[no_image]", "there is no no_image"),
        ("seeds", "[1, 1]", "distinct numbers"),
        ("rollouts.split", "test", "must be dev"),
    ):
        with pytest.raises(UserError, match=said):
            load_config(AblationConfig, str(path), {key: value})


def test_an_arm_that_cannot_be_is_refused_before_any_training(tmp_path: Path) -> None:
    def refused(key: str, value: str) -> str:
        nowhere = {"pretrain.triplets": str(tmp_path / "nowhere"), key: value}
        with pytest.raises(UserError) as error:
            ablate(load_config(AblationConfig, None, nowhere))
        return str(error.value)

    assert "no_temporal" in refused("pretrain.objective.temporal", "0")
    assert "no_flow_prediction" in refused("pretrain.objective.flow", "0")
    only = AblationConfig(variants=("no_flow", "language_image_only"))
    settings = dataclasses.replace(only.pretrain.objective, temporal=0.0)
    settings = dataclasses.replace(only.pretrain, objective=settings, triplets="nowhere")
    with pytest.raises(UserError, match="no_flow and language_image_only are the same"):
        ablate(dataclasses.replace(only, pretrain=settings))


@pytest.mark.integration
@pytest.mark.ray
def test_what_is_made_is_reused_and_logged(
    ray_cluster: None, triplet_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = load_config(PretrainConfig, str(REPOSITORY / "tests" / "tiny.yaml"), {})
    named = dataclasses.replace(tiny.tracking, model_name="ablation-test")
    settings = dataclasses.replace(tiny, triplets=str(triplet_folder), tracking=named)
    config = AblationConfig(variants=(NO_NEGATIVES,), seeds=(0,), pretrain=settings)
    scored: list[dict[str, list[str]]] = []

    def score(config: AblationConfig, encoders: dict[str, list[str]]) -> Ranking:
        scored.append(encoders)
        return ranking()

    first = ablate(config, score)
    assert "variant no_negatives, seed 0: pretraining" in capsys.readouterr().out
    assert sorted(scored[0]) == ["full", "no_negatives"]
    run = client().get_run(first.run_id)
    assert run.data.metrics["spearman"] == pytest.approx(metrics_of(ranking())["spearman"])
    ablate(config, score)
    said = capsys.readouterr().out
    assert "pretraining" not in said
    assert said.count("reused") == 2
    assert scored[1] == scored[0]
