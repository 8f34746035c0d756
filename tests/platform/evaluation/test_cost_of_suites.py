"""``--dry-run`` of offline, probes and imitation: what is counted, and what cached work costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_triplets import write_triplets
from tiny_rollouts import encoder_folder, tiny

from dynaflip.eval.image_perturbations import IMAGE_FACTOR_NAMES
from dynaflip.eval.policies.readouts.config import SpatialSoftmaxConfig
from dynaflip.platform.evaluation import cost, cost_offline, cost_offline_tokens, cost_probes
from dynaflip.platform.evaluation.cost_offline_tokens import TokenCosts
from dynaflip.platform.evaluation.cost_offline_units import EncoderCosts, FrameCosts, inputs_like
from dynaflip.platform.evaluation.cost_probes import EncodeCosts
from dynaflip.platform.evaluation.cost_units import PolicyCosts, SceneCosts
from dynaflip.platform.evaluation.encoders_under_test import resolve_encoders
from dynaflip.platform.evaluation.flow_probe_config import FlowProbeConfig
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import read_offline
from dynaflip.platform.evaluation.offline_features import _path, _save
from dynaflip.platform.evaluation.offline_run import offline_recipe
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig
from tests.platform.evaluation.own_robot import write


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit costs of a machine that nobody has; measuring them is another test's."""
    frames, encoders = FrameCosts(0.5, 0.25), EncoderCosts(2.0, 30.0)
    monkeypatch.setattr(cost_offline, "frame_costs", lambda *_: frames)
    monkeypatch.setattr(cost_offline, "encoder_costs", lambda *_: encoders)
    monkeypatch.setattr(cost_offline_tokens, "frame_costs", lambda *_: frames)
    monkeypatch.setattr(cost_offline_tokens, "encoder_costs", lambda *_: encoders)
    monkeypatch.setattr(cost_probes, "_encode_costs", lambda *_: EncodeCosts(3.0))


def offline(tmp_path: Path) -> OfflineConfig:
    """8 recordings of 10 frames, 4 of them held out; 3 entries of equal weights."""
    path = tmp_path / "encoder"
    encoder = path if path.exists() else encoder_folder(path)
    source = str(tmp_path / "set") if (tmp_path / "set").exists() else write(tmp_path / "set")
    return OfflineConfig(
        source=source,
        encoder=str(encoder),
        baselines=("initialization",),
        heldout_share=0.4,
        image_px=32,
        seeds=2,
    )


def test_offline_counts_images_by_condition_and_policies(
    home: Path, tmp_path: Path, measured: None
) -> None:
    jobs, work, time = cost_offline.dry_run(offline(tmp_path), gpu_images_per_s=100.0)
    conditions = len(IMAGE_FACTOR_NAMES) + 2  # clean, and all together
    images = 40 + 40 * conditions
    assert "4 episodes to learn from, 4 held out" in jobs.title
    assert jobs.rows == [
        ["trained", "2", str(images), "0"],
        # Before its first step it is what it is: its weights are random and nobody trained them.
        ["initialization", "2", "0 (those above)", "0"],
        ["no image", "2", "0", "0"],
    ]
    numbers = {row[0]: row[1] for row in work.rows}
    assert numbers["frames to decode"] == "80"
    assert numbers["policies to fit"] == "6"
    # Of 8 episodes: decoding, showing and encoding; then 6 fits of 30 s.
    alone = 10 * (0.5 + 0.25 + 2.0)
    under_all = 10 * (0.5 + conditions * (0.25 + 2.0))
    two = next(row for row in time.rows if row[0] == "2 cores")
    assert two[1:3] == [f"{(4 * alone + 4 * under_all) / 2 / 60:.1f}", "1.5"]
    gpu = time.rows[-1]
    assert gpu[1] == f"{max(10 * (0.5 + conditions * 0.25), images / 100) / 60:.1f}"


def test_offline_on_tokens_counts_what_is_not_kept(
    home: Path, tmp_path: Path, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = TokenCosts(encode_s=2.0, fit_s=30.0, act_s=0.5)
    monkeypatch.setattr(cost_offline_tokens, "token_costs", lambda *_: costs)
    config = replace(offline(tmp_path), readout="attentive")
    jobs, work, time = cost_offline.dry_run(config, gpu_images_per_s=100.0)
    assert jobs.rows == [
        ["trained", "2", "2", "8"],
        ["initialization", "2", "0", "0"],  # equal weights share their policies
        ["no image", "2", "2", "0"],
    ]
    conditions = len(IMAGE_FACTOR_NAMES) + 2
    numbers = {row[0]: row[1] for row in work.rows}
    assert numbers["images to encode for fits"] == "40"
    assert numbers["frames to show under conditions, times"] == str(40 * conditions)
    assert numbers["images to encode to act"] == str(40 * conditions)
    assert numbers["moments to act in"] == str(2 * 40 * conditions)
    # One job fits both policies, and then two fit those without an image; 4 episodes are acted in.
    fit = 40 * (0.5 + 2.0) + 2 * 30
    act = 10 * (0.5 + conditions * (0.25 + 2.0 + 2 * 0.5))
    two, gpu = next(row for row in time.rows if row[0] == "2 cores"), time.rows[-1]
    assert two[1:3] == [f"{(fit + 30) / 60:.1f}", f"{2 * act / 60:.1f}"]
    assert gpu[1:3] == [
        f"{(fit - 40 * 2 + 30) / 60:.1f}",
        f"{(act - 10 * conditions * 2) / 60:.1f}",
    ]


def test_unit_costs_of_tokens_are_measured_by_a_fit_of_few_steps(tmp_path: Path) -> None:
    config = replace(
        offline(tmp_path), readout="spatial_softmax", spatial_softmax=SpatialSoftmaxConfig(maps=4)
    )
    data = read_offline(config)
    recipe = offline_recipe(config, data)
    encoder = resolve_encoders(config, tmp_path / "built")[0].encoders[0]
    number, (actions, states, _) = inputs_like(data)
    found = cost_offline_tokens.measure(encoder, 32, recipe, 1, number, (actions, states, 2))
    assert found.encode_s > 0
    assert found.fit_s > 0
    assert found.act_s > 0


def test_features_that_are_cached_are_not_encoded_again(
    home: Path, tmp_path: Path, measured: None
) -> None:
    config = offline(tmp_path)
    before = cost_offline.dry_run(config, gpu_images_per_s=1.0)[0].rows[0]
    episode = read_offline(config).train[0]
    digest = resolve_encoders(config)[0].encoders[0].digest
    _save(_path(config, digest, episode.digest(), {}), np.zeros((10, 4), np.float32))
    after = cost_offline.dry_run(config, gpu_images_per_s=1.0)[0].rows[0]
    assert (int(before[2]) - int(after[2]), after[3]) == (10, "10")


def test_probes_without_labels_are_retrieval_and_flow_alone(
    home: Path, tmp_path: Path, measured: None
) -> None:
    write_triplets(tmp_path / "triplets")
    config = ProbeSuiteConfig(
        encoder=str(encoder_folder(tmp_path / "encoder")),
        triplets=str(tmp_path / "triplets"),
        data=str(tmp_path / "none"),
        encoders=("random",),
        gallery_size=2,
        flow_probe=FlowProbeConfig(windows_per_clip=1, clips=5, heldout_clips=5),
    )
    work, units, time = cost_probes.dry_run(config, gpu_images_per_s=10.0)
    gallery, flow, probes = work.rows
    assert gallery[1:] == ["2", "2 encoders"]
    assert flow[2] == "4 encoders"
    assert probes[1] == "0"
    assert "there is no data set" in probes[2]
    assert [row[0] for row in units.rows] == ["encoding"]
    # Two images of two transitions by two encoders, and each window's by four.
    images = 8 + 4 * int(flow[1])
    two, gpu = time.rows[0], time.rows[-1]
    assert (two[1], two[2]) == ("0.0", f"{images * 3 / 2 / 60:.1f}")
    assert gpu[2] == f"{images / 10 / 60:.1f}"


def test_imitation_shows_the_experts_moments_to_every_policy(home: Path) -> None:
    from dynaflip.platform.evaluation.demonstrations import demonstration_set
    from dynaflip.platform.evaluation.encoders_under_test import Encoder, EncoderUnderTest
    from dynaflip.platform.evaluation.plan import plan_jobs

    config = tiny(Path("x"))  # 2 seeds, 2 conditions, 2 initial states
    tested = [EncoderUnderTest("trained", (Encoder("a", "/a", "digest-a"),))]
    shown = {"reach-v3": demonstration_set(config, "reach-v3")}
    jobs = plan_jobs(config, tested, shown)
    work = cost.work_of(config, shown, jobs, imitation=True)
    assert len(work.rollouts) == len(jobs) == 4
    # 80 Hz, so a moment every 8 of 40 steps: 5 moments of 2 states under 2 conditions.
    scene = SceneCosts(4.0, 0.0, 0.1, 1.0, 0.0, 40)
    costs = cost.Costs(scene, {"digest-a": PolicyCosts(2.0, 3.0, 0.0, 8)})
    assert cost.moments_of(jobs, scene) == 20
    numbers = {row[0]: row[1] for row in cost._work_section(work, costs).rows}
    assert numbers["moments of the expert, under all conditions"] == "20"
    assert numbers["… shown to policies, times"] == "40"
    assert cost._jobs_section(work).rows == [["trained", "3", "4", "0", "none"]]
    *_, last = cost.stages_s(work, costs, 1, None)
    assert last == 4.0 + 2 * 40 * 0.1 + 20 * 1.0 + 2 * 20 * 3.0
    # Other workers render the moments too, and a GPU leaves workers what is not encoding.
    *_, four = cost.stages_s(work, costs, 4, 40.0)
    assert four == 2 * (4.0 + 8.0 + 20.0) + 2 * 20 * 1.0
    rolled = replace(work, imitation=False)
    assert cost.stages_s(rolled, costs, 1, None)[2] != last
