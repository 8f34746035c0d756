"""Settings of a sweep, the single place for their defaults (no torch, Ray or Optuna in here)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from dynaflip.checks import at_least, one_of
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment
from dynaflip.eval.policies.config import BehaviourCloningConfig, settings_to_hash
from dynaflip.platform.evaluation.config import RolloutConfig, ViewsConfig
from dynaflip.platform.training.config import PretrainConfig

SAMPLERS = ("tpe", "random")
SCHEDULERS = ("none", "median", "asha")
PROMOTIONS = ("auto", "always", "never")
# What a trial is scored by, less is better: mean probe error of hand and object, with one
# factor perturbed and with none; and how often a small policy fails with one factor perturbed.
PERTURBED, UNPERTURBED, POLICY = "perturbed", "unperturbed", "policy"
UNITS = {PERTURBED: "cm", UNPERTURBED: "cm", POLICY: "% failed"}


@dataclass(frozen=True)
class PolicyScoreConfig:
    """The small policy of the objective `policy`: behaviour cloning on the frozen encoder."""

    environment: str = DEFAULT_ENVIRONMENT
    """The simulator: a built-in one, an installed package's, or class:MODULE:NAME."""

    tasks: tuple[str, ...] = ()
    """Names of tasks or sets of tasks; empty takes those that the environment recommends."""

    factors: tuple[str, ...] = ("light_gain", "table_colour")
    """Factors perturbed one at a time, dev values, and how strongly, 1…5."""

    level: int = 1
    episodes: int = 10
    """Episodes of a task under a factor: the same initial states for every trial."""

    demonstrations: int = 25
    """Unperturbed demonstrations of a task."""

    image_px: int = 112
    """Side of the images."""

    behaviour_cloning: BehaviourCloningConfig = field(
        default_factory=lambda: BehaviourCloningConfig(chunk=16, input_norm="std_floor")
    )
    """The policy on the features: as the headline's."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        if not self.factors:
            raise ValueError("factors: name at least one")
        if not self.tasks:
            tasks = environment(self.environment).tasks_for("sweep")
            object.__setattr__(self, "tasks", tasks)
        self.rollouts()

    def recipe(self) -> dict[str, Any]:
        """What decides the score, as digests have it: equal for settings of equal meaning.

        The default environment is left out, as it was before there were others.
        """
        values = dataclasses.asdict(self)
        if self.environment == DEFAULT_ENVIRONMENT:
            del values["environment"]
        values["behaviour_cloning"] = settings_to_hash(values["behaviour_cloning"])
        return values

    def rollouts(self) -> RolloutConfig:
        """The same as settings of the policy evaluation."""
        return RolloutConfig(
            environment=self.environment,
            tasks=self.tasks,
            factors=self.factors,
            levels=(self.level,),
            all_at_once=False,
            seeds=1,
            episodes=self.episodes,
            demonstrations=self.demonstrations,
            image_px=self.image_px,
            behaviour_cloning=self.behaviour_cloning,
            split="dev",  # tuned against: the headline's split is never looked at here
        )


@dataclass(frozen=True)
class ScoreConfig:
    """The probe error that ranks trials; one protocol for all trials of a sweep."""

    frames: str | None = None
    """A file of labelled frames (.npz, see platform/sweep/frames.py); none = recordings of `data`
    to fit probes on and rendered `dev` views to test them on."""

    data: str | None = None
    """LeRobot data set with simulator labels; none = the home's data/demo."""

    frames_per_episode: int = 8
    """Frames of each unperturbed training episode that probes are fitted on."""

    folds: int = 5
    """Folds of the cross-validation over episodes that chooses the probes' penalty."""

    batch_size: int = 64
    """Images a forward pass."""

    views: ViewsConfig = field(
        default_factory=lambda: ViewsConfig(
            episodes_per_task=3, frames_per_episode=2, frames_per_factor=2
        )
    )
    """Views that probes are tested on: fewer than an evaluation's, because every trial pays."""

    policy: PolicyScoreConfig = field(default_factory=PolicyScoreConfig)
    """Used where `policy` is an objective."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        at_least(self, 2, "frames_per_episode", "folds")
        at_least(self, 1, "batch_size")


@dataclass(frozen=True)
class SweepConfig:
    """What is searched, how, and what becomes of the best."""

    name: str | None = None
    """Name of the sweep; none = a fresh one from the date."""

    search: tuple[str, ...] = ()
    """What is searched: KEY=log(a,b), uniform(a,b), int(a,b) or choice(a,b,…), KEY any setting."""

    trials: int = 20
    """Trials; the first has the paper's weights."""

    concurrent: int = 1
    """Trials at once."""

    sampler: str = "tpe"
    """Tpe | random."""

    startup_trials: int = 6
    """Random trials before TPE models the scores."""

    seed: int = 0
    """Seeds the sampler (a trial's own seed is train.seed)."""

    scheduler: str = "none"
    """Early stopping by intermediate scores: none | median | asha."""

    reduction: int = 3
    """Asha: of the trials that reach a rung 1/reduction go on; rungs at T/r², T/r of T steps."""

    objectives: tuple[str, ...] = (PERTURBED,)
    """Perturbed, and by choice a second one, unperturbed or policy: a search for the Pareto front.
    What is confirmed and registered is chosen by the first."""

    storage: str | None = None
    """Optuna's database: a URL without password (Postgres reads PGPASSWORD and ~/.pgpass), or
    env:NAME for an environment variable that holds the URL; none = SQLite in the home's sweeps
    folder."""

    warm_start: str | None = None
    """A sweep of the same database and space whose finished trials the sampler begins with."""

    confirm: int = 2
    """Best trials that are trained again, with the paper's weights beside them; 0 = none."""

    confirm_seeds: int = 3
    """Other seeds of each of them."""

    promote: str = "auto"
    """When the alias `candidate` moves: auto = confirmed, and better than the present one beyond
    noise | always | never."""

    max_failures: int = 2
    """How often a trial whose driver process dies is started again from its last checkpoint."""

    experiment: str = "dynaflip-sweep"
    """MLflow experiment of the sweep and its trials."""

    score: ScoreConfig = field(default_factory=ScoreConfig)

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        at_least(self, 1, "trials", "concurrent", "startup_trials")
        at_least(self, 0, "seed", "confirm", "max_failures")
        at_least(self, 2, "reduction", "confirm_seeds")
        one_of(self, SAMPLERS, "sampler")
        one_of(self, SCHEDULERS, "scheduler")
        one_of(self, PROMOTIONS, "promote")
        allowed = ((PERTURBED,), (PERTURBED, UNPERTURBED), (PERTURBED, POLICY))
        if self.objectives not in allowed:
            raise ValueError(
                f"objectives must be {PERTURBED}, alone or with {UNPERTURBED} or {POLICY}, "
                f"got {', '.join(self.objectives) or 'none'}"
            )
        if len(self.objectives) > 1 and self.scheduler != "none":
            raise ValueError(f"scheduler {self.scheduler} needs one objective, not two")
        if self.name is not None and not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"name must be of letters, digits, - and _, got {self.name!r}")
        if self.name is not None and self.name.endswith("-confirm"):
            raise ValueError("name must not end in -confirm: that is a sweep's second stage")


@dataclass(frozen=True)
class SweepJobConfig(PretrainConfig):
    """A pretraining's settings, which every trial begins from, and the sweep over them."""

    sweep: SweepConfig = field(default_factory=SweepConfig)


def pretrain_part(job: SweepJobConfig) -> PretrainConfig:
    """What a trial is trained with where the sweep changes nothing."""
    names = [f.name for f in dataclasses.fields(PretrainConfig)]
    return PretrainConfig(**{name: getattr(job, name) for name in names})
