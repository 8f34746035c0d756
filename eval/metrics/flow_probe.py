"""Flow probe: how much of held-out 3D flow a ridge finds in frozen features of the first frame.

Any triplets can be scored so: no simulator and no labels. The paper is silent on such a score; what
is predicted here is the flow prediction term's target (L_act), coarsened to what a few hundred
windows can fit: the mean velocity of the points in each cell of a grid over frame t, camera frame
of t (x right, y down, z forward). Captions are not read.

* A velocity is a point's displacement to the last step at which it is trusted, over the time until
  then, in median depths of frame t a second. A point that is not trusted in the second half of
  its window counts as missing, and so does a cell without points.
* Speeds beyond the 99.5th percentile of a view's training points are cut to it: a point that the
  tracker lost would otherwise be most of what there is to explain.
* A view is a source's camera. Means are taken by view, so that features are not scored for telling
  which camera they see, and each view's flow is divided by its own spread over the training
  windows: where depth is known up to scale alone, the scale does not enter.

The score is the share of held-out flow explained: 0 is what predicting the view's training mean
gives, 100 % is exact. Legend of shapes: N windows, K steps, P points, C = CELLS² cells, D feature
width, R recordings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaflip.eval.intervals.cluster_bootstrap import Interval, cluster_ratio
from dynaflip.eval.metrics.probes import FOLDS, fit_probe

CELLS = 4  # a side
FEWEST_RECORDINGS = 5  # of a view to learn from, and held out in all: below, a score means nothing
_CUT_PERCENTILE = 99.5


@dataclass(frozen=True)
class FlowWindows:
    """Transitions that are scored: what is to be found in their first frames."""

    velocity: np.ndarray  # (N, C, 3) in spreads of the view; NaN where a cell has no trusted point
    view: np.ndarray  # (N,) str
    recording: np.ndarray  # (N,) str
    heldout: np.ndarray  # (N,) bool
    left_out: int  # windows of views that have too few recordings to learn from

    def where(self, chosen: np.ndarray) -> FlowWindows:
        """The windows that a (N,) bool or index array chooses."""
        return FlowWindows(
            self.velocity[chosen],
            self.view[chosen],
            self.recording[chosen],
            self.heldout[chosen],
            self.left_out,
        )

    def why_meaningless(self) -> str | None:
        """Reason why a score on these windows would mean nothing; None where it means something."""
        of_sides = [np.unique(self.recording[self.heldout == side]) for side in (False, True)]
        for side, found in zip(("to learn from", "held out"), of_sides, strict=True):
            if len(found) < FEWEST_RECORDINGS:
                return (
                    f"of {len(found)} recordings {side} it says nothing; it takes "
                    f"{FEWEST_RECORDINGS} held out, and as many of a camera to learn from"
                )
        if not np.nansum(np.square(self.velocity[self.heldout])):
            return "nothing moves in the held-out windows"
        return None


@dataclass(frozen=True)
class FlowErrors:
    """Errors of an encoder's probe on the flow of R held-out recordings."""

    left: np.ndarray  # (R,) sum of squared errors
    mean: np.ndarray  # (R,) that of predicting the view's training mean

    def explained(self, seed: int = 0) -> Interval:
        """Share of the flow explained, with its interval over recordings; below 0: worse."""
        return cluster_ratio(self.mean - self.left, self.mean, seed=seed)

    def unexplained_percent(self) -> float:
        """The share left, in percent: 100 is the training mean's, and less is better."""
        return 100 * float(self.left.sum() / self.mean.sum())

    def more_than(self, other: FlowErrors, seed: int = 0) -> Interval:
        """Difference of this explained share from another's of the same windows."""
        return cluster_ratio(other.left - self.left, self.mean, seed=seed)


def point_velocities(
    displacement: np.ndarray,
    trusted: np.ndarray,
    median_depth: np.ndarray,
    window_s: np.ndarray,
) -> np.ndarray:
    """Velocities (N, P, 3) in median depths a second; NaN where a point cannot be trusted.

    Args:
        displacement: (N, K, P, 3) from frame t, camera frame of t, in any unit of length; any
            value where it is not trusted.
        trusted: (N, K, P) bool: visible, and the step was measured.
        median_depth: (N,) of frame t, in the same unit.
        window_s: (N,) seconds from frame t to step K.
    """
    steps = displacement.shape[1]
    trusted = trusted & np.isfinite(displacement).all(-1)
    last = (trusted * np.arange(1, steps + 1)[:, None]).max(1)  # (N, P), 0: never
    index = np.maximum(last - 1, 0)[:, None, :, None]
    moved = np.take_along_axis(displacement, index, 1)[:, 0].astype(np.float64)
    usable = (2 * last >= steps) & (median_depth > 0)[:, None] & (window_s > 0)[:, None]
    unit = median_depth[:, None] * window_s[:, None] * last / steps
    return np.divide(
        moved, unit[..., None], out=np.full(moved.shape, np.nan), where=usable[..., None]
    )


def cells_of(origin_px: np.ndarray, size_px: np.ndarray) -> np.ndarray:
    """Cell of each point in frame t: (N, P) int, row-major.

    Args:
        origin_px: (N, P, 2) x and y of the points in frame t.
        size_px: (N, 2) width and height of the image.
    """
    share = origin_px / size_px[:, None, :]
    column, row = np.moveaxis(np.clip((CELLS * share).astype(np.int64), 0, CELLS - 1), -1, 0)
    return row * CELLS + column


def flow_windows(
    velocity: np.ndarray,
    cells: np.ndarray,
    source: np.ndarray,
    camera: np.ndarray,
    recording: np.ndarray,
    heldout: np.ndarray,
) -> tuple[FlowWindows, np.ndarray]:
    """The windows that can be scored, and (N,) bool which of those given they are.

    A camera with few training recordings shares a view with such cameras of its source; a view
    that still has too few is left out.

    Args:
        velocity: (N, P, 3) of :func:`point_velocities`.
        cells: (N, P) of :func:`cells_of`.
        source, camera, recording: (N,) str.
        heldout: (N,) bool.
    """
    alive = np.isfinite(velocity).any((1, 2))
    view = np.zeros(len(source), dtype=object)
    view[:] = ""
    view[alive] = _views(source[alive], camera[alive], recording[alive], heldout[alive])
    scaled = np.full((len(view), CELLS * CELLS, 3), np.nan)
    for name in sorted(set(view[view != ""].tolist())):
        mine = view == name
        scaled[mine] = _scaled(velocity[mine], cells[mine], ~heldout[mine])
    kept = (view != "") & np.isfinite(scaled).any((1, 2))
    out = int(len(view) - kept.sum())
    names = view[kept].astype(str)
    return FlowWindows(scaled[kept], names, recording[kept], heldout[kept], out), kept


def flow_errors(windows: FlowWindows, features: np.ndarray, folds: int = FOLDS) -> FlowErrors:
    """Fit a fresh ridge on the training windows, and test it on the held-out ones.

    Its penalty is chosen by cross-validation over training recordings. A missing cell of a
    training window counts as the mean, one of a held-out window is not asked for.

    Args:
        windows: that can be scored, see :meth:`FlowWindows.why_meaningless`.
        features: (N, D) of their first frames.
        folds: of the cross-validation.
    """
    number, held = len(windows.view), windows.heldout
    asked = windows.velocity.reshape(number, -1)
    seen = np.isfinite(asked)
    # In spreads from the view's training mean, which is 0 therefore.
    targets = np.where(seen, asked, 0.0)
    probe = fit_probe(
        features[~held], targets[~held], windows.view[~held], windows.recording[~held], folds=folds
    )
    predicted = probe.predict(features[held], windows.view[held])
    mean = probe.mean(windows.view[held])
    _, index = np.unique(windows.recording[held], return_inverse=True)

    def by_recording(prediction: np.ndarray) -> np.ndarray:
        squared = np.where(seen[held], np.square(prediction - targets[held]), 0.0).sum(1)
        return np.bincount(index, weights=squared)

    return FlowErrors(by_recording(predicted), by_recording(mean))


def explained_metrics(errors: dict[str, FlowErrors], first: str, seed: int = 0) -> dict[str, float]:
    """``flow_probe/<encoder>_percent`` with bounds, and ``flow_probe/difference_from_<encoder>…``.

    Args:
        errors: name of an encoder → its errors on the same windows.
        first: the encoder that the others are compared with.
        seed: of the bootstrap.
    """
    named = {name: one.explained(seed) for name, one in errors.items()}
    others = [name for name in errors if name != first]
    named |= {
        f"difference_from_{name}": errors[first].more_than(errors[name], seed) for name in others
    }
    flat = {}
    for name, share in named.items():
        for end, value in (("", share.value), ("_low", share.low), ("_high", share.high)):
            if np.isfinite(value):
                flat[f"flow_probe/{name}{end}_percent"] = 100 * value
    return flat


def _views(
    source: np.ndarray, camera: np.ndarray, recording: np.ndarray, heldout: np.ndarray
) -> np.ndarray:
    """(N,) str view of each window; empty where it has too few training recordings."""
    view = np.array([f"{s}/{c}" for s, c in zip(source, camera, strict=True)], dtype=object)
    small = ~_has_enough(view, recording, heldout)
    view[small] = [f"{name}/other cameras" for name in source[small]]
    view[~_has_enough(view, recording, heldout)] = ""
    return view


def _has_enough(view: np.ndarray, recording: np.ndarray, heldout: np.ndarray) -> np.ndarray:
    enough = {
        name
        for name in set(view.tolist())
        if len(set(recording[(view == name) & ~heldout].tolist())) >= FEWEST_RECORDINGS
    }
    return np.array([name in enough for name in view.tolist()], dtype=bool)


def _scaled(velocity: np.ndarray, cells: np.ndarray, train: np.ndarray) -> np.ndarray:
    """(n, C, 3) mean velocities of a view's cells: from the training mean, in training spreads."""
    speed = np.linalg.norm(velocity, axis=-1)
    seen = np.isfinite(speed)
    of_train = speed[train][seen[train]]
    if not of_train.size:
        return np.full((len(velocity), CELLS * CELLS, 3), np.nan)
    cut = np.percentile(of_train, _CUT_PERCENTILE)
    moved = velocity * np.minimum(1.0, cut / np.maximum(speed, 1e-300))[..., None]
    means = np.stack([_cell_means(*window) for window in zip(moved, cells, seen, strict=True)])
    known = np.isfinite(means[train])
    number = known.sum(0)
    total = np.where(known, means[train], 0.0).sum(0)
    means = means - total / np.maximum(number, 1)
    means[:, (number == 0).any(-1)] = np.nan  # a cell that no training window has
    spread = float(np.sqrt(np.nansum(np.square(means[train])) / max(3 * number[..., 0].sum(), 1)))
    return means / spread if spread else means


def _cell_means(velocity: np.ndarray, cells: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(C, 3) of one window's (P, 3) velocities; NaN in cells without points."""
    number = np.bincount(cells[seen], minlength=CELLS * CELLS)
    sums = np.stack(
        [np.bincount(cells[seen], velocity[seen, i], CELLS * CELLS) for i in range(3)], axis=1
    )
    return np.where(number[:, None] > 0, sums / np.maximum(number, 1)[:, None], np.nan)
