"""The contract of a loss term: subclass :class:`LossTerm`, write ``forward``, name the frames.

The smallest one, weighted by ``objective.extra_terms: {"class:my_losses:Smoothness": 0.5}``::

    class Smoothness(LossTerm):
        frames = ("t",)

        def forward(self, outputs, batch):
            return outputs["flow_prediction"].diff(dim=1).square().mean()

Shapes: n examples of this process, E embedding width, D frame embedding width, K flow steps,
G×G grid points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dynaflip.losses.config import ObjectiveConfig

# Images of an example: the transition's two, and a later one of the clip.
FRAMES = ("t", "next", "far")

# A term's value (), alone or with the metrics that it names, () each.
TermValue = Tensor | tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class TermSetup:
    """Facts that a term can be built from."""

    objective: ObjectiveConfig
    embedding_dim: int | None = None
    """E, the width of z_image, z_language and z_flow; None where the caller does not know it."""

    frame_dim: int | None = None
    """D, the width of d_t, d_next and d_far; None where the caller does not know it."""


class LossTerm(nn.Module):
    """One term of the objective, unweighted.

    A term may have parameters and buffers: they are trained with the model (by the rate of its
    heads), their gradients averaged over processes, written to checkpoints and restored from them.
    A buffer must come to the same value on every process. Build them in
    ``__init__(self, setup, …)`` after ``super().__init__(setup)``; further arguments, with
    defaults, are the term's own settings (see ``objective.extra_terms``).
    """

    frames: tuple[str, ...] = FRAMES
    """Frames that the term reads (z_image reads ``t`` and ``next``). The model embeds ``next``
    without gradient where no weighted term names it, which is cheaper; ``far`` is then neither
    decoded nor embedded."""

    metrics: tuple[str, ...] = ()
    """Names of what ``forward`` returns beside the value; each becomes a curve ``train/<name>``."""

    def __init__(self, setup: TermSetup) -> None:
        """Take what the term is built from."""
        super().__init__()
        self.setup = setup

    def forward(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> TermValue:
        """The term's value () of this process, with gradient.

        With several processes the value is this process's share: the mean of the shares over
        processes must be the value of the whole batch. A plain mean over examples is that;
        where processes count differently use :func:`dynaflip.losses.distributed.global_mean`,
        and to see the others' examples :func:`dynaflip.losses.distributed.gather_rows`.

        Args:
            outputs: of ``DynaFLIP.forward``: z_image, z_language, z_flow (n, E) of unit norm,
                d_t, d_next, and d_far where a term reads it (n, D), flow_prediction
                (n, K, G, G, 3) in median depths.
                In bfloat16 where the model runs so (``losses.simplex.full_precision``).
            batch: image_t, image_next, image_far (n, 3, H, W) uint8; group, triplet, clip,
                task, recording, source (n,) int64; window_start_s, window_end_s (n,) float64
                on the clip's clock; far_valid (n,) bool; flow_origin_m
                (n, G, G, 3), flow_displacement_m (n, K, G, G, 3) metres in the camera frame of
                t; flow_visible (n, K, G, G) bool; flow_measured (n, K) bool, False where a step is
                interpolated and carries no loss (not there: all are measured);
                median_depth_m (n,).

        Returns:
            The value, or the value and a dictionary with exactly the entries in ``metrics``.
        """
        raise NotImplementedError
