"""Failures are told by how near they came: near misses first, with frames, distances and place."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from tiny_rollouts import tiny

from dynaflip.eval.rollout import GoalDistance
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.demonstrations import demonstration_set
from dynaflip.platform.evaluation.encoders_under_test import Encoder, EncoderUnderTest
from dynaflip.platform.evaluation.plan import EvaluationJob, plan_jobs
from dynaflip.platform.evaluation.report.failures import (
    NEAR_MISS,
    PART,
    TOTAL,
    failure_images,
    failure_section,
    kind_of,
    with_way,
)
from dynaflip.platform.evaluation.results import episode_table
from dynaflip.platform.evaluation.worker import JobResult, _animation

TASKS = ("reach-v3", "drawer-open-v3")
# Nearest distances, m, of failures that began at 0.25 m; solved ones came to 0.05 m.
NEAREST = {
    ("trained", "reach-v3", "none"): 0.07,
    ("trained", "reach-v3", "light_tint"): 0.24,
    ("trained", "drawer-open-v3", "light_tint"): 0.15,
    ("other", "reach-v3", "light_tint"): 0.06,
}


def result_of(job: EvaluationJob) -> JobResult:
    """Its first episode fails where a distance is named above; all others are solved."""
    nearest = NEAREST.get((job.under_test, job.task, job.condition.factor))
    failed = GoalDistance(0.25, nearest, 20, 0.25) if nearest else None
    solved = GoalDistance(0.25, 0.05, 30, 0.06)
    ends = [failed or solved, solved]
    successes = [failed is None, True]
    return JobResult(successes, successes, [60, 60], 1.0, None, ends)


@pytest.fixture
def jobs(home: Path) -> list[EvaluationJob]:
    config = tiny(Path("x"), tasks=("reach", "drawer-open"), seeds=1)
    names = ("trained", "other")
    tested = [EncoderUnderTest(n, (Encoder(f"{n}/1", f"/{n}", f"digest-{n}"),)) for n in names]
    return plan_jobs(config, tested, {task: demonstration_set(config, task) for task in TASKS})


def recorded(jobs: list[EvaluationJob]) -> list[EvaluationJob]:
    """The jobs with an animation: 20 frames, every third step, each as bright as its number."""
    frames = [np.full((16, 16, 3), 10 * number, np.uint8) for number in range(20)]
    for job in jobs:
        cache.save_result(job, JobResult([], [], [], 1.0, _animation(frames)))
    return jobs


def test_the_gallery_goes_from_the_nearest_miss_to_the_furthest(jobs: list[EvaluationJob]) -> None:
    table = episode_table(jobs, [result_of(job) for job in jobs])
    images = failure_images(recorded(jobs), table, ["trained", "other"], control_hz=80)
    kinds = [image.caption.split(":")[0].lower() for image in images]
    assert kinds == [NEAR_MISS, PART, TOTAL, NEAR_MISS]
    assert [image.heading for image in images] == [
        "Failures of the encoder under test (trained)", "", "",
        "Failures of the encoders beside it",
    ]  # fmt: skip
    assert "three quarters of the way" in images[0].lead
    near, _, total, _ = images
    assert near.caption == (
        "Near miss: reach-v3, unperturbed\ntrained (1), policy of seed 0, layout "
        f"{jobs[0].starts[0].layout_seed}, 60 steps. 7.0 cm from the goal at the nearest (step "
        "20), 25.0 cm at the end, 25.0 cm at the start. Solved from here by other."
    )
    assert "light tint, level 3" in total.caption
    assert total.caption.endswith("Solved from here by none of the others.")
    assert near.columns == ("nearest", "0.26 s before", "end")
    shown = np.asarray(Image.open(io.BytesIO(near.data)).convert("L")).astype(int)
    assert shown.shape == (16, 48)
    # Step 20 is frame 7 of 20; the end is the last.
    assert shown[8, [8, 24, 40]] == pytest.approx([70, 120, 190], abs=4)
    assert len({image.name for image in images}) == 4


def test_the_table_counts_failures_by_how_they_ended(jobs: list[EvaluationJob]) -> None:
    table = episode_table(jobs, [result_of(job) for job in jobs])
    section = failure_section(table, ["trained", "other"])
    assert [row[:5] for row in section.rows] == [
        ["trained, unperturbed", "1", "100", "0", "0"],
        ["trained, perturbed", "2", "0", "50", "50"],
        ["other, perturbed", "1", "100", "0", "0"],
    ]
    assert section.rows[1][5:] == ["19.5", "25.0"]


def test_the_table_is_of_the_most_demonstrations_and_names_what_policies_are_given(
    jobs: list[EvaluationJob],
) -> None:
    table = episode_table(jobs, [result_of(job) for job in jobs])
    number = pl.col("demonstrations")
    fewer = table.with_columns(demonstrations=number - 1, success_ever=pl.lit(False))
    images_alone = table.with_columns(proprioception=~pl.col("proprioception"))
    alone = failure_section(table, ["trained"]).rows
    assert failure_section(pl.concat([fewer, table]), ["trained"]).rows == alone
    both = failure_section(pl.concat([table, images_alone]), ["trained"]).rows
    assert [row[1:] for row in both] == [row[1:] for row in alone for _ in range(2)]
    assert [row[0] for row in both[:2]] == [
        "trained, unperturbed, with proprioception", "trained, unperturbed, images alone",
    ]  # fmt: skip


def test_without_distances_failures_are_shown_and_not_sorted(jobs: list[EvaluationJob]) -> None:
    old = [
        JobResult(*[[False, True]] * 2, [60, 60], 1.0, None)  # of before, or of another environment
        for _ in jobs
    ]
    table = episode_table(jobs, old)
    assert failure_section(table, ["trained", "other"]) is None
    images = failure_images(recorded(jobs), table, ["trained", "other"], control_hz=80)
    assert images[0].caption.startswith("Failure: ")
    assert "cm" not in images[0].caption
    assert images[0].columns == ("0.26 s before", "end")
    before = table.drop("start_m", "nearest_m", "nearest_step", "end_m")
    assert with_way(before)["way"].is_null().all()
    assert kind_of(None) == "failure"


def test_a_solved_task_without_way_to_go_is_no_division(jobs: list[EvaluationJob]) -> None:
    at_goal = GoalDistance(0.05, 0.05, 0, 0.05)
    results = [JobResult([False, True], [False, True], [9, 9], 1.0, None, [at_goal] * 2)] * len(
        jobs
    )
    assert with_way(episode_table(jobs, results))["way"].is_null().all()
