"""Settings of the suite ``offline``. Imports neither torch nor Ray: ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from dynaflip.checks import at_least, one_of, within
from dynaflip.eval.image_perturbations import IMAGE_FACTORS
from dynaflip.eval.perturbations import LEVELS
from dynaflip.eval.policies.config import BehaviourCloningConfig, DiffusionConfig
from dynaflip.eval.policies.readouts.config import AttentiveConfig, SpatialSoftmaxConfig
from dynaflip.eval.policies.registry import HEADS, READOUTS
from dynaflip.platform.evaluation.config import (
    SPLITS,
    EvaluationConfig,
    check_head_and_readout,
    check_known,
    check_once,
    settings_of,
)
from dynaflip.platform.evaluation.encoder_config import EncoderActorConfig
from dynaflip.platform.evaluation.encoder_entries import BASELINES, read_entries
from dynaflip.platform.promotion_config import OFFLINE, PromotionConfig

KIND = "offline"  # tag `kind` of the suite's runs


@dataclass(frozen=True)
class OfflineConfig(EvaluationConfig):
    """Settings of the suite ``offline``: policies on your own recordings, without a simulator."""

    ADDED: ClassVar[tuple[str, ...]] = (
        *EvaluationConfig.ADDED,
        "readout",
        "readout_settings",
        "attentive",
        "spatial_softmax",
        "keep_policies",
        "promote",
        "promotion",
        "encoder_actor",
    )

    source: str = ""
    """Your LeRobot data set, v3.0 or v2.1: a folder or s3:// prefix."""

    cameras: tuple[str, ...] = ()
    """Cameras that a policy sees, by name; their features are concatenated. Empty takes all."""

    action: str = "action"
    """Column of the actions, of any width."""

    proprioception: tuple[str, ...] | None = None
    """Columns of what the robot knows of itself, concatenated; none = observation.state where
    there is one, and an empty list gives policies images alone."""

    heldout_share: float = 0.2
    """Share of recordings held out, by hash: as in preprocessing, so that what pretraining held
    out is held out here too."""

    train_episodes: int = 100
    """Most episodes that policies learn from, chosen by hash."""

    heldout_episodes: int = 50
    """Most held-out episodes that they are tested on, chosen by hash."""

    frames_per_episode: int = 50
    """Most frames of an episode, evenly spaced, that policies learn from and are asked about. Where
    a head predicts several actions, they are those of the next rows of the recording."""

    image_px: int = 224
    """Short side of decoded images, which are never enlarged; encoders then take their own size."""

    baselines: tuple[str, ...] = ("initialization", "imagenet", "random")
    """Baselines that are built here, as of the suite rollouts."""

    encoders: tuple[str, ...] = ()
    """More encoders to compare with: entries as of the suite rollouts."""

    seeds: int = 3
    """Policies per encoder, each with its own draw of initial weights and batches."""

    split: str = "dev"
    """Ranges that perturbations are drawn from: dev for everything that is tuned, test for
    headlines. Every evaluation on test is counted."""

    factors: tuple[str, ...] = ()
    """Perturbations of the images, one at a time; empty takes all."""

    levels: tuple[int, ...] = (3,)
    """Strengths of the perturbation, 1…5."""

    all_at_once: bool = True
    """Whether all perturbations at once are a condition too."""

    head: str = "behaviour_cloning"
    """The policy on the frozen features: behaviour_cloning, diffusion, an installed package's, or
    class:MODULE:NAME."""

    head_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of a head that has no section below, by name."""

    readout: str = "pooled"
    """How the head reads every encoder: pooled (its own embedding), or by a small module over its
    tokens that is trained with the head: attentive, spatial_softmax, an installed package's, or
    class:MODULE:NAME. Several cameras are read side by side."""

    readout_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of a read-out that has no section below, by name."""

    keep_policies: bool = True
    """Log the fitted policies of the encoder under test to the run, for dynaflip.load_policy: about
    2 MB each (behaviour cloning on EfficientNet-Lite0), and the encoder that they share once
    (14 MB; 0.35 GB for DINOv2-B)."""

    promote: bool = False
    """After an evaluation on test, make the registered version that was evaluated the champion if
    the evidence holds, as jobs/promote.py does."""

    seed: int = 0
    """Changes every draw of perturbations."""

    behaviour_cloning: BehaviourCloningConfig = field(default_factory=BehaviourCloningConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    spatial_softmax: SpatialSoftmaxConfig = field(default_factory=SpatialSoftmaxConfig)
    promotion: PromotionConfig = field(default_factory=lambda: PromotionConfig(suite=OFFLINE))
    encoder_actor: EncoderActorConfig = field(default_factory=EncoderActorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "train_episodes", "heldout_episodes", "seeds")
        at_least(self, 2, "frames_per_episode")
        at_least(self, 32, "image_px")
        at_least(self, 0, "seed")
        within(self, 0, 1, "heldout_share", ends="()")
        one_of(self, SPLITS, "split")
        check_head_and_readout(self)
        self._check_promotion()
        check_known("baselines", self.baselines, BASELINES)
        check_known("levels", self.levels, LEVELS)
        check_once("factors", self.factors)
        for name in self.factors:
            IMAGE_FACTORS.check(name, "factors")
        read_entries(self.encoders)

    def _check_promotion(self) -> None:
        if self.promotion.suite != OFFLINE:
            raise ValueError("promotion.suite: the suite offline gives evidence of offline alone")
        if not self.promote and self.promotion != PromotionConfig(suite=OFFLINE):
            raise ValueError("promotion is read with promote true alone")
        if self.promote and self.split != "test":
            raise ValueError(
                f"promote: a champion takes evidence on test, and split is {self.split}"
            )
        if self.promote and "initialization" not in self.baselines:
            raise ValueError(
                "promote: a first champion is compared with its initialisation; leave "
                "initialization among the baselines"
            )

    def settings_of_head(self) -> dict[str, Any]:
        """The head's settings as plain values, from its section or ``head_settings``."""
        return settings_of(self, HEADS, "head")

    def settings_of_readout(self) -> dict[str, Any]:
        """The read-out's settings as plain values, from its section or ``readout_settings``."""
        return settings_of(self, READOUTS, "readout")
