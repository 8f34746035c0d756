"""Time-contrastive term: frames near in time have near embeddings.

R3M (arXiv 2203.12601, eq. 1), as DynaFLIP takes it: for frames t1 < t2 < t3 of one clip
and similarity S = −‖a − b‖₂,
L_tcn = −log [ e^{S(t1,t2)} / (e^{S(t1,t2)} + e^{S(t1,t3)} + Σ e^{S(t1,other clip)}) ].
Shapes: n examples of this process, N of all, D width, M negatives.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dynaflip.losses.base import FRAMES, LossTerm
from dynaflip.losses.distributed import gather_rows, global_mean, rank
from dynaflip.losses.simplex import full_precision


class TimeContrastiveTerm(LossTerm):
    """L_tcn over the three frames of each example and frames of other clips."""

    frames = FRAMES

    def forward(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """The mean () over examples that have something to contrast."""
        config = self.setup.objective
        return time_contrastive_loss(
            outputs["d_t"],
            outputs["d_next"],
            outputs["d_far"],
            batch["far_valid"],
            batch["clip"],
            num_negatives=config.temporal_negatives,
            temperature=config.temporal_temperature,
            contrast=bool(config.negatives),
        )


def time_contrastive_loss(
    d_t: Tensor,
    d_next: Tensor,
    d_far: Tensor,
    far_valid: Tensor,
    clip: Tensor,
    *,
    num_negatives: int,
    temperature: float,
    contrast: bool = True,
) -> Tensor:
    """L_tcn of this process, a scalar: the mean over examples that have something to contrast.

    Args:
        d_t, d_next, d_far: (n, D) embeddings of the frames t1 < t2 < t3.
        far_valid: (n,) bool, False where the clip has no later frame: then only frames of
            other clips are negatives.
        clip: (n,) int clip id.
        num_negatives: number of other clips' frames per example (R3M: 3).
        temperature: distance that counts as one nat (R3M: 1).
        contrast: False drops the denominator: −S(t1, t2) alone, which collapses.
    """
    with torch.autocast(d_t.device.type, enabled=False):
        d_t, d_next, d_far = map(full_precision, (d_t, d_next, d_far))
        if not contrast:
            # The far frame stays in the sum, at weight 0: it needs a gradient too.
            apart = (_distance(d_t, d_next) / temperature).sum() + 0.0 * d_far.sum()
            return global_mean(apart, clip.new_full((), len(clip), dtype=torch.float32))
        others, is_other = _other_clips(gather_rows(d_next), gather_rows(clip), clip, num_negatives)
        near = -_distance(d_t, d_next) / temperature
        far = (-_distance(d_t, d_far) / temperature).masked_fill(~far_valid, -torch.inf)
        other = (-_distance(d_t[:, None], others) / temperature).masked_fill(~is_other, -torch.inf)
        rows = torch.logsumexp(torch.cat([near[:, None], far[:, None], other], 1), 1) - near
        counted = far_valid | is_other.any(1)
        return global_mean(rows.sum(), counted.sum().to(rows.dtype))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """ℓ2 distance over the last axis; 0 with gradient 0 where the two are equal."""
    squared = (a - b).square().sum(-1)
    equal = squared == 0
    return torch.where(equal, 0.0, torch.where(equal, 1.0, squared).sqrt())


def _other_clips(
    frames: Tensor, clips: Tensor, clip: Tensor, num_negatives: int
) -> tuple[Tensor, Tensor]:
    """For each example the next M frames of other clips in the batch: (n, M, D) and (n, M) bool.

    The batch comes in random order, so the next ones are random, and the same whether one
    process holds the batch or several. False marks rows with too few other clips.
    """
    size = len(clips)
    index = rank() * len(clip) + torch.arange(len(clip), device=clip.device)
    steps_ahead = (torch.arange(size, device=clip.device)[None] - index[:, None]) % size
    steps_ahead = steps_ahead.masked_fill(clips[None] == clip[:, None], size)
    ahead, chosen = steps_ahead.topk(min(num_negatives, size), dim=1, largest=False)
    return frames[chosen], ahead < size
