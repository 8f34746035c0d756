"""Settings of the training objective. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

MODALITIES = ("image", "language", "flow")
NEGATIVES = ("others", "swapped", "shuffled")
FLOW_SCALES = ("motion", "none")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and choices of the objective; the defaults are the paper's (arXiv 2605.30350).

    ``E = volume · A − cosine · ⟨z_L, z_F⟩`` is the energy of a triple and
    ``L = contrastive · L_align + temporal · L_tcn + flow · L_act + direct · E_matched``.
    Settings that the paper leaves open say so.

    Raises:
        ValueError: a value out of range; the message starts with the setting's name.
    """

    # Weight of the simplex volume (the triangle's area A) inside the energy.
    volume: float = 1.0
    # Weight of the cosine regularizer ⟨z_L, z_F⟩ inside the energy (the paper's α).
    cosine: float = 1.0
    # Weight of the contrastive alignment over energies (L_align).
    contrastive: float = 1.0
    # Weight of the temporal term (L_tcn).
    temporal: float = 1.0
    # Weight of the flow prediction (L_act).
    flow: float = 1.0
    # Weight of the matched triples' energy minimised directly. It collapses the embeddings at
    # large values while the loss curve looks healthy, so it is off.
    direct: float = 0.0
    # Temperature τ of the contrastive alignment.
    temperature: float = 0.07
    # Anchored modalities: each gives one N×N energy matrix. Open in the paper; all three.
    anchors: tuple[str, ...] = MODALITIES
    # Which shuffles are negatives, open in the paper. "others": the two other modalities come
    # from one other example; "swapped": the anchored modality does; "shuffled": all three
    # modalities come from three examples (`shuffles` per example).
    negatives: tuple[str, ...] = ("others",)
    # Number of all-shuffled negatives of each example, used with negatives "shuffled" only.
    shuffles: int = 16
    # Anchors in whose matrix an entry between equal caption groups is left out. With language
    # anchored, (L_i, I_j, F_j) of equal groups is a true triple. With image or flow anchored,
    # (L_j, I_i, F_j) pairs a motion with another motion of that caption: a true negative.
    mask_same_caption: tuple[str, ...] = ("language",)
    # Frames of other clips that a pair (t1, t2) is held against in the temporal term (R3M: 3).
    temporal_negatives: int = 3
    # ℓ2 distance of two frame embeddings that counts as one nat in the temporal term (R3M: 1).
    temporal_temperature: float = 1.0
    # Unit of the flow error. "motion": the batch's mean squared motion, so that predicting no
    # motion scores 1; "none": squared median depths. Open in the paper.
    flow_scale: str = "motion"
    # Smallest root-mean-square motion of a batch, in median depths, that "motion" divides by:
    # a batch where hardly anything moves must not blow up tracking noise.
    flow_scale_floor: float = 0.01

    def __post_init__(self) -> None:
        for name in ("volume", "cosine", "contrastive", "temporal", "flow", "direct"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: a weight must be a number from 0 up, not {value}")
        for name in ("temperature", "temporal_temperature", "flow_scale_floor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: must be a number above 0, not {value}")
        for name in ("shuffles", "temporal_negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        for name, known in (
            ("anchors", MODALITIES),
            ("negatives", NEGATIVES),
            ("mask_same_caption", MODALITIES),
        ):
            chosen = getattr(self, name)
            if unknown := set(chosen) - set(known):
                raise ValueError(f"{name}: unknown {sorted(unknown)}; known are {list(known)}")
            if len(set(chosen)) != len(chosen):
                raise ValueError(f"{name}: {list(chosen)} names one twice")
        if not self.anchors or not self.negatives:
            raise ValueError("anchors, negatives: name at least one; weigh with `contrastive`")
        if self.flow_scale not in FLOW_SCALES:
            raise ValueError(f"flow_scale: {self.flow_scale!r} is not one of {list(FLOW_SCALES)}")
        if self.volume == 0 and self.cosine == 0:
            raise ValueError("volume, cosine: both are 0, so every triple has the same energy")
