"""Digests of cached work are those of the first edition: what is finished is never run again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dynaflip.eval.envs import base
from dynaflip.platform.evaluation import demonstrations, plan, rendered_views, score_cache
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.demonstrations import DemonstrationSet
from dynaflip.platform.evaluation.encoders_under_test import Encoder, EncoderUnderTest
from dynaflip.platform.evaluation.plan import plan_jobs
from dynaflip.platform.evaluation.probe_config import ProbesConfig, ProbeSuiteConfig, ViewsConfig

TASKS = ("drawer-open-v3", "hammer-v3")
TESTED = [
    EncoderUnderTest("trained", (Encoder("a", "/a", "digest-a"), Encoder("b", "/b", "digest-b"))),
    EncoderUnderTest("random", (Encoder("c", "/c", "digest-c"),)),
]


@pytest.fixture(autouse=True)
def fixed_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests hold versions of packages, which are not what these tests are about."""
    monkeypatch.setattr(plan, "versions_of", lambda names: [f"{name} 1.0" for name in names])
    monkeypatch.setattr(base, "version", lambda package: "1.0")


# Computed by commit e8dc758: number of jobs, all of their digests, and two of them.
@pytest.mark.parametrize(
    ("change", "number", "all_jobs", "second_job", "its_policy"),
    [
        ({}, 96, "57639ea25857bb54", "3026d6deb0307fbeb2b4", "8f4eaf6179426bb3af77"),
        (
            {"head": "diffusion"},
            96,
            "1bc8be32a424cbe0",
            "0cea5aeffbdcded9251b",
            "0be58a58a8357833dea6",
        ),
        (
            {"multitask": True},
            96,
            "fa36ef50baf2b1ad",
            "d7132c45d29246245250",
            "88f546170cdc787ca22e",
        ),
        (
            {"adaptation": "lora"},
            96,
            "5374ebe72b83684f",
            "bc1e664a7e10af92919f",
            "8a4a04f04d2a0c38921c",
        ),
        (
            {
                "split": "test",
                "proprioception": (False,),
                "levels": (1, 5),
                "factors": ("camera", "floor"),
            },
            56,
            "b81fa213294371ee",
            "316a0a2415f357496ebb",
            "1ae093d228f5c96db698",
        ),
    ],
    ids=["default", "diffusion", "multitask", "lora", "test"],
)
def test_jobs_and_policies_have_the_digests_that_they_had(
    change: dict, number: int, all_jobs: str, second_job: str, its_policy: str
) -> None:
    shown = {task: DemonstrationSet(task, f"/{task}", f"digest-{task}", 25) for task in TASKS}
    jobs = plan_jobs(RolloutConfig(seeds=2, episodes=3, **change), TESTED, shown)
    together = hashlib.sha256("".join(job.digest() for job in jobs).encode()).hexdigest()
    assert (jobs[1].policy.digest(), jobs[1].digest()) == (its_policy, second_job)
    assert (len(jobs), together[:16]) == (number, all_jobs)


def test_demonstrations_have_the_digests_that_they_had(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Collected:
        successes = dict.fromkeys(("drawer-open-v3", "reach-v3"), (99, 99))

    monkeypatch.setattr(demonstrations, "collect", lambda settings, folder: Collected())
    sets = demonstrations.collect_demonstrations(RolloutConfig(), ("drawer-open-v3", "reach-v3"))
    assert [s.digest for s in sets.values()] == ["b5f3940882808fb8", "ce81519df7672f9a"]
    fewer = RolloutConfig(demonstrations=5, image_px=64, seed=3)
    (one,) = demonstrations.collect_demonstrations(fewer, ("drawer-open-v3",)).values()
    assert one.digest == "056611ff7f46e120"


def test_rendered_views_and_scores_have_the_digests_that_they_had(tmp_path: Path) -> None:
    plans = rendered_views.plan_views(
        ViewsConfig(), ["drawer-open-v3"], "corner4", (112, 112), "dev"
    )
    path = rendered_views._cache_path("drawer-open-v3", plans["drawer-open-v3"])
    assert path.name == "drawer-open-v3-66c3f9ece21a9605.parquet"

    (tmp_path / "config.json").write_text(json.dumps({"preprocessing": {"image_px": 32}}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    plain = ProbeSuiteConfig(data="/data", triplets="/t")
    assert score_cache.score_digest(plain, tmp_path, {"digest": "m"}) == "61c3e98582901d8f"
    other = ProbeSuiteConfig(
        data="/data",
        triplets="/t",
        views=ViewsConfig(tasks=("drawer-open-v3",), episodes_per_task=3),
        probes=ProbesConfig(folds=3),
    )
    assert score_cache.score_digest(other, tmp_path, {"digest": "m"}) == "50150dd75492fd1d"
