"""Evaluation episodes: drawn from dev alone, the same moments under every condition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dynaflip.eval import perturbations
from dynaflip.eval.expert_views import (
    ALL_FACTORS,
    UNPERTURBED,
    EpisodePlan,
    open_scene,
    plan_episode,
    render,
)

FACTORS = ("light_tint", "camera", "shadows")


def plan(index: int = 0, **changes: Any) -> EpisodePlan:
    settings: dict[str, Any] = {
        "split": "dev",
        "level": 3,
        "factors": FACTORS,
        "frames": 4,
        "frames_a_factor": 2,
        "horizon_steps": 150,
        "size_px": (64, 64),
        "camera": "corner4",
    }
    return plan_episode("drawer-open-v3", index, **{**settings, **changes})


def test_values_and_layouts_are_of_dev_and_of_no_other_split() -> None:
    for index in range(20):
        drawn = plan(index, factors=perturbations.FACTORS)
        assert drawn.layout_seed in perturbations.LAYOUT_SEEDS["dev"]
        for condition, values in drawn.conditions.items():
            assert perturbations.belongs_to(values, "dev")
            if condition != UNPERTURBED:
                assert not perturbations.belongs_to(values, "pretrain")
                assert not perturbations.belongs_to(values, "test")


def test_conditions_hold_what_they_are_called() -> None:
    drawn = plan().conditions
    assert list(drawn) == [UNPERTURBED, ALL_FACTORS, *FACTORS]
    assert drawn[UNPERTURBED] == {}
    assert set(drawn[ALL_FACTORS]) == set(perturbations.FACTORS)
    for factor in FACTORS:
        assert set(drawn[factor]) == {factor}


def test_plans_are_a_function_of_their_arguments() -> None:
    assert plan() == plan()
    assert plan().digest() == plan().digest()
    others = [plan(1), plan(seed=1), plan(level=4), plan(frames=5), plan(factors=FACTORS[:1])]
    assert len({plan().digest(), *(other.digest() for other in others)}) == 6


def test_pretraining_looks_cannot_be_asked_for() -> None:
    with pytest.raises(AssertionError):
        plan(split="pretrain")


@pytest.mark.sim
def test_conditions_differ_in_appearance_alone() -> None:
    drawn = plan()
    scene = open_scene(drawn)
    views = list(render(drawn, scene))
    again = list(render(drawn, scene))
    scene.close()
    by_name = {(view.condition, view.frame): view for view in views}
    assert [name for name, _ in by_name].count(UNPERTURBED) == 4
    assert [name for name, _ in by_name].count("camera") == 2
    assert views[0].success
    for (condition, frame), view in by_name.items():
        plain = by_name[UNPERTURBED, frame]
        np.testing.assert_array_equal(view.hand_m, plain.hand_m)
        np.testing.assert_array_equal(view.object_m, plain.object_m)
        changed = np.abs(view.image.astype(int) - plain.image).mean()
        assert (changed == 0) == (condition == UNPERTURBED)
    # The hand travels, and the drawer comes with it.
    first, last = by_name[UNPERTURBED, 0], by_name[UNPERTURBED, 3]
    assert np.linalg.norm(last.hand_m - first.hand_m) > 0.05
    assert np.linalg.norm(last.object_m - first.object_m) > 0.05
    # Nothing of a perturbation is left behind, and the episode is the same every time.
    for one, other in zip(views, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_the_digest_of_a_plan_is_that_of_version_0_1() -> None:
    """Rendered views are cached by it: a change would render all of them anew."""
    drawn = plan_episode(
        "drawer-open-v3",
        3,
        split="dev",
        level=3,
        factors=("camera", "light_gain"),
        frames=4,
        frames_a_factor=2,
        horizon_steps=200,
        size_px=(64, 64),
        camera="corner4",
        seed=1,
    )
    assert drawn.digest().startswith("303176d0791ed2d0")
