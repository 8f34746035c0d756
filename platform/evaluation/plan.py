"""What an evaluation runs: policies to fit and jobs to roll out, each named by its recipe's digest.

A digest covers everything that a result depends on, so a cached result is never one of other
settings, and whoever asks again gets it without running anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dynaflip.eval import perturbations
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment
from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.policies.config import settings_to_hash
from dynaflip.eval.policies.readouts.config import POOLED
from dynaflip.eval.policies.registry import code_of_policy
from dynaflip.eval.rollout import EpisodeStart
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.demonstration_set import DemonstrationSet
from dynaflip.platform.evaluation.demonstrations import (
    collect_demonstrations,
    demonstration_sets,
)
from dynaflip.platform.evaluation.encoder_config import FLOAT32
from dynaflip.platform.evaluation.encoders_under_test import (
    Encoder,
    EncoderUnderTest,
    resolve_encoders,
)
from dynaflip.platform.evaluation.own_demonstrations import own_notes
from dynaflip.platform.evaluation.unseen import check_unseen
from dynaflip.platform.provenance import versions_of
from dynaflip.renames import first_settings

# Raised when the same recipe gives other results than before.
ROLLOUT_VERSION = 3
_LEARNING = ("torch",)  # packages that decide the fitted weights


@dataclass(frozen=True)
class Condition:
    """The appearance of the scene: unperturbed, one factor at a level, or all of them."""

    factor: str  # UNPERTURBED, ALL_FACTORS or the name of a factor
    level: int  # 0 where nothing is perturbed

    @property
    def name(self) -> str:
        """Such as ``camera-3``."""
        return self.factor if self.factor == UNPERTURBED else f"{self.factor}-{self.level}"


@dataclass(frozen=True)
class PolicySpec:
    """A policy to fit: on which encoder's features, which demonstrations, which head and seed."""

    encoder: Encoder
    demonstrations: tuple[DemonstrationSet, ...]  # several for one policy of many tasks
    head: str
    head_settings: dict[str, Any]
    use_proprioception: bool
    seed: int
    adaptation: str  # frozen, lora or full
    end_to_end: dict[str, Any]  # settings of the training, where it is not frozen
    readout: str = POOLED
    readout_settings: dict[str, Any] = field(default_factory=dict)
    precision: str = FLOAT32  # of the features
    code: tuple[str, ...] = ()  # versions of head, read-out and backbone that are not built in

    def digest(self) -> str:
        """Equal for policies that are equal."""
        recipe: dict[str, Any] = {
            "version": [ROLLOUT_VERSION, *versions_of(_LEARNING)],
            "encoder": self.encoder.digest,
            "demonstrations": [d.shown_digest for d in self.demonstrations],
            # Several tasks are told apart by their captions.
            "captions": [d.caption for d in self.demonstrations if len(self.demonstrations) > 1],
            "head": [self.head, settings_to_hash(self.head_settings)],
            "proprioception": self.use_proprioception,
            "seed": self.seed,
            "adaptation": [self.adaptation, self.end_to_end],
        }
        if self.readout != POOLED:  # as before there were others
            recipe["readout"] = [self.readout, self.readout_settings]
        if self.precision != FLOAT32:  # as before there were others
            recipe["precision"] = self.precision
        if self.code:
            recipe["code"] = self.code
        return _digest(recipe)


@dataclass(frozen=True)
class EvaluationJob:
    """Episodes of one task under one condition by one policy."""

    under_test: str  # name of the encoder under test or baseline
    policy: PolicySpec
    task: str
    condition: Condition
    starts: tuple[EpisodeStart, ...]
    horizon_steps: int
    steps_after_success: int
    image_px: int
    environments: int  # that a process runs in lockstep
    recorded: bool  # whether images of its first episode are saved
    environment: str = DEFAULT_ENVIRONMENT
    code: tuple[str, ...] = ()  # versions of the condition's factors that are not built in

    def digest(self) -> str:
        """Equal for jobs that give equal results; how many run at a time changes nothing."""
        recipe: dict[str, Any] = {
            "version": [ROLLOUT_VERSION, *environment(self.environment).versions()],
            "policy": self.policy.digest(),
            "task": self.task,
            "starts": [asdict(start) for start in self.starts],
            "protocol": [self.horizon_steps, self.steps_after_success, self.image_px],
        }
        if self.environment != DEFAULT_ENVIRONMENT:  # as before there were others
            recipe["environment"] = self.environment
        if self.code:
            recipe["code"] = self.code
        return _digest(recipe)


def conditions_of(config: RolloutConfig) -> list[Condition]:
    """Unperturbed, each factor at each level, and all at once at each level."""
    available = environment(config.environment).factors
    factors = [*(config.factors or available)]
    if config.all_at_once and available:
        factors.append(ALL_FACTORS)
    perturbed = [Condition(factor, level) for factor in factors for level in config.levels]
    return [Condition(UNPERTURBED, 0), *perturbed]


def prepare(config: RolloutConfig) -> tuple[list[EncoderUnderTest], list[EvaluationJob]]:
    """The encoders to compare and all jobs, with their demonstrations at hand.

    Raises:
        UserError: a task, a head or an encoder does not exist, or the simulator cannot render.
    """
    tested, _, jobs = plan_rollouts(config)
    if not config.source:
        collect_demonstrations(config, environment(config.environment).tasks_of(config.tasks))
    return tested, jobs


def plan_rollouts(
    config: RolloutConfig, built: Path | None = None
) -> tuple[list[EncoderUnderTest], dict[str, DemonstrationSet], list[EvaluationJob]]:
    """The encoders, the demonstrations of each task (collected or not), and all jobs.

    Args:
        config: of the evaluation.
        built: where encoders are made that are compared with; None: in the home, which keeps them.

    Raises:
        UserError: a task, a head or an encoder does not exist, or the user's own demonstrations
            do not fit the environment.
    """
    from dynaflip.eval.policies.registry import (
        check_reads,
        head_settings,
        readout_settings,
    )

    tasks = environment(config.environment).tasks_of(config.tasks)
    head_settings(config.head, config.settings_of_head())  # refused now, not in every worker
    readout_settings(config.readout, config.settings_of_readout())
    check_reads(config.head, config.readout)
    for note in environment(config.environment).notes:
        print(f"note: {note}", flush=True)
    tested = resolve_encoders(config, built)
    check_unseen(config, tested)
    shown = demonstration_sets(config, tasks)
    for note in own_notes(list(shown.values())):
        print(note, flush=True)
    return tested, shown, plan_jobs(config, tested, shown)


def plan_jobs(
    config: RolloutConfig,
    tested: list[EncoderUnderTest],
    demonstrations: dict[str, DemonstrationSet],
) -> list[EvaluationJob]:
    """All jobs, task by task, so that a process can keep the scenes that it has loaded."""
    assert config.horizon_steps is not None, "filled in by the settings"
    conditions = conditions_of(config)
    by_number = {
        number: {
            task: shown if number is None else replace(shown, first=number)
            for task, shown in demonstrations.items()
        }
        for number in (None, *sorted(config.fewer_demonstrations, reverse=True))
    }
    starts = {
        (task, condition): draw_starts(config, task, condition)
        for task in demonstrations
        for condition in conditions
    }
    return [
        EvaluationJob(
            under_test=entry.name,
            policy=_policy(config, entry, task, by_number[number], proprioception, seed),
            task=task,
            condition=condition,
            starts=starts[task, condition],
            horizon_steps=config.horizon_steps,
            steps_after_success=config.steps_after_success,
            image_px=config.image_px,
            environments=config.environments,
            recorded=seed == 0 and number is None,
            environment=config.environment,
            code=_code_of_factors(starts[task, condition]),
        )
        for task in demonstrations
        for entry in tested
        for seed in range(config.seeds)
        for proprioception in config.proprioception
        for number in (by_number if entry.encoders[0].folder is not None else (None,))
        for condition in conditions
    ]


def draw_starts(config: RolloutConfig, task: str, condition: Condition) -> tuple[EpisodeStart, ...]:
    """The initial states of a job: a function of split, task, condition and seed alone.

    Layouts are those of the evaluation split, which no demonstration and no pretraining has,
    and the same under every condition.
    """
    together = environment(config.environment).factors
    starts = []
    for index in range(config.episodes):
        factors: dict[str, Any] = {}
        if condition.factor != UNPERTURBED:
            text = f"{config.seed}/{task}/{index}/{condition.factor}"
            number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
            chosen = together if condition.factor == ALL_FACTORS else (condition.factor,)
            factors = perturbations.sample(config.split, number, chosen, condition.level)
        layout = perturbations.layout_seed(config.split, index)
        starts.append(EpisodeStart(layout, factors))
    return tuple(starts)


def _code_of_factors(starts: Sequence[EpisodeStart]) -> tuple[str, ...]:
    names = dict.fromkeys(name for start in starts for name in start.factors)
    return tuple(code for name in names for code in perturbations.FACTOR_TABLE.code_of(name))


def _policy(
    config: RolloutConfig,
    entry: EncoderUnderTest,
    task: str,
    demonstrations: dict[str, DemonstrationSet],
    proprioception: bool,
    seed: int,
) -> PolicySpec:
    together = tuple(demonstrations.values()) if config.multitask else (demonstrations[task],)
    encoder = entry.encoder(seed)
    return PolicySpec(
        encoder=encoder,
        demonstrations=together,
        head=config.head,
        head_settings=config.settings_of_head(),
        use_proprioception=proprioception,
        seed=seed,
        adaptation=config.adaptation,
        end_to_end={} if config.adaptation == "frozen" else first_settings(config.end_to_end),
        readout=config.readout,
        readout_settings=config.settings_of_readout(),
        precision=FLOAT32 if encoder.folder is None else config.encoder_actor.precision,
        code=(*code_of_policy(config.head, config.readout), *encoder.code()),
    )


def _digest(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:20]
