"""Near-duplicates: clips that show nearly the same frames with the same motion.

A video converted, scaled or cropped anew has other bytes and so another id, and the split by hash
may put it on the other side. Copies are looked for among at most :data:`MOST_CLIPS` clips
by their thumbnails (:mod:`.thumbnails`), in two steps. The first takes n log n time, the second
compares each clip with at most four others:

1. *Candidates*: each clip's layout and motion, coarse, whole and under a few crops, is a point.
   Random projection trees (Dasgupta & Freund, STOC 2008) order the points so that near ones stand
   close, and each is compared with those beside it.
2. *Comparison* of each clip with its best candidates: the thumbnails are laid over each other by
   an affine map (ECC, Evangelidis & Psarakis, PAMI 2008), and all three of :class:`Likeness` must
   hold. Episodes of one task in one scene look alike too; what they fail is the last two.

A copy that begins or ends elsewhere, is mirrored, or is cropped by more than a tenth on a side is
not found; nor is one in which hardly anything moves, where episodes cannot be told from copies.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Floats
from dynaflip.platform.triplets.thumbnails import SHARES, SIDE_PX, decode_thumbnails

MOST_CLIPS = 20_000

# Left, upper, right and lower edge of what is seen of a clip, as shares: all, and crops by a tenth.
_CROPS = (
    (0.0, 0.0, 1.0, 1.0),
    (0.05, 0.05, 0.95, 0.95),
    (0.1, 0.1, 0.9, 0.9),
    (0.0, 0.0, 0.9, 0.9),
    (0.1, 0.0, 1.0, 0.9),
    (0.0, 0.1, 0.9, 1.0),
    (0.1, 0.1, 1.0, 1.0),
)
_COARSE_PX = 8
_DIMENSIONS = 64  # that points are projected to
_LAYOUT_WEIGHT = 0.5  # of what rests, beside what moves
_TREES, _BESIDE = 6, 8
_LEAF = 16  # points
_MOST_CANDIDATES = 4  # of a clip
# How far candidates may be: of the demo's copies the furthest are 0.23 apart, of different episodes
# of a task 10 % are nearer than 0.33.
_FURTHEST = 0.3

_BLUR_PX = 1.5  # evens out how copies were scaled
_PATCH_PX = 5
_LEAST_OVERLAP = 0.3  # of a thumbnail
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-5)


@dataclass(frozen=True)
class Likeness:
    """How much two clips are alike, laid over each other.

    Thresholds are set on the 144 recordings of the demo: they find 95 % or more of the copies that
    were compressed, brightened or cropped, and 3 of the 792 pairs of different episodes of a task.

    Args:
        motion: correlation, over all frames, of what each differs by from the clip's mean frame.
        worst_motion: that of the frame where it is least.
        misfit: difference in the worst patch (median over frames), as a share of the contrast.
    """

    motion: float
    worst_motion: float
    misfit: float

    def is_copy(self) -> bool:
        """True where the clips are near-duplicates."""
        return self.motion >= 0.993 and self.worst_motion >= 0.985 and self.misfit <= 0.3


@dataclass(frozen=True)
class Look:
    """A clip as it is looked at here."""

    recording_id: str
    source: str
    split: str
    thumbnails: bytes


def near_duplicates(
    looks: Sequence[Look], wanted: Callable[[Look, Look], bool] = lambda a, b: True
) -> list[tuple[int, int]]:
    """Pairs of near-duplicates of different recordings: numbers of two looks, the lower first.

    Args:
        looks: at most :data:`MOST_CLIPS`.
        wanted: which pairs matter; others are not compared.
    """
    if len(looks) < 2:
        return []
    pairs = sorted(_candidates(_points(looks), looks, wanted))
    with ThreadPoolExecutor() as pool:
        alike = pool.map(lambda pair: _are_copies(looks[pair[0]], looks[pair[1]]), pairs)
        return [pair for pair, is_copy in zip(pairs, alike, strict=True) if is_copy]


def _are_copies(a: Look, b: Look) -> bool:
    first, second = decode_thumbnails(a.thumbnails), decode_thumbnails(b.thumbnails)
    # A crop is laid over the whole, and it may be either.
    return any(likeness.is_copy() for likeness in (compare(first, second), compare(second, first)))


def compare(first: Floats, second: Floats) -> Likeness:
    """How much two clips' thumbnails, (5, 64, 64) each, are alike.

    The second is laid over the first, so of two that differ by a crop it should be the whole one.
    """
    none = Likeness(0.0, 0.0, np.inf)
    warp = _alignment(first.mean(0), second.mean(0))
    if warp is None:
        return none
    laid, seen = _laid_over(second, warp)
    if seen.mean() < _LEAST_OVERLAP:
        return none
    a, b = _blurred(first)[:, seen], _blurred(laid)[:, seen]
    contrast = float(a.std())
    if not contrast or not float(b.std()):
        return none
    motions = [_correlation(x, y) for x, y in zip(a - a.mean(0), b - b.mean(0), strict=True)]
    motion = _correlation(a - a.mean(0), b - b.mean(0))
    centred_a, centred_b = a - a.mean(), b - b.mean()
    gain = (centred_a * centred_b).sum() / (centred_b**2).sum()
    off = np.zeros_like(first)
    off[:, seen] = np.abs(centred_a - gain * centred_b)
    patches = np.stack([cv2.blur(frame, (_PATCH_PX, _PATCH_PX)) for frame in off])[:, seen]
    return Likeness(motion, min(motions), float(np.median(patches.max(1))) / contrast)


def _alignment(first: Floats, second: Floats) -> Floats | None:
    """(2, 3) affine map of pixels of the first image to those of the second; None: there is none.

    Found on smaller images first, which a crop by a tenth moves by few pixels.
    """
    warp = np.eye(2, 3, dtype=np.float32)
    try:
        for side in (SIDE_PX // 2, SIDE_PX):
            warp[:, 2] *= 2 if side == SIDE_PX else 1
            a, b = (
                cv2.resize(i, (side, side), interpolation=cv2.INTER_AREA) for i in (first, second)
            )
            everywhere = np.ones((side, side), np.uint8)
            _, found = cv2.findTransformECC(
                a, b, warp, cv2.MOTION_AFFINE, _CRITERIA, everywhere, _PATCH_PX
            )
            warp = np.asarray(found, np.float32)
    except cv2.error:  # it does not converge
        return None
    return warp


def _laid_over(frames: Floats, warp: Floats) -> tuple[Floats, np.ndarray]:
    """Frames under an affine map, and (64, 64) which pixels they cover, a pixel from the edge."""
    size, flags = (SIDE_PX, SIDE_PX), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    shown = [cv2.warpAffine(frame, warp, size, flags=flags) for frame in frames]
    laid = np.asarray(np.stack(shown), np.float32)
    covered = cv2.warpAffine(np.ones(size, np.float32), warp, size, flags=flags) > 0.99
    return laid, cv2.erode(covered.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def _blurred(frames: Floats) -> Floats:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), _BLUR_PX) for frame in frames])


def _correlation(a: Floats, b: Floats) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / size if size else 0.0


def _points(looks: Sequence[Look]) -> Floats:
    """(N, crops, D) coarse layout and motion of each clip, under each crop."""
    rng = np.random.default_rng(0)
    cells = (len(SHARES) + 1) * _COARSE_PX**2
    project = (rng.normal(size=(cells, _DIMENSIONS)) / np.sqrt(_DIMENSIONS)).astype(np.float32)
    out = np.empty((len(looks), len(_CROPS), _DIMENSIONS), np.float32)
    for number, look in enumerate(looks):
        out[number] = _coarse(decode_thumbnails(look.thumbnails)) @ project
    return out


def _coarse(frames: Floats) -> Floats:
    """(crops, cells) of (5, 64, 64) frames: motion of length 1, and layout."""
    rows = []
    for left, upper, right, lower in _CROPS:
        x, y = (
            slice(round(a * SIDE_PX), round(b * SIDE_PX))
            for a, b in ((left, right), (upper, lower))
        )
        size = (_COARSE_PX, _COARSE_PX)
        small = np.stack([cv2.resize(f[y, x], size, interpolation=cv2.INTER_AREA) for f in frames])
        rests = small.mean(0)
        parts = (_unit(small - rests), _LAYOUT_WEIGHT * _unit(rests - rests.mean()))
        rows.append(np.concatenate([part.ravel() for part in parts]))
    return np.stack(rows)


def _unit(values: Floats) -> Floats:
    return values / max(float(np.linalg.norm(values)), 1e-6)


def _candidates(
    points: Floats, looks: Sequence[Look], wanted: Callable[[Look, Look], bool]
) -> list[tuple[int, int]]:
    """Pairs of clips of different recordings that stand beside each other in some tree.

    One of a pair is seen whole: (N, crops, D) ``points`` hold it first. Each clip keeps its
    nearest few.
    """
    crops = points.shape[1]
    flat = points.reshape(-1, points.shape[-1])
    nearest: dict[tuple[int, int], float] = {}
    rng = np.random.default_rng(1)
    for _ in range(_TREES):
        order = _tree_order(flat, rng)
        for step in range(1, _BESIDE + 1):
            a, b = order[:-step], order[step:]
            whole = (a % crops == 0) | (b % crops == 0)
            a, b = a[whole], b[whole]
            off = np.linalg.norm(flat[a] - flat[b], axis=1)
            near = (off < _FURTHEST) & (a // crops != b // crops)
            clips = zip((a[near] // crops).tolist(), (b[near] // crops).tolist(), strict=True)
            for (x, y), distance in zip(clips, off[near].tolist(), strict=True):
                pair = (min(x, y), max(x, y))
                nearest[pair] = min(distance, nearest.get(pair, np.inf))
    kept = [0] * len(looks)
    chosen = []
    for _, one, other in sorted((distance, *pair) for pair, distance in nearest.items()):
        first, second = looks[one], looks[other]
        if first.recording_id == second.recording_id or not wanted(first, second):
            continue
        if max(kept[one], kept[other]) < _MOST_CANDIDATES:
            kept[one] += 1
            kept[other] += 1
            chosen.append((one, other))
    return chosen


def _tree_order(points: Floats, rng: np.random.Generator) -> np.ndarray:
    """(P,) numbers of points in the order of a random projection tree's leaves.

    Every node is cut in two equal halves at the median of a random projection, so that no leaf is
    larger than others, however alike the points are.
    """
    count = len(points)
    order = np.arange(count)
    nodes = 1
    while count / nodes > _LEAF:
        edges = np.linspace(0, count, nodes + 1).astype(int)
        node = np.repeat(np.arange(nodes), np.diff(edges))
        directions = rng.normal(size=(nodes, points.shape[1])).astype(np.float32)
        along = np.empty(count, np.float32)
        for number, (begin, end) in enumerate(itertools.pairwise(edges)):
            along[begin:end] = points[order[begin:end]] @ directions[number]
        order = order[np.lexsort((along, node))]
        nodes *= 2
    return order
