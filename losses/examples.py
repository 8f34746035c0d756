"""Embedded examples of one or of all processes, and who belongs to whom.

Shapes: N examples, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dynaflip.losses.distributed import gather_rows
from dynaflip.losses.energy import Points


@dataclass(frozen=True)
class Examples:
    """Embeddings of some examples and who belongs to whom."""

    points: Points  # modality to (N, D) unit vectors
    group: Tensor  # (N,) int caption group, so that paraphrases of a caption are equal
    example: Tensor  # (N,) int id: equal where the same triplet is in the batch twice

    @classmethod
    def of(
        cls,
        outputs: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        modalities: Sequence[str],
    ) -> Examples:
        """The examples of this process, from the model's outputs and the batch."""
        points = {name: outputs[f"z_{name}"] for name in modalities}
        return cls(points, batch["group"], batch["triplet"])

    def gathered(self) -> Examples:
        """The examples of all processes, in rank order."""
        points = {name: gather_rows(z) for name, z in self.points.items()}
        return Examples(points, gather_rows(self.group), gather_rows(self.example))

    def detached(self) -> Examples:
        """The same without gradient."""
        points = {name: z.detach() for name, z in self.points.items()}
        return Examples(points, self.group, self.example)
