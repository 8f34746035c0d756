"""Embedded examples of one or of all processes, and who belongs to whom.

Shapes: N examples, n rows, C columns, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dynaflip.losses.distributed import gather_rows
from dynaflip.losses.energy import Points

# Windows that share less than this only touch: one ends with the frame that the other begins with,
# and the times of that frame may differ in the last bits.
TOUCHING_S = 1e-3


@dataclass(frozen=True)
class Windows:
    """Windows of the examples' flow: their times, and the clip of each."""

    clip: Tensor  # (N,) int
    # (N, 2) float64 start and end on the clip's clock, in seconds.
    times_s: Tensor

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Windows:
        """Of a batch.

        Raises:
            ValueError: it does not say when its windows are.
        """
        if missing := [n for n in ("window_start_s", "window_end_s") if n not in batch]:
            raise ValueError(
                f"the batch has no {missing[0]}, which objective.overlapping_negatives mask reads"
            )
        times_s = torch.stack([batch["window_start_s"], batch["window_end_s"]], 1)
        return cls(batch["clip"], times_s)

    def __getitem__(self, rows: Any) -> Windows:
        """Some rows, or the same with more axes, indexed as a tensor is."""
        return Windows(self.clip[rows], self.times_s[rows])

    def overlap(self, other: Windows) -> Tensor:
        """True if two windows are of one clip and share time; shapes broadcast."""
        (start, end), (other_start, other_end) = self.times_s.unbind(-1), other.times_s.unbind(-1)
        shared_s = torch.minimum(end, other_end) - torch.maximum(start, other_start)
        return (self.clip == other.clip) & (shared_s > TOUCHING_S)


@dataclass(frozen=True)
class Examples:
    """Embeddings of some examples and who belongs to whom."""

    points: Points  # modality to (N, D) unit vectors
    group: Tensor  # (N,) int caption group, so that paraphrases of a caption are equal
    example: Tensor  # (N,) int id: equal where the same triplet is in the batch twice
    windows: Windows | None = None  # where overlapping ones are no negatives

    @classmethod
    def of(
        cls,
        outputs: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        modalities: Sequence[str],
        *,
        windows: bool = False,
    ) -> Examples:
        """The examples of this process, from the model's outputs and the batch.

        Args:
            outputs: of the model.
            batch: of this process.
            modalities: that are read of the outputs.
            windows: whether to read when each example's window is.
        """
        points = {name: outputs[f"z_{name}"] for name in modalities}
        when = Windows.of(batch) if windows else None
        return cls(points, batch["group"], batch["triplet"], when)

    def gathered(self) -> Examples:
        """The examples of all processes, in rank order."""
        points = {name: gather_rows(z) for name, z in self.points.items()}
        ids = [self.group, self.example]
        if self.windows is None:
            group, example = gather_rows(torch.stack(ids, 1)).unbind(1)
            return Examples(points, group, example)
        group, example, clip = gather_rows(torch.stack([*ids, self.windows.clip], 1)).unbind(1)
        return Examples(points, group, example, Windows(clip, gather_rows(self.windows.times_s)))

    def detached(self) -> Examples:
        """The same without gradient."""
        return replace(self, points={name: z.detach() for name, z in self.points.items()})

    def overlap(self, columns: Examples) -> Tensor:
        """(n, C) bool: pairs of one clip whose windows overlap; none where they are not known."""
        if self.windows is None or columns.windows is None:
            return torch.zeros(
                len(self.group), len(columns.group), dtype=torch.bool, device=self.group.device
            )
        return self.windows[:, None].overlap(columns.windows[None])
