"""Retrieval over a fixed gallery: does an image transition find its own caption and flow?

Query: the image transition I_i. Candidates: the pairs (L_j, F_j). The score is
−E(L_j, I_i, F_j), the run's own energy, and the answer is right when j = i scores best.
Candidates of one caption group share L_j and differ in F_j, so exactly one answer is right.
A transition whose window overlaps the query's is a wrong answer, too, though training does not
push the two apart: figures of runs with either setting can be compared. Candidates are drawn

- ``all``: from the whole gallery,
- ``task``: from the query's task (what the caption alone cannot decide),
- ``clip``: from the query's clip (what recognising the scene cannot decide),

and ``all_swapped`` and ``task_swapped`` repeat the first two with flows that were
encoded under the condition token of *another* recording's clip: the condition
token carries the scene, so what remains is the information in the flow itself.

Shapes: Q queries, C candidates, B transitions of the gallery, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynaflip.eval.intervals.cluster_bootstrap import cluster_mean
from dynaflip.eval.metrics.embedding_spread import effective_rank, mean_squared_distance
from dynaflip.losses.examples import Windows

SCOPES = ("all", "task", "clip")


@dataclass(frozen=True)
class Embeddings:
    """Unit-norm embeddings of a gallery, float64 on the CPU, and who belongs to whom."""

    language: Tensor  # (B, E)
    image: Tensor  # (B, E)
    flow: Tensor  # (B, E)
    flow_swapped: Tensor | None  # (B, E), encoded under another clip's condition token
    task: Tensor  # (B,) int64
    clip: Tensor  # (B,) int64: one camera of one recording
    recording: Tensor  # (B,) int64
    swapped_within_task: float = float("nan")  # share of transitions, in [0, 1]
    windows: Windows | None = None  # when the flows are


def retrieval_report(
    model: Any,
    gallery: dict[str, Any],
    *,
    volume: float = 1.0,
    cosine: float = 1.0,
    chunk: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """Embed a gallery with a model and measure retrieval, areas and spread.

    Args:
        model: a :class:`dynaflip.encoders.model.DynaFLIP`.
        gallery: a batch as the model takes it, B transitions, with the extra (B,)
            int64 tensors ``clip``, ``recording`` and ``task`` (``group`` stands in
            for a missing ``task``); what is no tensor is ignored.
        volume, cosine: the run's weights of the energy.
        chunk: transitions a forward pass.
        seed: seeds the bootstrap.

    Returns:
        Flat metrics, see :func:`report_of`.
    """
    return report_of(
        embed_gallery(model, gallery, chunk=chunk), volume=volume, cosine=cosine, seed=seed
    )


def report_of(
    embeddings: Embeddings, *, volume: float = 1.0, cosine: float = 1.0, seed: int = 0
) -> dict[str, float]:
    """Metrics of an embedded gallery.

    Returns:
        ``retrieval/<scope>/{top1,low,high,chance,queries}`` for the scopes ``all``,
        ``task``, ``clip``, ``all_swapped``, ``task_swapped`` (shares in [0, 1]; 95 %
        interval over recordings), ``retrieval/<flow|language>_query/…`` for the two
        other directions over all, ``area/matched`` and ``area/shuffled`` (mean triangle
        area), ``retrieval/clip/ceiling`` (top-1 of who tells apart all but overlapping windows),
        ``effective_rank/<modality>``, ``spread/<modality>``, ``gallery/size``
        and ``gallery/swapped_within_task``. What the gallery cannot answer is left out
        (no clip with two transitions, one recording: no interval, no swap).
    """
    metrics: dict[str, float] = {"gallery/size": float(len(embeddings.image))}
    weights = {"volume": volume, "cosine": cosine}
    scores = image_scores(embeddings.language, embeddings.image, embeddings.flow, **weights)
    for scope in SCOPES:
        _add(metrics, scope, scores, candidate_mask(embeddings, scope), embeddings, seed)
    if embeddings.windows is not None:
        metrics["retrieval/clip/ceiling"] = _ceiling(embeddings)
    if embeddings.flow_swapped is not None:
        metrics["gallery/swapped_within_task"] = embeddings.swapped_within_task
        swapped = image_scores(
            embeddings.language, embeddings.image, embeddings.flow_swapped, **weights
        )
        for scope in ("all", "task"):
            mask = candidate_mask(embeddings, scope)
            _add(metrics, f"{scope}_swapped", swapped, mask, embeddings, seed)
    everything = candidate_mask(embeddings, "all")
    by_flow = flow_scores(embeddings.language, embeddings.image, embeddings.flow, **weights)
    _add(metrics, "flow_query", by_flow, everything, embeddings, seed)
    # Transitions that share the query's caption are as right as the query's own.
    distinct = (embeddings.task[:, None] != embeddings.task[None, :]) | torch.eye(
        len(embeddings.task), dtype=torch.bool
    )
    by_text = language_scores(embeddings.language, embeddings.image, embeddings.flow, **weights)
    _add(metrics, "language_query", by_text, distinct, embeddings, seed)
    matched, shuffled = mean_areas(embeddings)
    metrics |= {"area/matched": matched, "area/shuffled": shuffled}
    for name in ("image", "language", "flow"):
        points = getattr(embeddings, name)
        metrics[f"effective_rank/{name}"] = effective_rank(points)
        metrics[f"spread/{name}"] = mean_squared_distance(points)
    return {key: value for key, value in metrics.items() if np.isfinite(value)}


@torch.no_grad()
def embed_gallery(model: Any, gallery: dict[str, Any], *, chunk: int = 32) -> Embeddings:
    """Run a model over a gallery, with matched and with swapped condition tokens.

    The model's training flag is restored afterwards.
    """
    gallery = {key: value for key, value in gallery.items() if isinstance(value, Tensor)}
    size = len(gallery["clip"])
    task = gallery.get("task", gallery["group"])
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for start in range(0, size, chunk):
        batch = {key: value[start : start + chunk].to(device) for key, value in gallery.items()}
        outputs = model(batch)
        parts.append({k: outputs[k] for k in ("z_image", "z_language", "z_flow", "d_t")})
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    donors = swap_conditions(gallery["clip"], gallery["recording"], task)
    swapped = None
    if donors is not None:
        condition = joined["d_t"][donors.to(device)]
        swapped = torch.cat(
            [
                _encode_flow(model, gallery, slice(i, i + chunk), condition[i : i + chunk])
                for i in range(0, size, chunk)
            ]
        )
    model.train(was_training)
    within = float("nan") if donors is None else (task == task[donors]).double().mean().item()
    return Embeddings(
        language=_plain(joined["z_language"]),
        image=_plain(joined["z_image"]),
        flow=_plain(joined["z_flow"]),
        flow_swapped=None if swapped is None else _plain(swapped),
        task=task.cpu(),
        clip=gallery["clip"].cpu(),
        recording=gallery["recording"].cpu(),
        swapped_within_task=within,
        windows=Windows.of(gallery) if "window_start_s" in gallery else None,
    )


def image_scores(
    language: Tensor, image: Tensor, flow: Tensor, *, volume: float, cosine: float
) -> Tensor:
    """−E(L_c, I_q, F_c) for every query q and candidate c: (Q, C)."""
    language_flow = (language * flow).sum(-1)[None, :]
    return -energy(image @ language.T, language_flow, image @ flow.T, volume, cosine)


def flow_scores(
    language: Tensor, image: Tensor, flow: Tensor, *, volume: float, cosine: float
) -> Tensor:
    """−E(L_c, I_c, F_q) for every query q and candidate c: (Q, C)."""
    image_language = (language * image).sum(-1)[None, :]
    return -energy(image_language, flow @ language.T, flow @ image.T, volume, cosine)


def language_scores(
    language: Tensor, image: Tensor, flow: Tensor, *, volume: float, cosine: float
) -> Tensor:
    """−E(L_q, I_c, F_c) for every query q and candidate c: (Q, C)."""
    image_flow = (image * flow).sum(-1)[None, :]
    return -energy(language @ image.T, language @ flow.T, image_flow, volume, cosine)


def energy(
    image_language: Tensor,
    language_flow: Tensor,
    image_flow: Tensor,
    volume: float,
    cosine: float,
) -> Tensor:
    """E = volume · A − cosine · ⟨L, F⟩ from inner products of unit vectors.

    Broadcasts. Meant for float64, where the cancellation near alignment that the
    training loss has to avoid (method.md, "Numerics") is far below any decision.
    """
    area = triangle_area(image_language, language_flow, image_flow)
    return volume * area - cosine * language_flow


def triangle_area(image_language: Tensor, language_flow: Tensor, image_flow: Tensor) -> Tensor:
    """½ √(⟨u,u⟩⟨v,v⟩ − ⟨u,v⟩²), u = I − L, v = F − L, from inner products; broadcasts."""
    uu = 2 - 2 * image_language
    vv = 2 - 2 * language_flow
    uv = 1 - image_language - language_flow + image_flow
    return 0.5 * (uu * vv - uv.square()).clamp_min(0).sqrt()


def mean_areas(embeddings: Embeddings) -> tuple[float, float]:
    """Mean area of the matched triples and of triples shuffled across recordings.

    Shuffled: I_i with (L_j, F_k) of the donors one third and two thirds of the
    gallery further on, so that the three come from three places.
    """
    size = len(embeddings.image)
    second = torch.arange(size).roll(-max(1, size // 3))
    third = torch.arange(size).roll(-max(2, 2 * size // 3))

    def area(language: Tensor, image: Tensor, flow: Tensor) -> float:
        products = [(image * language), (language * flow), (image * flow)]
        return triangle_area(*(product.sum(-1) for product in products)).mean().item()

    matched = area(embeddings.language, embeddings.image, embeddings.flow)
    shuffled = area(embeddings.language[second], embeddings.image, embeddings.flow[third])
    return matched, shuffled


def candidate_mask(embeddings: Embeddings, scope: str) -> Tensor:
    """Candidates that a query may choose from: (Q, C) bool, own pair included."""
    labels = {"task": embeddings.task, "clip": embeddings.clip}.get(scope)
    if labels is None:
        return torch.ones(len(embeddings.image), len(embeddings.image), dtype=torch.bool)
    return labels[:, None] == labels[None, :]


def top1(scores: Tensor, mask: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Top-1 hit of each query: its own candidate (the diagonal) scores best.

    Args:
        scores: (Q, Q) score of candidate c for query q.
        mask: (Q, Q) bool, candidates allowed; the diagonal is.

    Returns:
        hits (Q,) in [0, 1] and chance (Q,) = 1 / candidates. A tie of k is worth
        1/k, so that a collapsed model scores chance. NaN where a query has no
        candidate but its own.
    """
    candidates = mask.sum(1)
    best = scores.masked_fill(~mask, -torch.inf).max(1).values
    tied = ((scores == best[:, None]) & mask).sum(1)
    hits = (scores.diagonal() == best).double() / tied
    chance = 1.0 / candidates.double()
    alone = candidates < 2
    hits[alone] = torch.nan
    chance[alone] = torch.nan
    return hits.numpy(), chance.numpy()


def _ceiling(embeddings: Embeddings) -> float:
    """Expected top-1 within a clip of who can tell apart all windows but those that overlap.

    Overlapping windows show much of one motion, and pretraining leaves them out of each other's
    negatives by default. Where all windows of the clips overlap, this is chance.
    """
    windows = embeddings.windows
    assert windows is not None
    alike = windows[:, None].overlap(windows[None])  # (Q, C), of one clip
    others = candidate_mask(embeddings, "clip").sum(1) > 1
    return (1 / alike.sum(1).double())[others].mean().item()


def swap_conditions(clip: Tensor, recording: Tensor, task: Tensor) -> Tensor | None:
    """For each transition, whose condition token it gets: a fixed derangement of clips.

    The donor clip is of another recording, and of the same task where the task has
    recordings enough. Clips are sorted by recording and shifted by the largest
    number of clips a recording has, so that none lands on its own recording.

    Args:
        clip, recording, task: (B,) int64.

    Returns:
        (B,) int64 index of the transition that lends its token; None when there is
        no arrangement (one recording holds more than half of the clips left over).
    """
    rows: dict[int, list[int]] = {}
    owner: dict[int, tuple[int, int]] = {}
    for row, name in enumerate(clip.tolist()):
        rows.setdefault(name, []).append(row)
        owner[name] = (int(task[row]), int(recording[row]))
    donor: dict[int, int] = {}
    for wanted in sorted({t for t, _ in owner.values()}):
        donor |= _shift([c for c in owner if owner[c][0] == wanted], owner) or {}
    left = [c for c in owner if c not in donor]
    if left:
        shifted = _shift(left, owner) or _shift(list(owner), owner)
        if shifted is None:
            return None
        donor |= {c: shifted[c] for c in left}
    chosen = torch.empty(len(clip), dtype=torch.int64)
    for name, own in rows.items():
        lent = rows[donor[name]]
        for position, row in enumerate(own):
            # The same moment of the other clip, as far as it has one.
            chosen[row] = lent[position * len(lent) // len(own)]
    return chosen


def _add(
    metrics: dict[str, float],
    scope: str,
    scores: Tensor,
    mask: Tensor,
    embeddings: Embeddings,
    seed: int,
) -> None:
    hits, chance = top1(scores, mask)
    counted = ~np.isnan(hits)
    interval = cluster_mean(hits[counted], embeddings.recording.numpy()[counted], seed=seed)
    chances = chance[counted]
    metrics |= {
        f"retrieval/{scope}/top1": interval.value,
        f"retrieval/{scope}/low": interval.low,
        f"retrieval/{scope}/high": interval.high,
        f"retrieval/{scope}/chance": float(chances.mean()) if chances.size else float("nan"),
        f"retrieval/{scope}/queries": float(counted.sum()),
    }


def _shift(clips: list[int], owner: dict[int, tuple[int, int]]) -> dict[int, int] | None:
    clips = sorted(clips, key=lambda c: (owner[c][1], c))
    counts: dict[int, int] = {}
    for name in clips:
        counts[owner[name][1]] = counts.get(owner[name][1], 0) + 1
    most = max(counts.values(), default=0)
    if not clips or 2 * most > len(clips):
        return None
    return {name: clips[(i + most) % len(clips)] for i, name in enumerate(clips)}


def _encode_flow(model: Any, gallery: dict[str, Tensor], rows: slice, condition: Tensor) -> Tensor:
    depth = gallery["median_depth_m"][rows].to(condition.device)
    return model.encode_flow(
        gallery["flow_origin_m"][rows].to(condition.device) / depth[:, None, None, None],
        gallery["flow_displacement_m"][rows].to(condition.device)
        / depth[:, None, None, None, None],
        gallery["flow_visible"][rows].to(condition.device),
        condition,
    )


def _plain(points: Tensor) -> Tensor:
    return points.detach().cpu().double()
