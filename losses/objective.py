"""The training objective: named terms, weighted and added.

L = w_contrastive · L_align + w_temporal · L_tcn + w_flow · L_act (+ w_direct · E_matched),
DynaFLIP (arXiv 2605.30350). Shapes: B examples of this process, E embedding width, D frame
embedding width, K steps, G×G grid points.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dynaflip.losses.alignment import alignment_loss
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.energy import Triples, energy
from dynaflip.losses.flow_prediction import flow_prediction_loss
from dynaflip.losses.gather import gather_rows, global_sum, world_size
from dynaflip.losses.simplex import triangle_area
from dynaflip.losses.temporal import temporal_loss


class Objective(nn.Module):
    """Loss and named terms of a batch.

    Under ``torch.distributed`` negatives come from all processes, and ``loss`` is scaled so
    that DDP's averaged gradients are those of one process with the whole batch. Every
    process must call with the same number of examples.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """``loss`` () with gradient; every other entry a () number of the whole batch without.

        Args:
            outputs: of ``DynaFLIP.forward``: z_image, z_language, z_flow (B, E) of unit norm,
                d_t, d_next, d_far (B, D), flow_prediction (B, K, G, G, 3) in median depths.
            batch: group (B,), clip (B,), far_valid (B,) bool, flow_displacement_m
                (B, K, G, G, 3), flow_visible (B, K, G, G) bool, median_depth_m (B,).

        Returns:
            ``loss``; the unweighted terms ``contrastive``, ``temporal``, ``flow``, ``direct``;
            ``contrastive_<negatives>`` for each set of negatives; ``volume`` and ``cosine``,
            the energy's two parts over matched triples; ``area_matched``, ``area_shuffled``
            over triples of three examples.
        """
        config = self.config
        triples = Triples(outputs["z_language"], outputs["z_image"], outputs["z_flow"])
        align = alignment_loss(config, triples, batch["group"])
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
            "direct": energy(triples, config.volume, config.cosine).mean(),
        }
        # A term of weight 0 stays in the sum: DDP wants a gradient for every parameter.
        loss = torch.stack([getattr(config, name) * term for name, term in terms.items()]).sum()
        parts = {f"contrastive_{name}": part for name, part in align.items()}
        return {"loss": loss, **_over_processes({**terms, **parts, **_areas(triples)})}

    def _temporal(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return temporal_loss(
            outputs["d_t"],
            outputs["d_next"],
            outputs["d_far"],
            batch["far_valid"],
            batch["clip"],
            num_negatives=self.config.temporal_negatives,
            temperature=self.config.temporal_temperature,
        )


@torch.no_grad()
def _areas(triples: Triples) -> dict[str, Tensor]:
    """Mean area of matched triples and of triples of three examples, and the mean cosine."""
    everyone = Triples(*(gather_rows(z.detach()) for z in triples))
    matched = triangle_area(*triples).mean()
    shuffled = everyone.rolled(0, 1, 2)
    return {
        "volume": matched,
        "cosine": (triples.language * triples.flow).sum(-1).mean(),
        "area_matched": matched,
        "area_shuffled": triangle_area(*shuffled).mean(),
    }


def _over_processes(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each term over processes, detached, with one message for all."""
    values = torch.stack([term.detach().float() for term in terms.values()])
    return dict(zip(terms, global_sum(values) / world_size(), strict=True))
