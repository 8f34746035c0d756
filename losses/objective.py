"""The training objective: named terms, weighted and added.

L = w_contrastive · L_align + w_temporal · L_tcn + w_flow · L_act (+ w_direct · E_matched),
DynaFLIP (arXiv 2605.30350). Shapes: B examples of this process, E embedding width, D frame
embedding width, K steps, G×G grid points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dynaflip.losses.config import MODALITIES, ObjectiveConfig
from dynaflip.losses.contrastive import Examples, contrastive_loss
from dynaflip.losses.distributed import global_sum, world_size
from dynaflip.losses.energy import energy, rolled
from dynaflip.losses.flow_prediction import flow_prediction_loss
from dynaflip.losses.memory_bank import MemoryBank
from dynaflip.losses.simplex import simplex_volume
from dynaflip.losses.time_contrastive import time_contrastive_loss

WEIGHTED = ("contrastive", "temporal", "flow", "direct")
# A learned temperature stays above this, so that a few wrong captions cannot blow up the loss.
LOWEST_TEMPERATURE = 0.01


class Objective(nn.Module):
    """Loss and named terms of a batch.

    Under ``torch.distributed`` negatives come from all processes, and ``loss`` is scaled so
    that DDP's averaged gradients are those of one process with the whole batch. Every
    process must call with the same number of examples. A learned temperature is a parameter
    and the queue a buffer of this module: where there is one, train and save it too.
    """

    def __init__(self, config: ObjectiveConfig, embedding_dim: int | None = None) -> None:
        """``embedding_dim`` is E; a queue needs it."""
        super().__init__()
        self.config = config
        self.log_temperature: nn.Parameter | None = None
        if config.learn_temperature:
            above = max(config.temperature - LOWEST_TEMPERATURE, 1e-4)
            self.log_temperature = nn.Parameter(torch.tensor(math.log(above)))
        self.queue: MemoryBank | None = None
        if config.queue_size:
            assert embedding_dim is not None, "a queue needs the embedding's width"
            self.queue = MemoryBank(config.queue_size, embedding_dim, config.modalities)

    def forward(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """``loss`` () with gradient; every other entry a () number of the whole batch without.

        ``loss`` is this process's share; their mean over processes is ``total``.

        Args:
            outputs: of ``DynaFLIP.forward``: z_image, z_language, z_flow (B, E) of unit norm,
                d_t, d_next, d_far (B, D), flow_prediction (B, K, G, G, 3) in median depths.
            batch: group (B,), triplet (B,), clip (B,), far_valid (B,) bool, flow_displacement_m
                (B, K, G, G, 3), flow_visible (B, K, G, G) bool, median_depth_m (B,).

        Returns:
            ``loss``, ``total``; the unweighted ``contrastive``, ``temporal``, ``flow``, ``direct``;
            ``contrastive_<negatives>`` for each set of negatives; ``volume`` and ``cosine``,
            the energy's two parts over matched examples; ``area_matched``, ``area_shuffled``,
            the volume over matched ones and over mixtures of different examples;
            ``temperature`` where it is learned.
        """
        terms, measures = self.terms(outputs, batch)
        # A term of weight 0 stays in the sum: DDP wants a gradient for every parameter.
        loss = torch.stack([getattr(self.config, name) * terms[name] for name in WEIGHTED]).sum()
        measures["total"] = loss
        for name in set(MODALITIES) - set(self.config.modalities):
            loss = loss + 0.0 * outputs[f"z_{name}"].sum()
        return {"loss": loss, **_over_processes({**terms, **measures})}

    def terms(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The unweighted terms, () with gradient, and the other entries of :meth:`forward`."""
        config = self.config
        points = {name: outputs[f"z_{name}"] for name in config.modalities}
        local = Examples(points, batch["group"], batch["triplet"])
        everyone = local.gathered()
        past = None if self.queue is None else self.queue.examples()
        temperature = self.temperature()
        align = contrastive_loss(config, local, everyone, temperature=temperature, past=past)
        if self.queue is not None and self.training:
            self.queue.push(everyone.detached())
        terms = {
            "contrastive": align.pop("loss"),
            "temporal": self._temporal(outputs, batch),
            "flow": flow_prediction_loss(
                outputs["flow_prediction"],
                batch["flow_displacement_m"],
                batch["flow_visible"],
                batch["median_depth_m"],
                scale=config.flow_scale,
                scale_floor=config.flow_scale_floor,
            ),
            "direct": energy(points, config.volume, config.cosine).mean(),
        }
        measures = {f"contrastive_{name}": part for name, part in align.items()}
        measures |= _areas(local.detached(), everyone.detached())
        if isinstance(temperature, Tensor):
            measures["temperature"] = temperature
        return terms, measures

    def temperature(self) -> Tensor | float:
        """τ: a number, or where it is learned a () tensor with gradient."""
        if self.log_temperature is None:
            return self.config.temperature
        return LOWEST_TEMPERATURE + self.log_temperature.exp()

    def _temporal(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return time_contrastive_loss(
            outputs["d_t"],
            outputs["d_next"],
            outputs["d_far"],
            batch["far_valid"],
            batch["clip"],
            num_negatives=self.config.temporal_negatives,
            temperature=self.config.temporal_temperature,
            contrast=bool(self.config.negatives),
        )


@torch.no_grad()
def _areas(local: Examples, everyone: Examples) -> dict[str, Tensor]:
    """Mean volume of matched examples and of mixtures of different ones, and the mean cosine."""
    matched = simplex_volume(list(local.points.values())).mean()
    mixed = rolled(everyone.points, {name: k for k, name in enumerate(everyone.points)})
    return {
        "volume": matched,
        "cosine": -energy(local.points, 0.0, 1.0).mean(),
        "area_matched": matched,
        "area_shuffled": simplex_volume(list(mixed.values())).mean(),
    }


def _over_processes(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each term over processes, detached, with one message for all."""
    values = torch.stack([term.detach().float() for term in terms.values()])
    return dict(zip(terms, global_sum(values) / world_size(), strict=True))
