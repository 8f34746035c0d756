"""Settings of the suite ``probes``. Imports neither torch nor Ray: ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dynaflip.checks import at_least, within
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment
from dynaflip.platform.evaluation.config import EvaluationConfig
from dynaflip.platform.evaluation.encoder_entries import read_entries
from dynaflip.platform.evaluation.flow_probe_config import FlowProbeConfig


@dataclass(frozen=True)
class ViewsConfig:
    """Episodes that the evaluation renders itself: layouts that no training has seen."""

    environment: str = DEFAULT_ENVIRONMENT
    """Simulator of the data set: a built-in one, an installed package's, gym:ID (any Gymnasium
    environment), or class:MODULE:NAME. Short: --env."""

    tasks: tuple[str, ...] = ()
    """Ids of tasks; empty takes those of the data set."""

    episodes_per_task: int = 4
    """Expert episodes per task, each with a layout of its own."""

    frames_per_episode: int = 6
    """Moments of an episode, shown unperturbed and with all factors perturbed together."""

    frames_per_factor: int = 3
    """How many of these are also shown with each factor perturbed alone."""

    level: int = 3
    """Strength of the perturbation, 1…5."""

    factors: tuple[str, ...] = ()
    """Factors that are also shown alone; empty takes all."""

    horizon_steps: int | None = None
    """Control steps after which the expert gives up; none = the environment's default (Meta-World:
    150)."""

    seed: int = 0
    """Changes every draw of factor values."""

    def __post_init__(self) -> None:
        spec = environment(self.environment, "environment")
        if self.horizon_steps is None:
            object.__setattr__(self, "horizon_steps", spec.steps_for("evaluate"))
        at_least(self, 1, "episodes_per_task", "horizon_steps", "frames_per_factor")
        at_least(self, 2, "frames_per_episode")
        at_least(self, 0, "seed")
        within(self, 1, 5, "level")
        spec.check_factors(self.factors)


@dataclass(frozen=True)
class ProbesConfig:
    """Ridge probes from frozen features to positions."""

    enabled: bool = True
    """Fit and test probes; off: retrieval alone, and nothing is rendered."""

    frames_per_episode: int = 12
    """Frames of each unperturbed training episode that probes are fitted on."""

    folds: int = 5
    """Folds of the cross-validation over episodes that chooses the penalty."""

    raw_pixels_px: int = 16
    """Side of the image whose raw pixels are probed for comparison."""

    def __post_init__(self) -> None:
        at_least(self, 2, "frames_per_episode", "folds", "raw_pixels_px")


@dataclass(frozen=True)
class ProbeSuiteConfig(EvaluationConfig):
    """Settings of the suite ``probes``: retrieval, and linear probes from frozen features."""

    ADDED: ClassVar[tuple[str, ...]] = (*EvaluationConfig.ADDED, "encoders", "flow_probe")
    SHORT: ClassVar[dict[str, tuple[str, ...]]] = {
        "env": ("views.environment",),
        "environment": ("views.environment",),
    }

    encoder: str = "models:/dynaflip-encoder@candidate"
    """The encoder under test: a registered version or an encoder's folder. Several, separated by
    commas, are its pretraining seeds."""

    encoders: tuple[str, ...] = ()
    """More encoders that probes are fitted on, beside the initialisation: entries as of the suite
    rollouts, with one URI, or one for each pretraining seed of the encoder under test."""

    data: str | None = None
    """LeRobot data set with simulator labels, which probes are fitted on; none = the home's
    data/demo."""

    triplets: str | None = None
    """Triplet folder or s3://bucket/prefix, whose held-out part is the gallery; none = the home's
    triplets/demo."""

    gallery_size: int = 256
    """Held-out transitions of the fixed gallery."""

    batch_size: int = 64
    """Images per forward pass."""

    seed: int = 0
    """Seed of the bootstrap."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    flow_probe: FlowProbeConfig = field(default_factory=FlowProbeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        read_entries(self.encoders)
        at_least(self, 2, "gallery_size")
        at_least(self, 1, "batch_size")
        at_least(self, 0, "seed")
