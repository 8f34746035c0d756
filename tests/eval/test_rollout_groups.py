"""Scenes in two groups: one steps while the other's images are encoded, with the same results."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import outside_environment as outside
import pytest

from dynaflip.errors import UserError
from dynaflip.eval import perturbations
from dynaflip.eval.rollout import EpisodeStart, Observation, roll_out


class Elsewhere:
    """Walks by what its image shows, two steps at a time; what it is asked is written down."""

    def __init__(self, breaks_at: int = 10**9) -> None:
        self.log: list[tuple[str, int]] = []
        self.breaks_at = breaks_at

    def act(self, observation: Observation) -> np.ndarray:
        return self.ask(observation)()

    def ask(self, observation: Observation) -> Callable[[], np.ndarray]:
        number = sum(what == "asked" for what, _ in self.log)
        self.log.append(("asked", number))

        def answer() -> np.ndarray:
            if number == self.breaks_at:
                raise UserError("encoder: it is gone")
            self.log.append(("answered", number))
            red, green = (
                np.stack([centre_px(one, channel) for one in observation.images])
                for channel in (0, 1)
            )
            return np.repeat((green - red)[:, None, ::-1] / 10, 2, 1).clip(-1, 1)

        return answer


def centre_px(image: np.ndarray, channel: int) -> np.ndarray:
    """Row and column of what has a colour; of the image where nothing has it."""
    shown = np.argwhere((image[..., channel] > 150) & (image[..., 1 - channel] < 120))
    return shown.mean(0).astype(np.float32) if len(shown) else np.full(2, 16, np.float32)


STARTS = [EpisodeStart(perturbations.layout_seed("dev", i), {}) for i in range(7)]
OPTIONS = {"horizon_steps": 20, "steps_after_success": 2, "record_first": True}


def scenes(number: int) -> list[outside.Reach]:
    return [
        outside.ENVIRONMENT.open("reach", height_px=32, width_px=32)  # type: ignore[misc]
        for _ in range(number)
    ]


@pytest.mark.parametrize("number", [1, 3, 4])
def test_groups_change_no_result(number: int) -> None:
    one = roll_out(scenes(number), STARTS, Elsewhere(), **OPTIONS)
    two = roll_out(scenes(number), STARTS, Elsewhere(), groups=2, **OPTIONS)
    assert [(r.success_ever, r.success_last, r.steps) for r in one] == [
        (r.success_ever, r.success_last, r.steps) for r in two
    ]
    assert any(r.success_ever for r in one)
    np.testing.assert_array_equal(one[0].images, two[0].images)
    assert not any(r.images for r in two[1:])


def test_the_next_images_are_on_their_way_before_an_answer_is_waited_for() -> None:
    policy = Elsewhere()
    roll_out(scenes(4), STARTS, policy, groups=2, **OPTIONS)
    assert policy.log[:4] == [("asked", 0), ("asked", 1), ("answered", 0), ("asked", 2)]
    waiting, together = 0, []
    for what, _ in policy.log:
        together.append(waiting)
        waiting += 1 if what == "asked" else -1
    assert max(together) == 2
    assert waiting == 0


def test_an_answer_that_fails_leaves_all_scenes_unperturbed() -> None:
    restored = []
    given = scenes(4)
    for scene in given:
        scene.restore = lambda scene=scene: restored.append(scene)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="it is gone"):
        roll_out(given, STARTS, Elsewhere(breaks_at=3), groups=2, **OPTIONS)
    assert {id(scene) for scene in restored} == {id(scene) for scene in given}
