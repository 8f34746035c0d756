"""Fewer demonstrations are the first of more: planned, fitted on exactly these, and tabulated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tiny_rollouts import tiny

from dynaflip.eval.policies.base import Demonstrations
from dynaflip.eval.policies.encoder_policy import apart
from dynaflip.eval.policies.readouts.grid import TokenGrid
from dynaflip.eval.policies.readouts.token_store import TokenStore
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.demonstrations import DemonstrationFrames, DemonstrationSet
from dynaflip.platform.evaluation.encoders_under_test import EXPERT, Encoder, EncoderUnderTest
from dynaflip.platform.evaluation.job_result import JobResult
from dynaflip.platform.evaluation.kept_policies import policy_name
from dynaflip.platform.evaluation.plan import EvaluationJob, plan_jobs
from dynaflip.platform.evaluation.policy_fits import fit_policy
from dynaflip.platform.evaluation.report.demonstration_curve import curve_images, curve_sections
from dynaflip.platform.evaluation.results import episode_table, successes
from dynaflip.platform.evaluation.schedule import fit_groups
from dynaflip.platform.evaluation.worker import Worker

TESTED = [
    EncoderUnderTest("trained", (Encoder("a", "/a", "digest-a"),)),
    EncoderUnderTest("random", (Encoder("c", "/c", "digest-c"),)),
    EncoderUnderTest(EXPERT, (Encoder(EXPERT, None, EXPERT),)),
]
SHOWN = {"reach-v3": DemonstrationSet("reach-v3", "/x", "whole", 3)}


def planned(**changes: object) -> tuple[RolloutConfig, list[EvaluationJob]]:
    config = tiny(Path("x"), **{"fewer_demonstrations": (2, 1), **changes})
    return config, plan_jobs(config, TESTED, SHOWN)


def test_every_encoder_has_a_policy_of_each_number_and_only_the_whole_set_is_as_before() -> None:
    config, jobs = planned()
    before = {
        job.digest() for job in plan_jobs(replace(config, fewer_demonstrations=()), TESTED, SHOWN)
    }
    whole = [job for job in jobs if job.policy.demonstrations[0].first is None]
    assert {job.digest() for job in whole} == before
    fewer = [job for job in jobs if job not in whole]
    assert len(fewer) == 2 * 2 * 2 * 2  # numbers, encoders, seeds, conditions
    assert {job.policy.demonstrations[0].shown for job in fewer} == {1, 2}
    assert len({job.digest() for job in jobs}) == len(jobs)
    assert {d.digest for job in jobs for d in job.policy.demonstrations} == {"whole"}
    assert not any(job.recorded for job in fewer)
    names = {policy_name(job) for job in jobs if job.under_test == "trained"}
    assert len(names) == 2 * 3
    assert "reach-v3-1-demonstrations-seed0" in names


@pytest.mark.parametrize("tokens", [False, True])
def test_a_policy_of_fewer_is_that_of_a_set_which_ends_there(tokens: bool) -> None:
    rng = np.random.default_rng(0)
    number, grid = 60, TokenGrid(2, 2, 4)
    values = rng.standard_normal((number, grid.values)).astype(np.float32)

    def shown(rows: slice) -> Demonstrations:
        store = None
        if tokens:
            store = TokenStore(len(values[rows]), [grid])
            store.append(values[:1])  # the first rows decide the unit
            store._written = 0
            store._values[:] = (values[rows] / store._scale).astype(np.float16)
        rng = np.random.default_rng(1)
        rest = rng.standard_normal((number, 7)).astype(np.float32)
        return Demonstrations(
            features=(np.zeros((number, 0), np.float32) if tokens else values)[rows],
            proprioception=rest[rows, :3],
            actions=rest[rows, 3:],
            # Of two tasks, three episodes each; episodes of the second task are told apart.
            episode=(np.arange(number) // 10 % 3 * 2 + 10**6 * (np.arange(number) // 30))[rows],
            tokens=store,
        )

    _, jobs = planned(
        **({"readout": "attentive"} if tokens else {}),
    )
    one = next(job.policy for job in jobs if job.policy.demonstrations[0].first == 2)
    whole = replace(one, demonstrations=(replace(one.demonstrations[0], first=None),))
    fitted = fit_policy(one, shown(slice(0, 30)))
    expected = fit_policy(whole, shown(slice(0, 20)))
    assert fitted.keys() == expected.keys()
    for name, tensor in fitted.items():
        assert np.array_equal(tensor.numpy(), expected[name].numpy()), name
    # Several tasks: the first episodes of each.
    several = replace(one, demonstrations=(one.demonstrations[0],) * 2)
    alone = replace(whole, demonstrations=(whole.demonstrations[0],) * 2)
    rows = np.r_[0:20, 30:50]
    fitted = fit_policy(several, shown(slice(0, 60)))
    expected = fit_policy(alone, shown(slice(0, 60)).some(rows))
    for name, tensor in fitted.items():
        assert np.array_equal(tensor.numpy(), expected[name].numpy()), name


def test_the_curve_has_each_number_with_paired_gains_and_other_tables_the_whole_set() -> None:
    config, jobs = planned()

    def solved(job: EvaluationJob) -> bool:
        if job.under_test == "random":
            return job.policy.demonstrations[0].shown == 3
        return job.policy.demonstrations[0].shown >= 2

    results = [JobResult([solved(j)] * 2, [False] * 2, [9, 9], 0.1, None) for j in jobs]
    table = episode_table(jobs, results)
    names = [entry.name for entry in TESTED]
    sections, metrics = curve_sections(config, names, table, "success_ever", "Success %")
    inside = next(s for s in sections if s.title.startswith("Success %") and "in dist" in s.title)
    assert inside.columns == ("", "1 demonstrations", "2 demonstrations", "3 demonstrations")
    assert [row[0] for row in inside.rows] == ["trained", "random"]
    gains = next(s for s in sections if s.title.startswith("Trained - this"))
    (random,) = gains.rows
    assert [cell.split(" ")[0] for cell in random[1:]] == ["+0.0", "+100.0", "+0.0"]
    assert "(not distinguishable)" in random[2]  # of two episodes
    key = "success_ever/proprioception/in_distribution/trained"
    assert [metrics[f"{key}/{n}_demonstrations"] for n in (1, 2, 3)] == [0, 1, 1]
    assert successes(table, "random", proprioception=True).values.all()
    (image,) = curve_images(config, names, table, "success_ever", "success, %")
    assert image.data.startswith(b"\x89PNG")
    plain = replace(config, fewer_demonstrations=())
    assert curve_sections(plain, names, table, "success_ever", "Success %") == ([], {})
    assert curve_images(plain, names, table, "success_ever", "success, %") == []
    # Tables of before there were several numbers have no such column.
    whole = table.filter(pl.col("demonstrations") == 3).drop("demonstrations")
    assert successes(whole, "random", proprioception=True).values.all()


def test_images_are_encoded_once_for_all_numbers_and_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    rest = rng.standard_normal((30, 8)).astype(np.float32)
    episode = np.arange(30) // 10
    frames = DemonstrationFrames(images, rest[:, :4], rest[:, 4:], episode)
    seen: list[np.ndarray] = []

    def encode(batch: torch.Tensor) -> torch.Tensor:
        seen.extend(batch.numpy())
        return batch.float().mean((1, 2))

    worker = Worker()
    monkeypatch.setattr(worker, "_encoder_of", lambda spec, there: encode)
    monkeypatch.setattr(worker, "_frames_of", lambda demonstrations: frames)
    _, jobs = planned()
    specs = {j.policy.digest(): j.policy for j in jobs if j.policy.encoder.folder}
    groups = fit_groups(list(specs.values()))
    assert len(groups) == 2, "one for each encoder"
    fitted = worker.fit(groups[0])
    assert len(fitted) == 3 * 2  # numbers, seeds
    checked = 4 + 1 + 4  # that an image's features are a function of it
    assert len(seen) == checked + len(images)


def test_an_encoder_is_checked_on_images_that_differ() -> None:
    def chosen(number: int) -> list[int]:
        return apart(np.arange(number).reshape(-1, 1, 1, 1)).ravel().tolist()

    assert chosen(25) == [0, 6, 12, 18]
    assert chosen(4) == [0, 1, 2, 3]
    assert chosen(2) == [0, 1]
