"""The matched triples' energy minimised directly, without negatives.

DynaFLIP (arXiv 2605.30350) minimises the energy inside the contrastive term alone. Minimised
directly it has its lowest value where everything is one point, so its weight is 0 unless set.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dynaflip.losses.base import LossTerm, TermSetup
from dynaflip.losses.energy import energy


class DirectEnergyTerm(LossTerm):
    """Mean of E = w_volume · A − w_cosine · ⟨z_L, z_F⟩ over matched examples."""

    def __init__(self, setup: TermSetup) -> None:
        """Read which modalities are aligned."""
        super().__init__(setup)
        self.frames = ("t", "next") if "image" in setup.objective.modalities else ()

    def forward(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """The mean energy ()."""
        config = self.setup.objective
        points = {name: outputs[f"z_{name}"] for name in config.modalities}
        return energy(points, config.volume, config.cosine).mean()
