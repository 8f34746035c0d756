"""Shares of attention in the report's table are means over policies, tasks and moments."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_rollouts import tiny

from dynaflip.eval.metrics.attention import AttentionMaps, Moments, Reading
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.demonstrations import demonstration_set
from dynaflip.platform.evaluation.encoders_under_test import Encoder, EncoderUnderTest
from dynaflip.platform.evaluation.plan import EvaluationJob, plan_jobs
from dynaflip.platform.evaluation.report.attention import attention_images, attention_sections

TASKS = ("reach-v3", "drawer-open-v3")
ON_ROBOT = {("trained", 0): 0.8, ("trained", 1): 0.6, ("other", 0): 0.3, ("other", 1): 0.1}


def planned() -> tuple[RolloutConfig, list[EvaluationJob]]:
    config = tiny(Path("x"), tasks=("reach", "drawer-open"), readout="attentive")
    names = ("trained", "other")
    tested = [EncoderUnderTest(n, (Encoder(n, f"/{n}", f"digest-{n}"),)) for n in names]
    shown = {task: demonstration_set(config, task) for task in TASKS}
    return config, plan_jobs(config, tested, shown)


def maps_of(jobs: list[EvaluationJob], moments: int = 2) -> dict[str, AttentionMaps]:
    """On the left half, which is robot, lies the share above; on the right there is no object."""
    conditions = ("none",) * moments + ("light_tint-3",) * moments
    number = len(conditions)
    robot, objects = np.zeros((2, number, 8, 8), bool)
    robot[:, :, :4] = True
    objects[:, 6:, 7:] = True
    images = np.full((number, 8, 8, 3), 120, np.uint8)
    maps = {}
    for task in TASKS:
        readings = {}
        for job in jobs:
            on_robot = ON_ROBOT[job.under_test, job.policy.seed]
            heat = np.full((number, 8, 8), (1 - on_robot) / 32, np.float32)
            heat[:, :, :4] = on_robot / 32
            if job.task == task:
                readings[job.policy.digest()] = Reading(heat=heat)
        maps[task] = AttentionMaps(Moments(conditions, images, robot, objects), readings)
    return maps


def test_the_table_has_means_over_policies_beside_the_area(home: Path) -> None:
    config, jobs = planned()
    (section, by_task), metrics = attention_sections(config, jobs, maps_of(jobs))
    assert section.title == "Attention on robot and object, %"
    assert section.columns[1:3] == ("on the robot, unperturbed", "on the object, unperturbed")
    assert section.columns[3].startswith("on the robot, light tint, level 3")
    by_name = {row[0]: row[1:] for row in section.rows}
    assert by_name["trained"][0].startswith("70.0 [")
    assert by_name["other"][2].startswith("20.0 [")
    assert by_name["share of the area"] == ["50.0", "3.1", "50.0", "3.1"]
    assert metrics["attention/robot/none/trained"] == pytest.approx(0.7)
    assert metrics["attention/object/light_tint-3/other"] == pytest.approx(0.8 / 32 * 2)
    assert by_task.columns[1:] == TASKS


def test_one_policy_and_one_moment_have_no_interval(home: Path) -> None:
    config, jobs = planned()
    first = [job for job in jobs if job.policy.seed == 0]
    (section, _), _ = attention_sections(config, first, maps_of(first, moments=1))
    assert section.rows[0][:2] == ["trained", "80.0"]


def test_every_encoder_stands_beside_the_image_of_its_task(home: Path) -> None:
    config, jobs = planned()
    images = attention_images(config, jobs, maps_of(jobs))
    assert [image.caption for image in images] == [
        f"{task}, {condition}"
        for condition in ("unperturbed", "light tint, level 3")
        for task in TASKS
    ]
    assert {image.columns for image in images} == {("image", "trained", "other")}
    assert [bool(image.heading) for image in images] == [True, False, False, False]
    drawn = np.asarray(Image.open(io.BytesIO(images[0].data))).mean(2)
    assert drawn.shape == (16, 48)
    assert drawn[:, 16:22].mean() > drawn[:, 26:32].mean() + 20, "not brighter where it attends"


def test_without_masks_there_are_images_and_no_shares(home: Path) -> None:
    config, jobs = planned()
    blind = {
        task: replace(one, moments=replace(one.moments, robot=None, objects=None))
        for task, one in maps_of(jobs).items()
    }
    assert attention_sections(config, jobs, blind) == ([], {})
    assert len(attention_images(config, jobs, blind)) == 4
    assert attention_sections(config, jobs, {}) == ([], {})
    assert attention_images(config, jobs, {}) == []
