"""Settings that every suite has, and those of rollouts. Imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from dynaflip.checks import at_least, extension, one_of
from dynaflip.encoders.backbones import BACKBONES, own_class
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment
from dynaflip.eval.perturbations import LEVELS
from dynaflip.eval.policies.config import BehaviourCloningConfig, DiffusionConfig, EndToEndConfig
from dynaflip.eval.policies.readouts.config import (
    POOLED,
    AttentiveConfig,
    SpatialSoftmaxConfig,
)
from dynaflip.eval.policies.registry import HEADS, READOUTS
from dynaflip.platform.evaluation.encoder_config import EncoderActorConfig
from dynaflip.platform.evaluation.encoder_entries import BASELINES, read_entries
from dynaflip.platform.evaluation.fits_config import FitsConfig
from dynaflip.plugins import ExtensionPoint

ADAPTATIONS = ("frozen", "lora", "full")
SPLITS = ("dev", "test")
UNSEEN = ("nothing", "tasks", "environment")
TUNING_SPLIT = "dev"  # what is tuned against a score must never have seen test


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings that every suite has."""

    ADDED: ClassVar[tuple[str, ...]] = ("backbone",)

    encoder: str = "models:/dynaflip-encoder@candidate"
    """The encoder under test: a registered version (models:/NAME@ALIAS, models:/NAME/3, a version
    number) or an encoder's folder."""

    experiment: str = "dynaflip-evaluate"
    """MLflow experiment of the evaluation's run."""

    backbone: str | None = None
    """Class of your own backbone, class:MODULE:NAME, where an encoder that is evaluated has one: a
    name in an encoder's folder alone never runs code."""

    def __post_init__(self) -> None:
        if not self.encoder.strip():
            raise ValueError("encoder must not be empty")
        if self.backbone is not None:
            if own_class(self.backbone) is None:
                raise ValueError(f"backbone must be class:MODULE:NAME, not {self.backbone}")
            BACKBONES.check(self.backbone, "backbone")


@dataclass(frozen=True)
class RolloutConfig(EvaluationConfig):
    """Settings of the suites ``rollouts`` and ``imitation``: policies on frozen encoders."""

    ADDED: ClassVar[tuple[str, ...]] = (
        *EvaluationConfig.ADDED,
        "keep_policies",
        "readout",
        "readout_settings",
        "attentive",
        "spatial_softmax",
        "fewer_demonstrations",
        "unseen",
        "protocol",
        "source",
        "source_camera",
        "fits",
        "encoder_actor",
    )
    RENAMED: ClassVar[dict[str, str]] = {"arms": "encoders"}
    SHORT: ClassVar[dict[str, tuple[str, ...]]] = {"env": ("environment",)}

    encoder: str = "models:/dynaflip-encoder@candidate"
    """The encoder under test: a registered version or an encoder's folder. Several, separated by
    commas, are its pretraining seeds."""

    baselines: tuple[str, ...] = ("initialization", "imagenet", "random")
    """Baselines that are built here: the encoder's own initialisation, ImageNet weights, random
    weights. Equal weights are evaluated once."""

    encoders: tuple[str, ...] = ()
    """More encoders to compare with, as NAME=URI or NAME=URI,URI,… (one URI per pretraining
    seed). A URI is a registered version, a folder (an encoder's, an exported one, a transformers
    vision model's), a hub id (OWNER/NAME@REVISION), a backbone, or class:MODULE:NAME. Models of
    others take options, NAME[mean,224px,licence: WORDS]=URI: the pooling (cls+mean, cls, mean,
    pooler), the side of the image, the licence. A baseline, a URI or a folder can stand alone."""

    environment: str = DEFAULT_ENVIRONMENT
    """The simulator: a built-in one, an installed package's, gym:ID (any Gymnasium environment), or
    class:MODULE:NAME. Short: --env."""

    tasks: tuple[str, ...] = ()
    """Names of tasks or sets of tasks; empty takes those that the environment recommends."""

    seeds: int = 3
    """Policies per encoder under test: policy k is trained on its k-th pretraining seed, or all on
    its only one."""

    split: str = "dev"
    """Dev for everything that is tuned; test for headlines. Every evaluation on test is counted."""

    factors: tuple[str, ...] = ()
    """Factors perturbed one at a time; empty takes all."""

    levels: tuple[int, ...] = (3,)
    """Strengths of the perturbation, 1…5."""

    all_at_once: bool = True
    """Whether all factors at once are a condition too."""

    episodes: int = 20
    """Episodes per evaluation job (task, condition, policy): the same initial states for every
    encoder."""

    horizon_steps: int | None = None
    """Longest episode, in control steps; none = the environment's default (Meta-World: 150)."""

    steps_after_success: int = 25
    """Control steps that an episode goes on after it is first solved."""

    image_px: int = 112
    """Side of the images."""

    demonstrations: int = 25
    """Unperturbed demonstrations per task."""

    source: str = ""
    """Your own LeRobot data set of this environment, whose recordings are the demonstrations: a
    folder or s3:// prefix. Empty: they are collected with the environment's scripted expert."""

    source_camera: str | None = None
    """Camera of source that shows what policies will see; none = its only one, or the one that is
    called as the environment's."""

    fewer_demonstrations: tuple[int, ...] = ()
    """Also fit and evaluate policies on so many of these demonstrations, always the first ones (the
    5 are among the 10), for success by number of demonstrations. Images are encoded once."""

    proprioception: tuple[bool, ...] = (True,)
    """Whether a policy is given proprioception (what a robot knows of itself): true, false, or
    both."""

    head: str = "behaviour_cloning"
    """The policy on the features: behaviour_cloning, diffusion, an installed package's, or
    class:MODULE:NAME."""

    head_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of a head that has no section below, by name."""

    readout: str = "pooled"
    """How the head reads every encoder: pooled (its own embedding), or by a small module over its
    tokens that is trained with the head: attentive, spatial_softmax, an installed package's, or
    class:MODULE:NAME."""

    readout_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of a read-out that has no section below, by name."""

    adaptation: str = "frozen"
    """The encoder inside the policy: frozen, lora (low-rank additions are trained) or full (all of
    it; the random baseline is then trained from scratch). Hours on a CPU unless frozen."""

    multitask: bool = False
    """One language-conditioned policy for all tasks; off: one policy per task."""

    environments: int = 10
    """Environments that a process runs in lockstep."""

    seed: int = 0
    """Changes every draw of factor values and of the demonstrations."""

    unseen: str = "nothing"
    """What pretraining must not have had, by what the encoder records: nothing (not asked), tasks
    (those evaluated) or environment (any of its tasks). An encoder that had it is refused."""

    protocol: str = ""
    """Name or YAML file of the protocol that these settings come from: --protocol sets it. The run
    and the report bear its name with every setting that differs from it."""

    keep_policies: bool = True
    """Log the fitted policies of the encoder under test to the run, for dynaflip.load_policy: about
    2 MB each (behaviour cloning on EfficientNet-Lite0), and the encoder that they share once
    (14 MB; 0.35 GB for DINOv2-B). With adaptation lora or full each has an encoder of its own."""

    check_harness: bool = False
    """Also evaluate the scripted expert and a random policy, which check the harness."""

    behaviour_cloning: BehaviourCloningConfig = field(default_factory=BehaviourCloningConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    spatial_softmax: SpatialSoftmaxConfig = field(default_factory=SpatialSoftmaxConfig)
    end_to_end: EndToEndConfig = field(default_factory=EndToEndConfig)
    fits: FitsConfig = field(default_factory=FitsConfig)
    encoder_actor: EncoderActorConfig = field(default_factory=EncoderActorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "seeds", "episodes", "horizon_steps", "demonstrations", "environments")
        at_least(self, 0, "steps_after_success", "seed")
        self._check_environment()
        one_of(self, SPLITS, "split")
        check_head_and_readout(self)
        one_of(self, ADAPTATIONS, "adaptation")
        self._check_adaptation()
        one_of(self, UNSEEN, "unseen")
        if self.source_camera is not None and not self.source:
            raise ValueError("source_camera is a camera of source, which is not given")
        check_once("fewer_demonstrations", self.fewer_demonstrations)
        for number in self.fewer_demonstrations:
            if not 1 <= number < self.demonstrations:
                raise ValueError(
                    f"fewer_demonstrations: {number} must be at least 1 and less than "
                    f"demonstrations ({self.demonstrations})"
                )
        if self.image_px < 32 or self.image_px % 2:
            raise ValueError(f"image_px must be even and at least 32, not {self.image_px}")
        check_known("baselines", self.baselines, BASELINES)
        check_known("levels", self.levels, LEVELS)
        if not self.proprioception or len(set(self.proprioception)) < len(self.proprioception):
            raise ValueError("proprioception must be true, false, or both, each once")
        read_entries(self.encoders)

    def _check_environment(self) -> None:
        spec = environment(self.environment)
        if not spec.proprioception_names and any(self.proprioception):
            raise ValueError(f"proprioception: {spec.name} has none; set it to false")
        if not self.tasks:
            object.__setattr__(self, "tasks", spec.tasks_for("evaluate"))
        spec.tasks_of(self.tasks)
        spec.check_factors(self.factors)
        check_once("factors", self.factors)
        if self.horizon_steps is None:
            object.__setattr__(self, "horizon_steps", spec.steps_for("evaluate"))
        elif self.horizon_steps > spec.horizon_steps:
            raise ValueError(
                f"horizon_steps must be at most {spec.horizon_steps}: {spec.name} ends there"
            )

    def settings_of_head(self) -> dict[str, Any]:
        """The head's settings as plain values, from its section or ``head_settings``."""
        return settings_of(self, HEADS, "head")

    def settings_of_readout(self) -> dict[str, Any]:
        """The read-out's settings as plain values, from its section or ``readout_settings``."""
        return settings_of(self, READOUTS, "readout")

    def _check_adaptation(self) -> None:
        if self.adaptation == "frozen":
            if self.fits != FitsConfig():
                raise ValueError(
                    "fits is read with adaptation lora or full; heads on frozen encoders are "
                    "fitted on CPUs"
                )
            return
        if self.readout != POOLED:
            raise ValueError(
                f"readout {self.readout} reads frozen tokens: it goes with adaptation frozen, and "
                f"adaptation {self.adaptation} with readout {POOLED}"
            )
        if self.multitask or self.head != "behaviour_cloning":
            raise ValueError(
                f"adaptation {self.adaptation} goes with head behaviour_cloning and one task per "
                "policy"
            )
        cloning, usual = self.behaviour_cloning, BehaviourCloningConfig()
        for name in ("steps", "batch_size", "input_norm"):
            if getattr(cloning, name) != getattr(usual, name):
                raise ValueError(
                    f"behaviour_cloning.{name} is for frozen encoders; with adaptation "
                    f"{self.adaptation} set end_to_end's"
                )


def settings_of(config: Any, point: ExtensionPoint, setting: str) -> dict[str, Any]:
    """Plain settings of a head or read-out: of its section, else of ``head_settings`` or alike.

    Args:
        config: settings that have the sections.
        point: the names that have one.
        setting: ``head`` or ``readout``.
    """
    name = getattr(config, setting)
    section = getattr(config, name, None) if name in point.table else None
    if section is not None:
        return asdict(section)
    values: dict[str, Any] = getattr(config, f"{setting}_settings")
    return values


def check_head_and_readout(config: Any) -> None:
    """Refuse a head or read-out that does not exist, and settings that would not be read.

    Raises:
        ValueError: names the setting.
    """
    extension(config, HEADS, "head")
    if config.head_settings and config.head in HEADS.table:
        raise ValueError(f"head_settings: head {config.head} has a section of that name instead")
    extension(config, READOUTS, "readout")
    if config.readout_settings and config.readout in READOUTS.table:
        has = "has no settings" if config.readout == POOLED else "has a section of that name"
        raise ValueError(f"readout_settings: read-out {config.readout} {has}")
    for name, usual in (
        ("attentive", AttentiveConfig()),
        ("spatial_softmax", SpatialSoftmaxConfig()),
    ):
        if config.readout != name and getattr(config, name) != usual:
            raise ValueError(f"{name} is read with readout {name} alone, not {config.readout}")


def check_known(setting: str, given: tuple, known: tuple) -> None:
    """Each value must be known, and given once.

    Raises:
        ValueError: names the setting, the value and what is known.
    """
    for name in given:
        if name not in known:
            raise ValueError(f"{setting}: there is no {name}; known: {', '.join(map(str, known))}")
    check_once(setting, given)


def check_once(setting: str, given: tuple) -> None:
    for name in given:
        if given.count(name) > 1:
            raise ValueError(f"{setting}: {name} is given twice")
