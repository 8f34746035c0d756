"""Named protocols run whole on real Ray, as small as they can be."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tiny_rollouts import encoder_folder

from dynaflip.platform.config_loader import load_config
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.protocols import read_protocol, settings_below
from dynaflip.platform.tracking.store import client

pytestmark = [pytest.mark.sim, pytest.mark.integration]


def small(name: str, encoder: Path, **changes: Any) -> RolloutConfig:
    """The settings of ``--protocol NAME`` with the flags of a run of seconds."""
    flags = {
        "encoder": str(encoder),
        "baselines": "random",
        "seeds": 1,
        "split": "dev",
        "factors": "light_tint",
        "episodes": 2,
        "demonstrations": 3,
        "image_px": 32,
        "horizon_steps": 40,
        "steps_after_success": 5,
        "environments": 2,
        "behaviour_cloning.steps": 20,
        "behaviour_cloning.hidden_dim": 16,
        "keep_policies": "false",
    }
    below = settings_below(read_protocol(name), name)
    return load_config(RolloutConfig, None, {**flags, **changes}, below=below)


def test_success_by_number_of_demonstrations_is_of_the_same_ones_and_the_same_starts(
    ray_cluster: None, home: Path, tmp_path: Path
) -> None:
    from dynaflip.platform.evaluation.suites.rollouts import Rollouts

    config = small(
        "few_demos",
        encoder_folder(tmp_path / "encoder"),
        tasks="reach",
        fewer_demonstrations="1,2",
    )
    outcome = Rollouts().run(config)
    rows = outcome.rows()
    by_number = rows.partition_by("demonstrations", as_dict=True)
    assert {number for (number,) in by_number} == {1, 2, 3}
    keys = ["arm", "seed", "task", "factor", "episode", "layout_seed"]
    whole = by_number[3,].select(keys).sort(keys)
    assert len(whole) == 2 * 2 * 2
    for number in (1, 2):
        assert by_number[number,].select(keys).sort(keys).equals(whole)
    # Collected once, and fitted for each number; random weights of a seed are one encoder.
    assert len(list((home / "evaluation" / "demonstrations").glob("reach-v3-*"))) == 1
    assert len(list((home / "evaluation" / "policies").iterdir())) == 3
    assert "success_ever/proprioception/in_distribution/trained/1_demonstrations" in outcome.metrics
    tags = client().get_run(outcome.run_id).data.tags
    assert tags["protocol"].startswith("few_demos, changed: ")
    assert outcome.report is not None
    page = outcome.report.read_text()
    assert "By number of demonstrations" in page
    assert outcome.results is not None
    assert set(pl.read_parquet(outcome.results)["demonstrations"].drop_nulls()) == {1, 2, 3}


@pytest.mark.skipif(
    importlib.util.find_spec("ogbench") is None,
    reason="OGBench is not installed: pip install 'dynaflip[ogbench]'",
)
def test_an_encoder_of_one_simulator_is_evaluated_promoted_and_tuned_in_another(
    ray_cluster: None, home: Path, tmp_path: Path
) -> None:
    from dynaflip.errors import UserError
    from dynaflip.eval.policies.config import BehaviourCloningConfig
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.suites.rollouts import Rollouts
    from dynaflip.platform.promotion import promote
    from dynaflip.platform.promotion_config import PromotionConfig
    from dynaflip.platform.sweep.config import PolicyScoreConfig
    from dynaflip.platform.sweep.policy_score import policy_score
    from dynaflip.platform.tracking import registry

    maker = tracking.open_run("dynaflip-pretrain", "maker", {"kind": "pretrain"})
    folder = encoder_folder(tmp_path / "encoder")  # pretrained on Meta-World's drawer-open
    described = json.loads((folder / "config.json").read_text())
    described["info"]["mlflow_run_id"] = maker.run_id
    (folder / "config.json").write_text(json.dumps(described))
    version = str(registry.register(folder, maker))
    maker.end("FINISHED")

    config = small(
        "unseen_environment",
        Path(f"models:/{registry.DEFAULT_NAME}/{version}"),
        baselines="initialization",
        split="test",
        seeds=2,  # a champion's policies must have a spread
        tasks="window-open",
        all_at_once="false",
        demonstrations=2,
    )
    outcome = Rollouts().run(config)
    rows = outcome.rows()
    assert set(rows["task"]) == {"window-open"}
    assert len(rows) == 2 * 2 * 2 * 2
    assert "checked: pretraining had none of what is called unseen (environment)" in outcome.notes
    assert outcome.report is not None
    assert "ogbench 1.2.2" in outcome.report.read_text()

    # What a champion takes is OGBench's own tasks, unless the settings say which.
    with pytest.raises(UserError, match="lack drawer-open, window-close"):
        promote(registry.DEFAULT_NAME, version)
    needed = PromotionConfig(tasks=("window-open",), factors=("light_tint",), episodes=2)
    decision = promote(registry.DEFAULT_NAME, version, needed=needed)
    assert not decision.promoted  # it is its own initialisation
    assert "against its own initialisation, on test" in decision.explanation

    score = policy_score(
        PolicyScoreConfig(
            environment="ogbench",
            tasks=("window-open",),
            factors=("light_tint",),
            episodes=1,
            demonstrations=2,
            image_px=32,
            behaviour_cloning=BehaviourCloningConfig(hidden_dim=16, layers=1, steps=20),
        )
    )
    assert score(folder) in (0, 100)
    sets = list((home / "evaluation" / "demonstrations").glob("window-open-*"))
    assert len(sets) == 1, "a sweep's policies learn from the same demonstrations"
