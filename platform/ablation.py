"""Every arm × seed pretrained, evaluated by policies, and set beside the paper's order.

One call may be stopped and repeated: encoders with the same settings and triplets are
reused, and so are the evaluation's finished cells.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.rollout_config import RolloutConfig
from dynaflip.platform.training.ablations import (
    FULL,
    NO_NEGATIVES,
    PAPER_SUCCESS_PERCENT,
    VARIANTS,
    apply_variant,
)
from dynaflip.platform.training.config import PretrainConfig

if TYPE_CHECKING:
    from dynaflip.eval.intervals.ranking import Ranking

# The evaluation's own name for the encoder under test.
_FIRST = "trained"
_RANK_CURVES = tuple(f"heldout/effective_rank/{m}" for m in ("image", "language", "flow"))


def _rollouts() -> RolloutConfig:
    return RolloutConfig(
        baselines=("initialization",),
        tasks=("drawer-open-v3", "button-press-topdown-v3", "hammer-v3"),
        factors=("light_gain", "table_colour", "camera"),
        episodes=10,
        all_at_once=False,
    )


@dataclass(frozen=True)
class AblationConfig:
    """Everything that ``jobs/ablate.py`` can be told."""

    arms: tuple[str, ...] = ()
    """Arms by name; empty takes all."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Pretraining seeds: one encoder each an arm."""

    experiment: str = "dynaflip-ablate"
    """MLflow experiment of the table."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """What every arm is laid over."""

    rollouts: RolloutConfig = field(default_factory=_rollouts)
    """How encoders are scored; its `encoder`, `arms` and `seeds` are this job's own."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.arms) - set(VARIANTS)):
            raise ValueError(
                f"arms: there is no {', '.join(unknown)}; known: {', '.join(VARIANTS)}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds: give distinct numbers from 0 up")
        if self.rollouts.split != "dev":
            raise ValueError("rollouts.split must be dev: an ablation is tuning")
        if len(self.rollouts.proprioception) != 1:
            raise ValueError("rollouts.proprioception: give one value, an ablation has one table")

    def chosen(self) -> list[str]:
        """Arms in the table's order, the full one first: the others are compared with it."""
        return [arm for arm in VARIANTS if not self.arms or arm in self.arms or arm == FULL]


@dataclass(frozen=True)
class Ablated:
    """What an ablation left behind."""

    table: str
    metrics: dict[str, float]
    run_name: str
    run_id: str  # MLflow's


# Encoders of every arm (URIs, one a seed) to a ranking of the arms.
Score = Callable[[AblationConfig, dict[str, list[str]]], "Ranking"]


def ablate(config: AblationConfig, score: Score | None = None) -> Ablated:
    """Pretrain what is missing, score all, and log the table.

    Args:
        config: the settings.
        score: ranks the arms; by default policies in the simulator.

    Raises:
        UserError: no triplets, an arm that the settings leave no sense, or an evaluation that
            cannot run.
    """
    _check_arms(config)
    encoders = {arm: pretrained(config, arm) for arm in config.chosen()}
    ranking = (score or by_policies)(config, encoders)
    ranks = {arm: _effective_ranks(uris) for arm, uris in encoders.items()}
    table = table_of(ranking, ranks)
    metrics = metrics_of(ranking)
    run_name, run_id = _log(config, encoders, table, metrics)
    return Ablated(table, metrics, run_name, run_id)


def _check_arms(config: AblationConfig) -> None:
    """Refuse, before hours of training, arms that cannot be or that are one another's copies."""
    found: list[tuple[PretrainConfig, str]] = []
    for arm in config.chosen():
        settings = apply_variant(config.pretrain, arm)
        twin = next((name for other, name in found if other == settings), None)
        if twin is not None:
            raise UserError(f"arms: {twin} and {arm} are the same under these settings; leave one")
        found.append((settings, arm))


def pretrained(config: AblationConfig, arm: str) -> list[str]:
    """URIs of an arm's encoders, one a seed; what there is already is taken."""
    from dynaflip.platform.training.run import find_finished, pretrain

    uris = []
    for seed in config.seeds:
        train = dataclasses.replace(config.pretrain.train, seed=seed)
        settings = apply_variant(dataclasses.replace(config.pretrain, train=train), arm)
        uri = find_finished(settings)
        if uri is None:
            print(f"arm {arm}, seed {seed}: pretraining")
            uri = pretrain(settings).uri()
        else:
            print(f"arm {arm}, seed {seed}: {uri}, made before")
        uris.append(uri)
    return uris


def by_policies(config: AblationConfig, encoders: dict[str, list[str]]) -> Ranking:
    """Rank arms by success out of distribution: the mean over single factors."""
    from dynaflip.eval.intervals.ranking import rank_variants
    from dynaflip.platform.evaluation.results import OUT_OF_DISTRIBUTION, groups, successes
    from dynaflip.platform.evaluation.suites.rollouts import evaluate_policies

    others = tuple(f"{arm}={','.join(uris)}" for arm, uris in encoders.items() if arm != FULL)
    outcome = evaluate_policies(
        dataclasses.replace(
            config.rollouts,
            encoder=",".join(encoders[FULL]),
            arms=others,
            seeds=len(config.seeds),
        )
    )
    print(f"\n{outcome.table}\n")
    values = {}
    for name in outcome.episodes["arm"].unique(maintain_order=True):
        found = successes(outcome.episodes, name, proprioception=config.rollouts.proprioception[0])
        kinds = groups(found.conditions)
        if OUT_OF_DISTRIBUTION not in kinds:
            raise UserError("rollouts.factors: an ablation needs a perturbed condition")
        arm = FULL if name == _FIRST else name
        values[arm] = found.of_conditions(kinds[OUT_OF_DISTRIBUTION])
    return rank_variants(values)


def table_of(ranking: Ranking, effective_ranks: dict[str, str]) -> str:
    """The arms in the paper's order, then those that it does not have."""
    places = {place.arm: place for place in ranking.places}
    order = [arm for arm in PAPER_SUCCESS_PERCENT if arm in places]
    order += [place.arm for place in ranking.places if place.arm not in PAPER_SUCCESS_PERCENT]
    width = max(len(arm) for arm in order)
    lines = [
        f"{'arm':<{width}}  success % out of distribution  rank  paper %  "
        "effective rank image/language/flow"
    ]
    for arm in order:
        place = places[arm]
        shown = f"{100 * place.value:5.1f} [{100 * place.low:.1f}, {100 * place.high:.1f}]"
        paper = PAPER_SUCCESS_PERCENT.get(arm)
        said = "" if paper is None else f"{paper:.1f}"
        lines.append(
            f"{arm:<{width}}  {shown:<29}  {place.rank:>4}  {said:>7}  "
            f"{effective_ranks.get(arm, '')}"
        )
    metrics = metrics_of(ranking)
    lines.append(f"Spearman with the paper's order: {metrics['spearman']:.2f} (equal ranks: ties)")
    if (last := metrics.get("probability_no_negatives_last")) is not None:
        lines.append(f"probability that {NO_NEGATIVES} is last: {last:.2f}")
    return "\n".join(lines)


def metrics_of(ranking: Ranking) -> dict[str, float]:
    """Flat metrics: ``success/<arm>`` with bounds and rank, and the two verdicts."""
    metrics: dict[str, float] = {}
    for place in ranking.places:
        metrics |= {
            f"success/{place.arm}": place.value,
            f"success/{place.arm}/low": place.low,
            f"success/{place.arm}/high": place.high,
            f"rank/{place.arm}": float(place.rank),
        }
    metrics["spearman"] = ranking.spearman(PAPER_SUCCESS_PERCENT)
    shared = [place.arm for place in ranking.places if place.arm in PAPER_SUCCESS_PERCENT]
    if NO_NEGATIVES in shared and len(shared) > 1:
        metrics["probability_no_negatives_last"] = ranking.probability_last(NO_NEGATIVES, shared)
    return metrics


def _effective_ranks(uris: list[str]) -> str:
    """Mean over an arm's encoders of what their runs measured last."""
    from dynaflip.platform.evaluation.encoders_under_test import Encoder, info_of
    from dynaflip.platform.tracking import registry

    rows = []
    for uri in uris:
        info = info_of(Encoder(uri, str(registry.resolve(uri)), ""))
        rows.append([info.get("metrics", {}).get(name, float("nan")) for name in _RANK_CURVES])
    means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
    return "/".join(f"{mean:.0f}" for mean in means)


def _log(
    config: AblationConfig,
    encoders: dict[str, list[str]],
    table: str,
    metrics: dict[str, float],
) -> tuple[str, str]:
    from dynaflip.platform import tracking
    from dynaflip.platform.paths import new_run_name

    run = tracking.open_run(config.experiment, new_run_name("ablate"), {"kind": "ablate"})
    with tracking.ending(run):
        run.log_settings(config)
        run.log_metrics(metrics, step=0)
        run.log_text(table + "\n", "table.txt")
        run.log_text(json.dumps(encoders, indent=1), "encoders.json")
    return run.run_name, run.run_id
