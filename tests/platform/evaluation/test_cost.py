"""The plan behind ``--dry-run``: cached work costs nothing, and free workers take jobs in turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_rollouts import tiny

from dynaflip.errors import UserError
from dynaflip.eval.policies.config import BehaviourCloningConfig
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.cost import dry_run, work_of
from dynaflip.platform.evaluation.cost_table import makespan
from dynaflip.platform.evaluation.demonstrations import demonstration_set
from dynaflip.platform.evaluation.encoders_under_test import Encoder, EncoderUnderTest
from dynaflip.platform.evaluation.job_result import JobResult
from dynaflip.platform.evaluation.plan import plan_jobs


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


def test_what_is_not_estimated_is_refused() -> None:
    config = tiny(
        Path("x"),
        adaptation="lora",
        behaviour_cloning=BehaviourCloningConfig(hidden_dim=16, layers=1),
    )
    with pytest.raises(UserError, match="--dry-run: adaptation lora is not estimated"):
        dry_run(config, gpu_images_per_s=1.0)
