"""Settings of the training objective. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynaflip.checks import at_least, one_of, within

MODALITIES = ("image", "language", "flow")
NEGATIVES = ("others", "swapped", "shuffled")
ALIGNMENTS = ("simplex", "pairwise")
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

    modalities: tuple[str, ...] = MODALITIES
    """Modalities that are aligned. Two span a segment, whose volume is its length."""

    volume: float = 1.0
    """Weight of the simplex volume (the triangle's area A) inside the energy."""

    cosine: float = 1.0
    """Weight of the cosine regularizer ⟨z_L, z_F⟩ inside the energy (the paper's α). Of two
    modalities it is their cosine."""

    contrastive: float = 1.0
    """Weight of the contrastive alignment over energies (L_align)."""

    temporal: float = 1.0
    """Weight of the temporal term (L_tcn)."""

    flow: float = 1.0
    """Weight of the flow prediction (L_act)."""

    direct: float = 0.0
    """Weight of the matched triples' energy minimised directly. It collapses the embeddings at
    large values while the loss curve looks healthy, so it is off."""

    temperature: float = 0.07
    """Temperature τ of the contrastive alignment."""

    learn_temperature: bool = False
    """Learn the temperature, from `temperature` on; it stays above 0.01, as CLIP's does."""

    alignment: str = "simplex"
    """``simplex``: contrast the energies of whole triples (paper); ``pairwise``: InfoNCE over
    cosines of one modality with each other one, both ways (the paper's baseline)."""

    pairwise_anchor: str = "language"
    """The modality that the others are aligned with by ``pairwise``. Open in the paper; language
    is the corner that the paper's triangle is written from."""

    anchors: tuple[str, ...] = ()
    """Anchored modalities: each gives one N×N energy matrix. Open in the paper; empty takes all
    that are aligned."""

    negatives: tuple[str, ...] = ("others",)
    """Which shuffles are negatives, open in the paper. ``others``: the two other modalities come
    from one other example; ``swapped``: the anchored modality does; ``shuffled``: all three
    modalities come from three examples (`shuffles` per example). Empty: no negatives at all, in
    the temporal term neither. Both lose their denominators: L_align = E/τ and L_tcn = ‖d(t1) −
    d(t2)‖. It collapses; the paper's ablation."""

    queue_size: int = 0
    """Examples of past steps, without gradient, that ``others`` is held against beside the batch;
    0 = the batch alone (paper). The example itself, a while ago, is left out."""

    shuffles: int = 16
    """Number of all-shuffled negatives of each example, used with negatives ``shuffled`` only."""

    mask_same_caption: tuple[str, ...] = ("language",)
    """Anchors in whose matrix an entry between equal caption groups is left out. With language
    anchored, (L_i, I_j, F_j) of equal groups is a true triple. With image or flow anchored, (L_j,
    I_i, F_j) pairs a motion with another motion of that caption: a true negative. Of two
    modalities with language both anchors ask for the same pairs: one of them masks both."""

    temporal_negatives: int = 3
    """Frames of other clips that a pair (t1, t2) is held against in the temporal term (R3M: 3)."""

    temporal_temperature: float = 1.0
    """ℓ2 distance of two frame embeddings that counts as one nat in the temporal term (R3M: 1)."""

    flow_scale: str = "motion"
    """Unit of the flow error. ``motion``: the batch's mean squared motion, so that predicting no
    motion scores 1; ``none``: squared median depths. Open in the paper."""

    flow_scale_floor: float = 0.01
    """Smallest root-mean-square motion of a batch, in median depths, that ``motion`` divides by: a
    batch where hardly anything moves must not blow up tracking noise."""

    def __post_init__(self) -> None:
        weights = ("volume", "cosine", "contrastive", "temporal", "flow", "direct")
        within(self, 0, math.inf, *weights, ends="[)")
        scales = ("temperature", "temporal_temperature", "flow_scale_floor")
        within(self, 0, math.inf, *scales, ends="()")
        at_least(self, 1, "shuffles", "temporal_negatives")
        for name, known in (
            ("modalities", MODALITIES),
            ("anchors", self.modalities),
            ("negatives", NEGATIVES),
            ("mask_same_caption", MODALITIES),
        ):
            chosen = getattr(self, name)
            if unknown := set(chosen) - set(known):
                raise ValueError(f"{name}: unknown {sorted(unknown)}; known are {list(known)}")
            if len(set(chosen)) != len(chosen):
                raise ValueError(f"{name}: {list(chosen)} names one twice")
        one_of(self, FLOW_SCALES, "flow_scale")
        one_of(self, ALIGNMENTS, "alignment")
        if len(self.modalities) < 2:
            raise ValueError("modalities: at least two can be aligned; weigh with `contrastive`")
        if self.volume == 0 and self.cosine == 0:
            raise ValueError("volume, cosine: both are 0, so every triple has the same energy")
        self._refuse_ignored()

    def _refuse_ignored(self) -> None:
        """Settings that another one leaves without effect."""
        at_least(self, 0, "queue_size")
        if self.queue_size and "others" not in self.negatives:
            raise ValueError('queue_size: a queue extends the negatives "others", which are off')
        if self.learn_temperature and not self.negatives:
            raise ValueError("learn_temperature: without negatives it would only grow")
        if self.alignment == "pairwise":
            if self.pairwise_anchor not in self.modalities:
                raise ValueError(
                    f"pairwise_anchor: {self.pairwise_anchor!r} is not one of the aligned "
                    f"modalities {list(self.modalities)}"
                )
            if self.negatives != ("others",) or self.queue_size or self.anchors:
                raise ValueError(
                    'alignment: "pairwise" takes the other examples of the batch; `negatives`, '
                    '`queue_size` and `anchors` are of "simplex"'
                )

    def frames(self) -> tuple[str, ...]:
        """Of t, next and far the frames whose embedding a term of some weight reads."""
        aligned = "image" in self.modalities and (self.contrastive > 0 or self.direct > 0)
        found = ["t"]
        if aligned or self.temporal > 0:
            found.append("next")
        if self.temporal > 0:
            found.append("far")
        return tuple(found)

    def masks(self, anchor: str) -> bool:
        """Whether entries between equal caption groups are left out of an anchor's matrix."""
        alike = self.modalities if len(self.modalities) == 2 else (anchor,)
        return bool(set(alike) & set(self.mask_same_caption))

    def anchored(self) -> tuple[str, ...]:
        """The anchored modalities."""
        return self.anchors or self.modalities
