"""Settings of the actors that encode images for many workers. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dynaflip.checks import above, at_least, one_of

AUTO, GPU, CPU, IN_WORKERS = "auto", "gpu", "cpu", "none"
DEVICES = (AUTO, GPU, CPU, IN_WORKERS)
FLOAT32 = "float32"
PRECISIONS = (FLOAT32, "bfloat16", "float16")


def precision_of(settings: Mapping[str, Any]) -> str:
    """An evaluation's precision, from its logged settings; the oldest runs have none of it."""
    precision: str = settings.get("encoder_actor", {}).get("precision", FLOAT32)
    return precision


@dataclass(frozen=True)
class EncoderActorConfig:
    """Encoder actors: they hold the encoders and encode the images of all workers."""

    device: str = AUTO
    """Where images are encoded: gpu (actors on the cluster's GPUs), cpu (one actor on a CPU), none
    (by every worker itself), or auto: gpu where the cluster has a GPU, else none."""

    gpus_per_actor: float | None = None
    """GPUs that Ray reserves for an actor; below 1, several share one. There are as many actors as
    the cluster's GPUs have room for. None = 1 with device gpu; with cpu none are reserved."""

    precision: str = FLOAT32
    """Of weights and activations: float32, bfloat16 or float16. Policies and results of each are
    cached apart."""

    tolerance: float = 0.1
    """Largest error of features in bfloat16 or float16, as a share of what tells an encoder's first
    images apart in float32; one whose error is larger is refused. EfficientNet-Lite0 has 0.05 in
    float16, and 0.28 in bfloat16."""

    batch: int = 64
    """Images a forward pass. Every pass has exactly as many (missing ones are blank), so that
    features do not depend on which images came together. Halved where memory does not suffice."""

    window_ms: float = 0.0
    """Milliseconds that an actor waits for more images before a pass that is not full. 0 takes what
    is queued: while one pass runs, the images of the next one arrive."""

    def __post_init__(self) -> None:
        one_of(self, DEVICES, "device")
        one_of(self, PRECISIONS, "precision")
        above(self, 0, "gpus_per_actor", "tolerance")
        at_least(self, 1, "batch")
        at_least(self, 0, "window_ms")
        if self.device == IN_WORKERS:
            self.refuse_ignored("with device none there are no encoder actors")
        if self.precision == FLOAT32 and self.tolerance != EncoderActorConfig.tolerance:
            raise ValueError("tolerance is of half precision, and precision is float32")

    def refuse_ignored(self, why: str) -> None:
        """Refuse settings of encoder actors where there are none.

        Args:
            why: there are none, for the error.

        Raises:
            ValueError: names the setting that nothing would read.
        """
        for field in fields(self):
            if field.name != "device" and getattr(self, field.name) != field.default:
                raise ValueError(f"{field.name} would be ignored: {why}")

    def recipe(self) -> list[str]:
        """Part of the digest of features; empty in float32, so that older digests stay."""
        return [] if self.precision == FLOAT32 else [self.precision]

    def gpus_each(self, device: str) -> float:
        """GPUs that an actor reserves.

        Args:
            device: ``gpu`` or ``cpu``.
        """
        if self.gpus_per_actor is None:
            return 1.0 if device == GPU else 0.0
        return self.gpus_per_actor
