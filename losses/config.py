"""Settings of the training objective. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dynaflip.checks import at_least, one_of, within
from dynaflip.losses.terms import TERMS, curve_of

MODALITIES = ("image", "language", "flow")
NEGATIVES = ("others", "swapped", "shuffled")
ALIGNMENTS = ("simplex", "pairwise")
FLOW_SCALES = ("motion", "none")
OVERLAPPING = ("mask", "keep")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and choices of the objective; the defaults are the paper's (arXiv 2605.30350).

    ``E = volume · A − cosine · ⟨z_L, z_F⟩`` is the energy of a triple and
    ``L = contrastive · L_align + temporal · L_tcn + flow · L_act + direct · E_matched``, and what
    `extra_terms` add. Settings that the paper leaves open say so.

    Raises:
        ValueError: a value out of range; the message starts with the setting's name.
    """

    ADDED: ClassVar[tuple[str, ...]] = ("extra_terms", "overlapping_negatives")

    modalities: tuple[str, ...] = MODALITIES
    """Aligned modalities, at least two of ``image``, ``language``, ``flow``. Two of them span a
    segment, whose volume is its length."""

    volume: float = 1.0
    """Weight of the simplex volume (the triangle's area A) inside the energy; at least 0."""

    cosine: float = 1.0
    """Weight of the cosine regularizer ⟨z_L, z_F⟩ inside the energy (the paper's α); at least 0.
    With two modalities it is their cosine."""

    contrastive: float = 1.0
    """Weight of the contrastive term over energies (L_align); at least 0."""

    temporal: float = 1.0
    """Weight of the time-contrastive term (L_tcn); at least 0."""

    flow: float = 1.0
    """Weight of the flow prediction term (L_act); at least 0."""

    direct: float = 0.0
    """Weight of the matched triples' energy minimised directly, without negatives; at least 0. At
    large values the embeddings collapse while the loss curve looks healthy, so it is off."""

    extra_terms: dict[str, float | dict[str, Any]] = field(default_factory=dict)
    """Further loss terms with their weights: an installed package's by name, your own as
    class:MODULE:NAME, e.g. {"class:my_losses:Smoothness": 0.5}; see docs/extending. A term with
    settings of its own takes a section, e.g. {weight: 0.5, margin: 0.1}. One weight is also
    objective.extra_terms.NAME, on the command line and in a sweep."""

    temperature: float = 0.07
    """Temperature τ of the contrastive term; above 0."""

    learn_temperature: bool = False
    """Learn the temperature, starting from `temperature`; it stays above 0.01, as in CLIP."""

    alignment: str = "simplex"
    """What the contrastive term compares. ``simplex``: the energies of whole triples (paper);
    ``pairwise``: InfoNCE over cosines of one modality with each other one, in both directions (the
    paper's baseline)."""

    pairwise_anchor: str = "language"
    """With alignment ``pairwise``: the modality that the others are aligned with. Open in the
    paper; its triangle is written from language."""

    anchors: tuple[str, ...] = ()
    """Anchored modalities: each gives one N×N energy matrix. Open in the paper; empty = all aligned
    modalities."""

    negatives: tuple[str, ...] = ("others",)
    """Which shuffled triples are negatives; open in the paper. ``others``: the anchored modality
    with the two others of another example; ``swapped``: another example's anchored modality with
    the two others of this one; ``shuffled``: three modalities of three examples (`shuffles` for
    each example). Empty = no negatives at all, in the time-contrastive term neither: both lose
    their denominators, L_align = E/τ and L_tcn = ‖d(t1) − d(t2)‖, and the embeddings collapse
    (the paper's ablation)."""

    queue_size: int = 0
    """Memory bank: examples of past steps, without gradient, that are negatives of ``others``
    beside the batch; 0 = the batch alone (paper). An example's own earlier copy is left out."""

    shuffles: int = 16
    """All-shuffled negatives of each example; used with negatives ``shuffled`` only."""

    mask_same_caption: tuple[str, ...] = ("language",)
    """Anchors in whose matrix entries of equal caption groups are no negatives. With language
    anchored, (L_i, I_j, F_j) of equal groups is a true triple. With image or flow anchored, (L_j,
    I_i, F_j) pairs a motion with another motion of that caption: a true negative. With two
    modalities, one of them language, both anchors ask for the same pairs: one masks both."""

    overlapping_negatives: str = "mask"
    """What becomes of examples of one clip whose flow windows [t, t + window] overlap, as each
    other's negatives: ``mask`` leaves them out of every set of negatives and of the memory bank,
    ``keep`` counts them like any other (the paper does not say). Such windows hold much of the
    same motion under the same caption: pushed apart, they teach to tell times and not motions."""

    temporal_negatives: int = 3
    """Frames of other clips that a pair (t1, t2) is contrasted with in the time-contrastive term
    (R3M: 3)."""

    temporal_temperature: float = 1.0
    """ℓ2 distance of two frame embeddings that counts as one nat in the time-contrastive term
    (R3M: 1)."""

    flow_scale: str = "motion"
    """Unit of the flow prediction error; open in the paper. ``motion``: the batch's mean squared
    motion, so that predicting no motion scores 1; ``none``: squared median depths."""

    flow_scale_floor: float = 0.01
    """Smallest root-mean-square motion of a batch, in median depths, that ``motion`` divides by:
    where hardly anything moves, tracking noise must not dominate the loss."""

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
        one_of(self, OVERLAPPING, "overlapping_negatives")
        if len(self.modalities) < 2:
            raise ValueError("modalities: at least two can be aligned; weigh with `contrastive`")
        self._check_extra_terms()
        if self.volume == 0 and self.cosine == 0:
            raise ValueError("volume, cosine: both are 0, so every triple has the same energy")
        self._refuse_ignored()

    def _refuse_ignored(self) -> None:
        """Refuse settings that another one leaves without effect."""
        at_least(self, 0, "queue_size")
        if self.queue_size and "others" not in self.negatives:
            raise ValueError('queue_size: a queue extends the negatives "others", which are off')
        if self.overlapping_negatives == "keep" and not self.negatives:
            raise ValueError("overlapping_negatives: there are no `negatives` to keep them among")
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

    def _check_extra_terms(self) -> None:
        taken = set(self._own_weights())
        for name in self.extra_terms:
            setting = f"extra_terms.{name}"
            if name in taken:
                raise ValueError(f"{setting}: the setting objective.{name} is its weight")
            TERMS.check(name, setting)
            curve = curve_of(name)
            if not re.fullmatch(r"[A-Za-z]\w*(-\w+)*", curve):
                raise ValueError(
                    f"{setting}: {curve!r} cannot name a curve; use letters, digits, _"
                )
            if curve in taken:
                raise ValueError(f"{setting}: another term is named {curve}; rename the class")
            taken.add(curve)
            weight = self.weights()[curve]
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not 0 <= weight < math.inf:
                raise ValueError(f"{setting}: the weight must be in [0, inf), not {weight!r}")

    def _own_weights(self) -> dict[str, float]:
        fields = {field.name for field in dataclasses.fields(self)}
        return {name: getattr(self, name) for name in TERMS.table if name in fields}

    def terms(self) -> dict[str, Mapping[str, Any]]:
        """The terms of the objective by the names that they are resolved by, with arguments."""
        terms: dict[str, Mapping[str, Any]] = {name: {} for name in self._own_weights()}
        for name, given in self.extra_terms.items():
            section = given if isinstance(given, dict) else {}
            terms[name] = {key: value for key, value in section.items() if key != "weight"}
        return terms

    def weights(self) -> dict[str, float]:
        """The weight of each term by its curve's name, in the table's order, extra ones last."""
        extra = {
            curve_of(name): given.get("weight", 1.0) if isinstance(given, dict) else given
            for name, given in self.extra_terms.items()
        }
        return self._own_weights() | extra

    def weighted(self) -> tuple[str, ...]:
        """Names of the terms whose weight is above 0, for progress and curves."""
        return tuple(name for name, weight in self.weights().items() if weight > 0)

    def masks(self, anchor: str) -> bool:
        """True if entries between equal caption groups are no negatives in an anchor's matrix."""
        alike = self.modalities if len(self.modalities) == 2 else (anchor,)
        return bool(set(alike) & set(self.mask_same_caption))

    def masks_overlapping(self) -> bool:
        """True if overlapping windows of a clip are no negatives."""
        return bool(self.negatives) and self.overlapping_negatives == "mask"

    def anchored(self) -> tuple[str, ...]:
        """The anchored modalities."""
        return self.anchors or self.modalities
