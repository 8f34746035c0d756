"""The flow probe: what it makes of flow, and what features that know, and do not know, score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dynaflip.eval.metrics.flow_probe import (
    CELLS,
    FlowWindows,
    cells_of,
    explained_metrics,
    flow_errors,
    flow_windows,
    point_velocities,
)

STEPS, SIDE, CLIPS, WINDOWS = 7, 8, 24, 4
POINTS, NUMBER = SIDE * SIDE, CLIPS * WINDOWS
HELDOUT = np.repeat(np.arange(CLIPS) % 3 == 0, WINDOWS)


def motion(seed: int = 0) -> np.ndarray:
    """(N, K, P, 3) metres: a patch of the grid moves another way in each window."""
    rng = np.random.default_rng(seed)
    flow = np.zeros((NUMBER, STEPS, SIDE, SIDE, 3))
    share = np.arange(1, STEPS + 1)[:, None, None, None] / STEPS
    for window in flow:
        row, column = rng.integers(0, SIDE - 2, 2)
        window[:, row : row + 3, column : column + 3] = share * rng.normal(0, 0.05, 3)
    return flow.reshape(NUMBER, STEPS, POINTS, 3)


def windows_of(
    flow: np.ndarray, trusted: np.ndarray | None = None, depth: float = 1.0, cameras: int = 2
) -> FlowWindows:
    trusted = np.ones(flow.shape[:3], bool) if trusted is None else trusted
    each = (np.arange(SIDE) + 0.5) * 10
    origin = np.stack(np.meshgrid(each, each), axis=-1).reshape(1, POINTS, 2)
    windows, kept = flow_windows(
        point_velocities(flow, trusted, np.full(NUMBER, depth), np.full(NUMBER, 0.5)),
        cells_of(origin.repeat(NUMBER, 0), np.full((NUMBER, 2), 10.0 * SIDE)),
        np.full(NUMBER, "set", dtype=object),
        np.array([f"camera {i // WINDOWS % cameras}" for i in range(NUMBER)], dtype=object),
        np.repeat([f"recording {i}" for i in range(CLIPS)], WINDOWS),
        HELDOUT,
    )
    assert kept.all()
    return windows


def answer(windows: FlowWindows) -> np.ndarray:
    """Features that hold the flow itself, turned and beside noise."""
    rng = np.random.default_rng(1)
    known = np.nan_to_num(windows.velocity.reshape(len(windows.view), -1))
    mixed = known @ np.linalg.qr(rng.normal(size=(known.shape[1], known.shape[1])))[0]
    return np.concatenate([mixed, 0.01 * rng.normal(size=(len(known), 8))], axis=1)


def explained(windows: FlowWindows, features: np.ndarray) -> float:
    return flow_errors(windows, features).explained().value


def test_the_answer_explains_all_and_random_or_shuffled_features_nothing() -> None:
    windows = windows_of(motion())
    assert windows.why_meaningless() is None
    known = answer(windows)
    assert explained(windows, known) > 0.9
    rng = np.random.default_rng(2)
    blind = {"random": rng.normal(size=known.shape), "shuffled": rng.permutation(known)}
    for features in blind.values():
        assert abs(explained(windows, features)) < 0.1
    errors = {"trained": flow_errors(windows, known)}
    errors |= {name: flow_errors(windows, features) for name, features in blind.items()}
    metrics = explained_metrics(errors, "trained")
    assert metrics["flow_probe/difference_from_random_low_percent"] > 50
    assert metrics["flow_probe/trained_low_percent"] > 80
    assert errors["random"].explained().low < 0.05
    assert errors["trained"].unexplained_percent() == pytest.approx(
        100 - metrics["flow_probe/trained_percent"]
    )
    again = explained_metrics(
        {"trained": flow_errors(windows, known), **{n: errors[n] for n in blind}}, "trained"
    )
    assert again == metrics


def test_the_unit_of_length_does_not_matter_nor_which_camera_it_is() -> None:
    metric, other = windows_of(motion()), windows_of(40 * motion(), depth=40.0)
    np.testing.assert_allclose(metric.velocity, other.velocity, atol=1e-9)
    # Where depth is known up to scale only, a view's own spread takes it out.
    relative = windows_of(40 * motion())
    np.testing.assert_allclose(metric.velocity, relative.velocity, atol=1e-9)
    # A camera whose points all drift explains nothing by being recognised.
    drifting = motion()
    first = np.arange(NUMBER) // WINDOWS % 2 == 0
    drifting[first] += 0.3 * (np.arange(1, STEPS + 1) / STEPS)[:, None, None]
    features = np.stack([first, ~first], 1).astype(float)
    assert abs(explained(windows_of(drifting), features)) < 1e-6


def test_points_and_steps_that_are_not_trusted_do_not_enter() -> None:
    flow, trusted = motion(), np.ones((NUMBER, STEPS, POINTS), bool)
    trusted[:, 5:, ::3] = False  # the last trusted step is the fifth
    trusted[::2, :, 1::3] = False
    spoilt = np.where(trusted[..., None], flow, np.nan)
    speeds = point_velocities(spoilt, trusted, np.ones(NUMBER), np.full(NUMBER, 0.5))
    whole = point_velocities(flow, np.ones_like(trusted), np.ones(NUMBER), np.full(NUMBER, 0.5))
    seen = np.isfinite(speeds).all(-1)
    assert seen.mean() == pytest.approx(1 - np.ceil((POINTS - 1) / 3) / POINTS / 2)
    np.testing.assert_allclose(speeds[seen], whole[seen], atol=1e-12)
    late = trusted & (np.arange(STEPS) < 3)[:, None]
    assert np.isnan(point_velocities(flow, late, np.ones(NUMBER), np.full(NUMBER, 0.5))).all()
    windows = windows_of(spoilt, trusted)
    assert explained(windows, answer(windows)) > 0.9
    # One point that the tracker lost is not most of what there is to explain.
    lost = flow.copy()
    lost[NUMBER // 2, :, 5] = 1e3
    assert np.abs(windows_of(lost).velocity).max() < 2 * np.abs(windows_of(flow).velocity).max()


def test_cells_are_places_in_the_image() -> None:
    corners = np.array([[[0.0, 0.0], [79.0, 0.0], [0.0, 59.0], [79.9, 59.9]]])
    found = cells_of(corners, np.array([[80, 60]]))
    last = CELLS * CELLS - 1
    assert found.tolist() == [[0, CELLS - 1, last - CELLS + 1, last]]


def test_a_score_that_means_nothing_is_said_to() -> None:
    windows = windows_of(motion())
    few = windows.where(~HELDOUT | (np.arange(NUMBER) < WINDOWS))
    assert "of 1 recordings held out it says nothing" in str(few.why_meaningless())
    still = replace(windows, velocity=np.where(HELDOUT[:, None, None], 0.0, windows.velocity))
    assert still.why_meaningless() == "nothing moves in the held-out windows"
    # Cameras with few recordings are scored together, and left out where that is too few as well.
    together = windows_of(motion(), cameras=8)
    assert set(together.view.tolist()) == {"set/other cameras"}
