"""Settings of the evaluation. Imports neither torch nor Ray, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynaflip.checks import at_least, within


@dataclass(frozen=True)
class ViewsConfig:
    """Episodes that the evaluation renders itself: layouts that no training has seen."""

    tasks: tuple[str, ...] = ()
    """Meta-World tasks; empty takes those of the data set."""

    episodes_per_task: int = 4
    """Expert episodes a task, each with a layout of its own."""

    frames_per_episode: int = 6
    """Moments of an episode, shown unperturbed and with all factors perturbed together."""

    frames_per_factor: int = 3
    """How many of these are also shown with each factor perturbed alone."""

    level: int = 3
    """Strength of the perturbation, 1…5."""

    factors: tuple[str, ...] = ()
    """Factors that are also shown alone; empty takes all."""

    horizon_steps: int = 150
    """The expert gives up after so many steps of 1/80 s."""

    seed: int = 0
    """Changes every draw of factor values."""

    def __post_init__(self) -> None:
        at_least(self, 1, "episodes_per_task", "horizon_steps", "frames_per_factor")
        at_least(self, 2, "frames_per_episode")
        at_least(self, 0, "seed")
        within(self, 1, 5, "level")


@dataclass(frozen=True)
class ProbesConfig:
    """Ridge probes from frozen features to positions."""

    enabled: bool = True
    """Off: score the retrievals alone (nothing is rendered)."""

    frames_per_episode: int = 12
    """Frames of each unperturbed training episode that probes are fitted on."""

    folds: int = 5
    """Folds of the cross-validation over episodes that chooses the penalty."""

    raw_pixels_px: int = 16
    """Side of the image whose raw pixels are probed for comparison."""

    def __post_init__(self) -> None:
        at_least(self, 2, "frames_per_episode", "folds", "raw_pixels_px")


@dataclass(frozen=True)
class EvaluationConfig:
    """Everything that ``jobs/evaluate.py`` can be told."""

    encoder: str = "models:/dynaflip-encoder@candidate"
    """A registered version (models:/NAME@ALIAS, models:/NAME/3, a version number) or a folder."""

    data: str | None = None
    """LeRobot data set with simulator labels, which probes are fitted on; none = the home's
    data/demo."""

    triplets: str | None = None
    """Triplet folder, whose held-out part is the gallery; none = the home's triplets/demo."""

    gallery_size: int = 256
    """Held-out transitions of the fixed gallery."""

    batch_size: int = 64
    """Images a forward pass."""

    seed: int = 0
    """Seeds the bootstrap."""

    experiment: str = "dynaflip-evaluate"
    """MLflow experiment of the evaluation's run."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)

    def __post_init__(self) -> None:
        at_least(self, 2, "gallery_size")
        at_least(self, 1, "batch_size")
        at_least(self, 0, "seed")
        if not self.encoder.strip():
            raise ValueError("encoder must not be empty")
