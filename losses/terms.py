"""The objective's loss terms: what exists, and where each is written. Imports no torch.

A term is one file with a subclass of :class:`dynaflip.losses.base.LossTerm`. The objective, the
frames that the model embeds with gradient, the progress line, the curves, the diagnostics and the
optimizer all ask this table, so that a new term needs one line here and nothing else. A term from
outside needs no line at all: an installed package declares it as an entry point of
``dynaflip.loss_term``, and a user's own is given as ``class:MODULE:NAME``.

A term whose name is a field of ``ObjectiveConfig`` is weighted by that setting and always part of
the objective (a weight of 0 leaves its value in the curves); any other one is weighted by
``objective.extra_terms``.
"""

from __future__ import annotations

from dynaflip.plugins import CLASS_PREFIX, ExtensionPoint

TERMS = ExtensionPoint(
    kind="loss_term",
    table={
        "contrastive": "dynaflip.losses.contrastive:ContrastiveTerm",
        "temporal": "dynaflip.losses.time_contrastive:TimeContrastiveTerm",
        "flow": "dynaflip.losses.flow_prediction:FlowPredictionTerm",
        "direct": "dynaflip.losses.direct_energy:DirectEnergyTerm",
    },
    contract="dynaflip.losses.base.LossTerm",
)


def curve_of(name: str) -> str:
    """The term's name in curves and progress: ``Smoothness`` of ``class:my_losses:Smoothness``."""
    return name.rpartition(":")[2] if name.startswith(CLASS_PREFIX) else name
