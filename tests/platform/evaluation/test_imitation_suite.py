"""Action error of policies beside the scripted expert, on real Ray in the real simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_rollouts import encoder_folder, tiny

from dynaflip.errors import UserError
from tests.encoders.outside_folders import outside_folder


def test_agreement_is_one_for_the_expert_and_nothing_for_its_mean_or_worse() -> None:
    from dynaflip.eval.metrics.action_error import action_score

    expert = np.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    np.testing.assert_array_equal(action_score(expert, expert, expert), [1, 1])
    np.testing.assert_array_equal(action_score(0 * expert, expert, expert), [0, 0])
    np.testing.assert_array_equal(action_score(5 * expert, expert, expert), [0, 0])
    # By hand: V = 1, half of the way to the mean is 1 - 0.25.
    np.testing.assert_allclose(action_score(0.5 * expert, expert, expert), [0.75, 0.75])


@pytest.mark.ray
@pytest.mark.sim
def test_the_expert_agrees_with_itself_and_a_policy_with_it_more_than_chance(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.suites.imitation import Imitation

    monkeypatch.setenv("DYNAFLIP_HOME", str(tmp_path / "home"))
    encoder = encoder_folder(tmp_path / "encoder")
    dinov2 = outside_folder("dinov2", tmp_path / "dinov2")
    config = tiny(encoder, all_at_once=True, encoders=(f"dinov2[28px]={dinov2}",))
    outcome = Imitation().run(config)

    name = "agreement/proprioception/in_distribution"
    assert outcome.metrics[f"{name}/scripted_expert"] == 1
    assert outcome.metrics[f"{name}/random_policy"] < outcome.metrics[f"{name}/trained"] < 1
    # The trained encoder is its own initialisation here: the same policies.
    assert outcome.metrics[f"{name}/initialization"] == outcome.metrics[f"{name}/trained"]
    conditions = outcome.rows().group_by("factor").len().sort("factor")
    # 5 encoders x 2 seeds x 2 initial states, unperturbed, one factor and all at once.
    assert conditions.rows() == [("all", 20), ("light_tint", 20), ("none", 20)]
    # Another's model as it stands has policies of its own.
    assert outcome.metrics[f"{name}/random_policy"] < outcome.metrics[f"{name}/dinov2"] < 1
    assert outcome.metrics[f"{name}/dinov2"] != outcome.metrics[f"{name}/trained"]
    (row,) = [line.split() for line in outcome.table.splitlines() if str(dinov2) in line]
    assert row == ["dinov2", str(dinov2), "cls+mean", "28", "px", "apache-2.0"]
    assert "100 - action error" in outcome.table
    assert tracking.read_artifact(outcome.run_id, "table.txt")
    logged = tracking.read_artifact(outcome.run_id, "results.parquet")
    assert outcome.results is not None
    assert logged == outcome.results.read_bytes()
    results = pl.read_parquet(outcome.results)
    # A row a policy and condition: 5 encoders x 2 seeds x 3 conditions.
    assert len(results) == 30
    for encoder_name in ("trained", "dinov2"):
        own = results.filter((pl.col("encoder") == encoder_name) & (pl.col("factor") == "none"))
        assert own["value"].mean() == pytest.approx(outcome.metrics[f"{name}/{encoder_name}"])
    assert any(note.startswith("power, in distribution") for note in outcome.notes)

    again = Imitation().run(config)
    assert again.metrics == outcome.metrics


def test_it_is_for_tuning_and_refuses_test(tmp_path: Path) -> None:
    from dynaflip.platform.evaluation.suites.imitation import Imitation

    with pytest.raises(UserError, match="shown dev alone"):
        Imitation().run(tiny(tmp_path, split="test"))
