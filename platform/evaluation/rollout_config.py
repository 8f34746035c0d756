"""Settings of the policy evaluation. Imports neither torch nor Ray: ``--help`` is quick."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dynaflip.checks import at_least, one_of
from dynaflip.eval.perturbations import FACTORS, LEVELS
from dynaflip.eval.policies.config import BehaviourCloningConfig, DiffusionConfig, EndToEndConfig

ADAPTATIONS = ("frozen", "lora", "full")
HEADS = ("behaviour_cloning", "diffusion")
BASELINES = ("initialization", "imagenet", "random")
SPLITS = ("dev", "test")
LONGEST_STEPS = 500  # Meta-World refuses further ones


@dataclass(frozen=True)
class RolloutConfig:
    """Everything that ``jobs/evaluate.py --suite metaworld`` can be told."""

    encoder: str = "models:/dynaflip-encoder@candidate"
    """The encoder under test: a registered version or a folder. Several, with commas between, are
    pretraining seeds of one arm."""

    baselines: tuple[str, ...] = ("initialization", "imagenet", "random")
    """Encoders to compare with that are made here: the encoder's own initialisation, ImageNet
    weights, random ones. Equal weights are evaluated once."""

    arms: tuple[str, ...] = ()
    """More encoders to compare with, as NAME=URI or NAME=URI,URI,… (one URI a pretraining
    seed)."""

    tasks: tuple[str, ...] = ("r3m5",)
    """Sets (r3m5, mt10, mw15) or names of tasks."""

    seeds: int = 3
    """Policies an arm: policy k learns from the arm's k-th encoder, or all from its only one."""

    split: str = "dev"
    """Dev for everything that is tuned; test for headlines. Every look at test is counted."""

    factors: tuple[str, ...] = ()
    """Factors perturbed one at a time; empty takes all."""

    levels: tuple[int, ...] = (3,)
    """Strengths of the perturbation, 1…5."""

    all_at_once: bool = True
    """Whether all factors at once are a condition too."""

    episodes: int = 20
    """Episodes of a cell (task, condition, seed): the same initial states for every encoder."""

    horizon_steps: int = 150
    """Longest episode, steps of 1/80 s …"""

    steps_after_success: int = 25
    """… and how many more there are after it is first solved."""

    image_px: int = 112
    """Side of the images."""

    demonstrations: int = 25
    """Unperturbed demonstrations of a task."""

    proprioception: tuple[bool, ...] = (True,)
    """Whether a policy is given hand position and gripper: true, false, or both."""

    head: str = "behaviour_cloning"
    """What learns from the features: behaviour_cloning or diffusion."""

    adaptation: str = "frozen"
    """The encoder inside the policy: frozen, lora (low-rank additions are trained) or full (all of
    it; the random baseline is then trained from scratch). Hours on a CPU unless frozen."""

    multitask: bool = False
    """One policy for all tasks, told in words which one it is."""

    environments: int = 10
    """Environments that a process runs in lockstep."""

    seed: int = 0
    """Changes every draw of factor values and of the demonstrations."""

    check_harness: bool = False
    """Adds the scripted expert and a random policy as arms: they check the harness."""

    experiment: str = "dynaflip-evaluate"
    """MLflow experiment of the evaluation's run."""

    behaviour_cloning: BehaviourCloningConfig = field(default_factory=BehaviourCloningConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    end_to_end: EndToEndConfig = field(default_factory=EndToEndConfig)

    def __post_init__(self) -> None:
        at_least(self, 1, "seeds", "episodes", "horizon_steps", "demonstrations", "environments")
        at_least(self, 0, "steps_after_success", "seed")
        if self.horizon_steps > LONGEST_STEPS:
            raise ValueError(
                f"horizon_steps must be at most {LONGEST_STEPS}: Meta-World ends there"
            )
        one_of(self, SPLITS, "split")
        one_of(self, HEADS, "head")
        one_of(self, ADAPTATIONS, "adaptation")
        if self.adaptation != "frozen" and (self.multitask or self.head != HEADS[0]):
            raise ValueError(
                f"adaptation {self.adaptation} goes with head {HEADS[0]} and one task a policy"
            )
        if self.adaptation != "frozen":
            cloning, usual = self.behaviour_cloning, BehaviourCloningConfig()
            for name in ("steps", "batch_size", "input_norm"):
                if getattr(cloning, name) != getattr(usual, name):
                    raise ValueError(
                        f"behaviour_cloning.{name} is of frozen encoders; with adaptation "
                        f"{self.adaptation} set end_to_end's"
                    )
        if self.image_px < 32 or self.image_px % 2:
            raise ValueError(f"image_px must be even and at least 32, not {self.image_px}")
        _refuse_others("baselines", self.baselines, BASELINES)
        _refuse_others("factors", self.factors, FACTORS)
        _refuse_others("levels", self.levels, LEVELS)
        if not self.proprioception or len(set(self.proprioception)) < len(self.proprioception):
            raise ValueError("proprioception must be true, false, or both, each once")
        for arm in self.arms:
            name, equals, uri = arm.partition("=")
            if not (name.strip() and equals and uri.strip()):
                raise ValueError(f"arms: {arm!r} must read NAME=URI or NAME=URI,URI")
            if not re.fullmatch(r"[\w .-]+", name.strip()):  # it becomes a metric's name
                raise ValueError(
                    f"arms: the name {name.strip()!r} may hold letters, digits, spaces and _ . -"
                )


def _refuse_others(setting: str, given: tuple, known: tuple) -> None:
    """Each of the known ones, and once: a condition that is there twice is one condition."""
    for name in given:
        if name not in known:
            raise ValueError(f"{setting}: there is no {name}; known: {', '.join(map(str, known))}")
        if given.count(name) > 1:
            raise ValueError(f"{setting}: {name} stands there twice")
