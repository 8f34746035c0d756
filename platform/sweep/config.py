"""Settings of a sweep. Imports no torch, Ray or Optuna, so that ``--help`` is quick."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dynaflip.checks import at_least, one_of
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment
from dynaflip.eval.policies.config import BehaviourCloningConfig, settings_to_hash
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.flow_probe_config import FlowProbeConfig
from dynaflip.platform.evaluation.probe_config import ViewsConfig
from dynaflip.platform.training.config import PretrainConfig

SAMPLERS = ("tpe", "random")
SCHEDULERS = ("none", "median", "asha")
PROMOTIONS = ("auto", "always", "never")
# Objectives of a trial, all minimised: mean probe error of hand and object with one factor
# perturbed and with none, held-out flow that a probe leaves unexplained, and the failures of a
# small policy with one factor perturbed.
PERTURBED, UNPERTURBED, FLOW_PROBE, POLICY = "perturbed", "unperturbed", "flow_probe", "policy"
UNITS = {PERTURBED: "cm", UNPERTURBED: "cm", FLOW_PROBE: "% unexplained", POLICY: "% failed"}
# Those that may rank trials: what is confirmed and registered.
RANKING = (PERTURBED, FLOW_PROBE)
# Their names as metrics.
METRIC = {
    PERTURBED: "score/perturbed_cm",
    UNPERTURBED: "score/unperturbed_cm",
    FLOW_PROBE: "score/flow_unexplained_percent",
    POLICY: "score/policy_failure_percent",
}
# What a trial's score is called on runs and versions, by the objective that ranks.
SCORE_NAME = {PERTURBED: "score_cm", FLOW_PROBE: "flow_unexplained_percent"}

_USUAL_FACTORS = ("light_gain", "table_colour")


@dataclass(frozen=True)
class PolicyScoreConfig:
    """The objective `policy`: behaviour cloning on the frozen encoder, rolled out."""

    environment: str = DEFAULT_ENVIRONMENT
    """The simulator: a built-in one, an installed package's, gym:ID (any Gymnasium environment), or
    class:MODULE:NAME. Short, with that of the views: --env."""

    tasks: tuple[str, ...] = ()
    """Names of tasks or sets of tasks; empty takes those that the environment recommends."""

    factors: tuple[str, ...] = ()
    """Factors that are perturbed, one at a time, with values of the `dev` split; empty takes
    light_gain and table_colour, or the first two of an environment without these."""

    level: int = 1
    """Strength of the perturbation, 1…5."""

    episodes: int = 10
    """Episodes per task and factor, with the same initial states for every trial."""

    demonstrations: int = 25
    """Unperturbed demonstrations per task."""

    image_px: int = 112
    """Side of the square images, in pixels."""

    behaviour_cloning: BehaviourCloningConfig = field(
        default_factory=lambda: BehaviourCloningConfig(chunk=16, input_norm="std_floor")
    )
    """The policy on the features; the defaults are those of the headline evaluation."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        spec = environment(self.environment)
        if not self.factors:
            usual = tuple(name for name in _USUAL_FACTORS if name in spec.factors)
            object.__setattr__(self, "factors", usual or spec.factors[:2])
        if not self.factors:
            raise ValueError(f"factors: {spec.name} has none of its own; name at least one")
        if not self.tasks:
            object.__setattr__(self, "tasks", spec.tasks_for("sweep"))
        self.rollouts()

    def recipe(self) -> dict[str, Any]:
        """Settings for digests: equal where the score is the same.

        The default environment is left out, as digests had none before there were others.
        """
        values = dataclasses.asdict(self)
        if self.environment == DEFAULT_ENVIRONMENT:
            del values["environment"]
        values["behaviour_cloning"] = settings_to_hash(values["behaviour_cloning"])
        return values

    def rollouts(self) -> RolloutConfig:
        """The settings of the evaluation's suite `rollouts`."""
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
            split="dev",  # a sweep tunes, and `test` is for headlines
        )


@dataclass(frozen=True)
class ScoreConfig:
    """How trials are scored: the same protocol for all trials of a sweep."""

    frames: str | None = None
    """File of labelled frames (.npz, format in platform/sweep/frames.py). None = probes are fitted
    on recordings of `data` and tested on rendered `dev` views."""

    data: str | None = None
    """LeRobot data set with simulator labels; none = the home's data/demo."""

    frames_per_episode: int = 8
    """Frames of each unperturbed training episode that probes are fitted on."""

    folds: int = 5
    """Folds of the cross-validation over episodes that chooses the probes' penalty."""

    batch_size: int = 64
    """Images per forward pass."""

    views: ViewsConfig = field(
        default_factory=lambda: ViewsConfig(
            episodes_per_task=3, frames_per_episode=2, frames_per_factor=2
        )
    )
    """Rendered views that probes are tested on; fewer than in an evaluation, as each trial is
    scored."""

    flow_probe: FlowProbeConfig = field(default_factory=FlowProbeConfig)
    """The flow that is predicted where `flow_probe` is an objective."""

    policy: PolicyScoreConfig = field(default_factory=PolicyScoreConfig)
    """The policy that is rolled out where `policy` is an objective."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        at_least(self, 2, "frames_per_episode", "folds")
        at_least(self, 1, "batch_size")


@dataclass(frozen=True)
class SweepConfig:
    """The search space, the search, and what happens with the best trial."""

    name: str | None = None
    """Name of the sweep; none = a new one from the date."""

    search: tuple[str, ...] = ()
    """The search space, a list of KEY=log(a,b), KEY=uniform(a,b), KEY=int(a,b) or
    KEY=choice(a,b,…), where KEY is any dotted setting of pretraining."""

    trials: int = 20
    """Number of trials; the first has the paper's weights."""

    concurrent: int = 1
    """Trials that run at once."""

    sampler: str = "tpe"
    """How values are suggested: TPE models the scores so far."""

    startup_trials: int = 6
    """Random trials before TPE starts to model the scores."""

    seed: int = 0
    """Seed of the sampler; the seed of every trial's training is `train.seed`."""

    scheduler: str = "none"
    """Early stopping by intermediate scores: below the median of earlier trials, or by successive
    halving (ASHA)."""

    reduction: int = 3
    """Reduction factor r of ASHA: the best 1/r of the trials at a rung continue; the rungs lie at
    T/r² and T/r of T steps."""

    objectives: tuple[str, ...] = (PERTURBED,)
    """What is minimised: perturbed (labelled frames of a simulator) or flow_probe (any triplets),
    alone or with a second objective (perturbed, unperturbed, flow_probe, policy), for which the
    search looks for the Pareto front. The first one chooses what is confirmed and registered."""

    storage: str | None = None
    """Optuna's database: a URL without password (Postgres reads PGPASSWORD and ~/.pgpass), or
    env:NAME for an environment variable that holds the URL; none = SQLite in the home's sweeps
    folder."""

    warm_start: str | None = None
    """Name of an earlier sweep of the same database and space; the sampler starts with its
    finished trials."""

    confirm: int = 2
    """Number of best trials that are trained again with other seeds, beside the paper's weights;
    0 = none."""

    confirm_seeds: int = 3
    """Number of other seeds for each of them."""

    promote: str = "auto"
    """When the alias `candidate` moves to the registered encoder; auto: if it is confirmed and
    better than the present candidate beyond noise."""

    max_failures: int = 2
    """How often a trial is restarted from its last checkpoint after its process died."""

    experiment: str = "dynaflip-sweep"
    """MLflow experiment of the sweep and its trials."""

    score: ScoreConfig = field(default_factory=ScoreConfig)

    def __post_init__(self) -> None:
        """Validate the settings."""
        at_least(self, 1, "trials", "concurrent", "startup_trials")
        at_least(self, 0, "seed", "confirm", "max_failures")
        at_least(self, 2, "reduction", "confirm_seeds")
        one_of(self, SAMPLERS, "sampler")
        one_of(self, SCHEDULERS, "scheduler")
        one_of(self, PROMOTIONS, "promote")
        self._check_objectives()
        if len(self.objectives) > 1 and self.scheduler != "none":
            raise ValueError(f"scheduler {self.scheduler} needs one objective, not two")
        if self.name is not None and not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"name must be of letters, digits, - and _, got {self.name!r}")
        if self.name is not None and self.name.endswith("-confirm"):
            raise ValueError("name must not end in -confirm: that is a sweep's second stage")

    def _check_objectives(self) -> None:
        first, *more = self.objectives or ("",)
        known = set(more) <= set(METRIC) - {first}
        if first not in RANKING or len(more) > 1 or not known:
            raise ValueError(
                f"objectives must be {' or '.join(RANKING)}, alone or with one other of "
                f"{', '.join(METRIC)}; got {', '.join(self.objectives) or 'none'}"
            )
        usual = ScoreConfig()
        for setting, needed in (
            ("frames", {PERTURBED, UNPERTURBED}),
            ("data", {PERTURBED, UNPERTURBED}),
            ("flow_probe", {FLOW_PROBE}),
        ):
            if getattr(self.score, setting) != getattr(usual, setting) and not needed & set(
                self.objectives
            ):
                raise ValueError(
                    f"score.{setting} is read for the objective {min(needed)} alone, not for "
                    f"{', '.join(self.objectives)}"
                )


@dataclass(frozen=True)
class SweepJobConfig(PretrainConfig):
    """Settings of ``jobs/sweep.py``: those of pretraining, which every trial starts from, and the
    sweep's own in the section `sweep`."""

    SHORT: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(
        ("env", "environment"),
        ("sweep.score.views.environment", "sweep.score.policy.environment"),
    )

    sweep: SweepConfig = field(default_factory=SweepConfig)


def pretrain_part(job: SweepJobConfig) -> PretrainConfig:
    """The pretraining settings of a sweep, without its own section."""
    names = [f.name for f in dataclasses.fields(PretrainConfig)]
    return PretrainConfig(**{name: getattr(job, name) for name in names})
