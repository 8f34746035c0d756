"""The plan behind ``--dry-run``: cached work costs nothing, and free workers take jobs in turn."""

from __future__ import annotations

from pathlib import Path

from tiny_rollouts import encoder_folder, tiny

from dynaflip.eval.policies.config import BehaviourCloningConfig, EndToEndConfig
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.cost import Costs, _work_section, stages_s, work_of
from dynaflip.platform.evaluation.cost_table import makespan
from dynaflip.platform.evaluation.cost_units import PolicyCosts, SceneCosts, _measure_policy
from dynaflip.platform.evaluation.demonstrations import demonstration_set
from dynaflip.platform.evaluation.encoders_under_test import Encoder, EncoderUnderTest
from dynaflip.platform.evaluation.job_result import JobResult
from dynaflip.platform.evaluation.plan import plan_jobs, plan_rollouts


def test_free_workers_take_jobs_in_their_order() -> None:
    assert makespan([3, 1, 1, 1], 2) == 3
    assert makespan([1, 1, 1, 3], 2) == 4
    assert makespan([], 16) == 0


def test_cached_jobs_and_policies_cost_nothing_and_numbers_share_features(home: Path) -> None:
    config = tiny(Path("x"), seeds=1, fewer_demonstrations=(1, 2))
    tested = [EncoderUnderTest("trained", (Encoder("a", "/a", "digest-a"),))]
    shown = {"reach-v3": demonstration_set(config, "reach-v3")}
    jobs = plan_jobs(config, tested, shown)
    work = work_of(config, shown, jobs)
    assert (len(work.rollouts), [len(group) for group in work.fits]) == (6, [3])
    assert [number for _, number in work.demonstrations] == [5]
    assert (work.steps, work.from_cache) == (60, False)
    cache.save_result(jobs[0], JobResult([True] * 2, [True] * 2, [20, 40], 1.0, None))
    again = work_of(config, shown, jobs)
    assert (len(again.rollouts), again.steps, again.from_cache) == (5, 30, True)
    cache.save_policy(jobs[1].policy.digest(), {})
    assert [len(group) for group in work_of(config, shown, jobs).fits] == [2]


def test_policies_that_train_their_encoder_are_fitted_one_by_one_or_on_gpus(home: Path) -> None:
    cloning = BehaviourCloningConfig(hidden_dim=16, layers=1)
    config = tiny(Path("x"), seeds=2, adaptation="lora", behaviour_cloning=cloning)
    tested = [EncoderUnderTest("trained", (Encoder("a", "/a", "digest-a"),))]
    shown = {"reach-v3": demonstration_set(config, "reach-v3")}
    work = work_of(config, shown, plan_jobs(config, tested, shown))
    scene = SceneCosts(1.0, 1.0, 1.0, 1.0, 1.0, 40)
    costs = Costs(scene, {"digest-a": PolicyCosts(1.0, 2.0, 30.0, 1, trained_images=1000)})
    assert [stages_s(work, costs, workers, None)[1] for workers in (1, 2)] == [60, 30]
    assert stages_s(work, costs, 2, 300.0)[1] == 2 * 3 * 1000 / 300
    numbers = {row[0]: row[1] for row in _work_section(work, costs).rows}
    assert numbers["images to encode for fits"] == "0"
    assert numbers["policies to fit"] == "2"


def test_a_fit_that_trains_its_encoder_is_measured_by_few_steps(home: Path, tmp_path: Path) -> None:
    config = tiny(
        encoder_folder(tmp_path / "encoder"),
        seeds=1,
        adaptation="lora",
        behaviour_cloning=BehaviourCloningConfig(hidden_dim=16, layers=1),
        end_to_end=EndToEndConfig(steps=100, batch_size=4),
    )
    _, _, jobs = plan_rollouts(config, tmp_path / "built")
    job = next(job for job in jobs if job.policy.encoder.folder is not None)
    few = _measure_policy(job)
    assert few.trained_images == 400
    assert few.act_s > 0
    assert few.fit_s > 0
