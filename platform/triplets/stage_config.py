"""Settings of the stages that run models: what actors hold, and how much they take at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynaflip.checks import at_least, within


@dataclass(frozen=True)
class ModelStageConfig:
    """One stage that runs a model, in actors that load it once."""

    gpus: float | None = None
    """GPUs of one actor; a fraction shares a GPU among actors. none = an equal share of one GPU for
    each model of the job, where the cluster has GPUs, and 0 elsewhere."""

    cpus: float | None = None
    """CPUs of one actor; none = 0 beside a GPU, so that all CPUs are left to decoding and flow, and
    1 without."""

    actors: int = 0
    """Number of actors; 0: as many as the cluster's GPUs allow."""

    def __post_init__(self) -> None:
        for name in ("gpus", "cpus"):
            if getattr(self, name) is not None:
                within(self, 0, 1024, name)
        at_least(self, 0, "actors")


@dataclass(frozen=True)
class StagesConfig:
    """Resources of the stages; they change no triplet."""

    depth: ModelStageConfig = field(default_factory=ModelStageConfig)
    """Depth models."""

    captions: ModelStageConfig = field(default_factory=ModelStageConfig)
    """Captioners."""

    track: ModelStageConfig = field(default_factory=ModelStageConfig)
    """Trackers of whole windows, in 2D or 3D."""

    depth_batch: int = 0
    """Frames that a depth model is given at once; 0: 16 on a GPU and 1 on a CPU."""

    caption_batch: int = 0
    """Clips that a captioner is given at once, if it takes several; 0: 8 on a GPU and 1 on a
    CPU."""

    def __post_init__(self) -> None:
        at_least(self, 0, "depth_batch", "caption_batch")
