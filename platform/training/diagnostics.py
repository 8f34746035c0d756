"""Cheap diagnostics of a batch's embeddings: signs of collapse or of an unused modality.

Alignment and uniformity are Wang & Isola's (arXiv 2005.10242), the effective rank Roy &
Vetterli's. Every process must call these at the same step: they gather the whole batch.
Shapes: N examples of all processes, E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from dynaflip.encoders.model import DynaFLIP
from dynaflip.eval.metrics.embedding_spread import effective_rank, mean_squared_distance
from dynaflip.eval.retrieval import top1
from dynaflip.losses.distributed import global_sum, rank, world_size
from dynaflip.losses.examples import Examples
from dynaflip.losses.objective import Objective
from dynaflip.losses.simplex import full_precision

Metrics = dict[str, float]

MOST_ROWS = 1024


def some_rows(batch: Mapping[str, Any], most: int | None) -> dict[str, Tensor]:
    """The first rows of this process's batch, at most :data:`MOST_ROWS` over all processes.

    ``most`` is a further limit, of this process's memory.
    """
    number = max(1, MOST_ROWS // world_size())
    number = number if most is None else min(number, most)
    return {name: value[:number] for name, value in batch.items() if isinstance(value, Tensor)}


def diagnose(
    model: DynaFLIP,
    objective: Objective,
    batch: Mapping[str, Tensor],
    autocast: torch.dtype | None = None,
) -> Metrics:
    """All diagnostics of one batch, in evaluation mode; both modules stay as they were.

    Args:
        model: the bare model.
        objective: its terms are taken apart.
        batch: of this process, see :func:`some_rows`.
        autocast: dtype of the model's computation; None = that of the weights.

    Returns:
        On rank 0 everything, on other processes the gradient norms alone.
    """
    trained, counted = model.training, objective.training
    model.eval()
    objective.eval()  # the memory bank must not take a batch in twice
    kind = batch["image_t"].device.type
    with torch.autocast(kind, dtype=autocast, enabled=autocast is not None):
        with torch.no_grad():
            frames = model.embed_frames(batch)
        metrics = gradient_norms(model, objective, frames, batch)
        with torch.no_grad():
            outputs = model.heads(*frames, batch)
    everyone = Examples.of(outputs, batch, objective.config.modalities).gathered()
    if rank() == 0:
        metrics |= embedding_metrics(everyone)
    model.train(trained)
    objective.train(counted)
    return metrics


def gradient_norms(
    model: DynaFLIP,
    objective: Objective,
    frames: tuple[Tensor, Tensor, Tensor | None],
    batch: Mapping[str, Tensor],
) -> Metrics:
    """Norm of each weighted term's gradient at the frame embeddings, over all processes.

    At the embeddings and not at the weights: which term pulls the encoder then costs one backward
    pass through the heads for each term, and none through the backbone.
    """
    d_t, d_next, d_far = (
        None if f is None else full_precision(f.detach()).requires_grad_() for f in frames
    )
    assert d_t is not None
    assert d_next is not None
    leaves = [f for f in (d_t, d_next, d_far) if f is not None]
    outputs = model.heads(d_t, d_next, d_far, batch)
    terms, _ = objective.evaluate(outputs, batch)
    norms = {}
    for name, term in terms.items():
        weight = objective.weights[name]
        # A term is this process's share times their number: DDP, which averages, is not here.
        gradients = torch.autograd.grad(
            weight * term / world_size(), leaves, retain_graph=True, allow_unused=True
        )
        squares = [g.square().sum() for g in gradients if g is not None]
        total = torch.stack(squares).sum() if squares else torch.zeros((), device=leaves[0].device)
        norms[f"diagnostics/gradient_norm/{name}"] = total
    sums = global_sum(torch.stack(list(norms.values()))).sqrt()
    return dict(zip(norms, sums.tolist(), strict=True))


@torch.no_grad()
def embedding_metrics(examples: Examples) -> Metrics:
    """Alignment and retrieval of each pair of modalities, spread and uniformity of each one.

    In float64 where the examples are. Its cost grows with the square of their number: 11 s of a
    CPU for 8,192.
    """
    points = {name: z.double() for name, z in examples.points.items()}
    group, example = examples.group, examples.example
    metrics: Metrics = {}
    for one, two in combinations(points, 2):
        apart = (points[one] - points[two]).square().sum(-1).mean()
        metrics[f"diagnostics/alignment/{one}_{two}"] = float(apart)
        # With language on either side every example of the caption group is a right answer.
        other = group if "language" in (one, two) else example
        allowed = other[:, None] != other[None]
        allowed.fill_diagonal_(True)
        hits, chance = top1((points[one] @ points[two].T).cpu(), allowed.cpu())
        metrics[f"diagnostics/retrieval/{one}_{two}"] = _mean(hits)
        metrics[f"diagnostics/chance/{one}_{two}"] = _mean(chance)
    for name, z in points.items():
        metrics[f"diagnostics/effective_rank/{name}"] = effective_rank(z)
        metrics[f"diagnostics/spread/{name}"] = mean_squared_distance(z)
        metrics[f"diagnostics/uniformity/{name}"] = uniformity(z)
    return {key: value for key, value in metrics.items() if value == value}


def uniformity(points: Tensor) -> float:
    """log mean e^{−2‖a−b‖²} over pairs of (N, E) unit vectors: 0 one point, −4 at best."""
    return float(nn.functional.pdist(points).square().mul(-2).exp().mean().log())


def _mean(values: object) -> float:
    known = torch.as_tensor(values)
    known = known[~known.isnan()]
    return float(known.mean()) if len(known) else float("nan")


class Collapsed(RuntimeError):
    """The embeddings of a modality have shrunk to a point, and `collapse_action` is stop."""


class CollapseGuard:
    """Warns or stops when several diagnostics in a row detect a collapsed modality."""

    def __init__(self, smallest_spread: float, checks: int, action: str) -> None:
        self.smallest_spread, self.checks, self.action = smallest_spread, checks, action
        self.detected = 0

    def check(self, step: int, metrics: Metrics) -> str | None:
        """A warning line when the last check in a row detects a collapse, or None.

        Raises:
            Collapsed: the same, where the action is to stop.
        """
        spreads = {
            name.rsplit("/", 1)[-1]: value
            for name, value in metrics.items()
            if name.startswith("diagnostics/spread/")
        }
        flat = {name: v for name, v in spreads.items() if v < self.smallest_spread}
        self.detected = self.detected + 1 if flat else 0
        if self.detected < self.checks:
            return None
        what = ", ".join(
            f"{name} (spread {value:.3g}, effective rank "
            f"{metrics[f'diagnostics/effective_rank/{name}']:.1f})"
            for name, value in flat.items()
        )
        line = (
            f"step {step}: embeddings collapsed in {self.detected} checks in a row: {what}; check "
            "objective.direct, objective.negatives and optimizer.lr"
        )
        if self.action == "stop":
            raise Collapsed(line)
        return f"warning: {line}" if self.detected == self.checks else None
