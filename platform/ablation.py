"""Ablation: every variant × seed is pretrained, evaluated by policies, and ranked.

One call may be stopped and repeated: encoders with the same settings and triplets are
reused, and so are finished evaluation jobs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from dynaflip.errors import UserError
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment
from dynaflip.platform.evaluation.config import RolloutConfig
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

_RANK_CURVES = tuple(f"heldout/effective_rank/{m}" for m in ("image", "language", "flow"))


def _rollouts() -> RolloutConfig:
    return RolloutConfig(
        baselines=("initialization",),
        tasks=environment(DEFAULT_ENVIRONMENT).tasks_for("ablate"),
        factors=("light_gain", "table_colour", "camera"),
        episodes=10,
        all_at_once=False,
        keep_policies=False,  # an ablation's encoders are compared, not used
    )


@dataclass(frozen=True)
class AblationConfig:
    """Settings of ``jobs/ablate.py``."""

    RENAMED: ClassVar[dict[str, str]] = {"arms": "variants"}
    SHORT: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(
        ("env", "environment"), ("rollouts.environment",)
    )

    variants: tuple[str, ...] = ()
    """Variants by name; empty takes all."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Pretraining seeds: one encoder of each variant per seed."""

    experiment: str = "dynaflip-ablate"
    """MLflow experiment of the table."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """The settings that every variant changes."""

    rollouts: RolloutConfig = field(default_factory=_rollouts)
    """How encoders are scored; its `encoder`, `encoders` and `seeds` are set by this job."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.variants) - set(VARIANTS)):
            raise ValueError(
                f"variants: there is no {', '.join(unknown)}; known: {', '.join(VARIANTS)}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds: give distinct numbers from 0 up")
        if self.rollouts.split != "dev":
            raise ValueError("rollouts.split must be dev: an ablation is tuning")
        if len(self.rollouts.proprioception) != 1:
            raise ValueError("rollouts.proprioception: give one value, an ablation has one table")

    def chosen(self) -> list[str]:
        """Variants in the table's order, the full one first: the others are compared with it."""
        return [name for name in VARIANTS if not self.variants or name in (*self.variants, FULL)]


@dataclass(frozen=True)
class Ablated:
    """A finished ablation: what is printed and logged."""

    table: str
    metrics: dict[str, float]
    run_name: str
    run_id: str  # MLflow's


# Encoders of every variant (URIs, one per seed) → a ranking of the variants.
Score = Callable[[AblationConfig, dict[str, list[str]]], "Ranking"]


def ablate(config: AblationConfig, score: Score | None = None) -> Ablated:
    """Pretrain what is missing, score all, and log the table.

    Args:
        config: the settings.
        score: ranks the variants; by default by policies in the simulator.

    Raises:
        UserError: no triplets, a variant that makes no sense with these settings, or an
            evaluation that cannot run.
    """
    _check_variants(config)
    encoders = {name: pretrained(config, name) for name in config.chosen()}
    ranking = (score or by_policies)(config, encoders)
    ranks = {name: _effective_ranks(uris) for name, uris in encoders.items()}
    table = table_of(ranking, ranks)
    metrics = metrics_of(ranking)
    run_name, run_id = _log(config, encoders, table, metrics)
    return Ablated(table, metrics, run_name, run_id)


def _check_variants(config: AblationConfig) -> None:
    """Refuse, before hours of training, variants that cannot be or that equal one another."""
    checked: list[tuple[PretrainConfig, str]] = []
    for variant in config.chosen():
        settings = apply_variant(config.pretrain, variant)
        twin = next((name for other, name in checked if other == settings), None)
        if twin is not None:
            raise UserError(
                f"variants: {twin} and {variant} are the same under these settings; leave one"
            )
        checked.append((settings, variant))


def pretrained(config: AblationConfig, variant: str) -> list[str]:
    """URIs of a variant's encoders, one per seed; those registered already are reused."""
    from dynaflip.platform.training.run import find_finished, pretrain

    uris = []
    for seed in config.seeds:
        train = dataclasses.replace(config.pretrain.train, seed=seed)
        settings = apply_variant(dataclasses.replace(config.pretrain, train=train), variant)
        uri = find_finished(settings)
        if uri is None:
            print(f"variant {variant}, seed {seed}: pretraining")
            uri = pretrain(settings).uri()
        else:
            print(f"variant {variant}, seed {seed}: {uri}, reused")
        uris.append(uri)
    return uris


def by_policies(config: AblationConfig, encoders: dict[str, list[str]]) -> Ranking:
    """Rank variants by success out of distribution: the mean over single factors."""
    from dynaflip.encoders.backbones import own_class
    from dynaflip.eval.intervals.ranking import rank_variants
    from dynaflip.platform.evaluation.encoders_under_test import TRAINED
    from dynaflip.platform.evaluation.results import OUT_OF_DISTRIBUTION, groups, successes
    from dynaflip.platform.evaluation.suites.rollouts import Rollouts

    others = tuple(f"{name}={','.join(uris)}" for name, uris in encoders.items() if name != FULL)
    outcome = Rollouts().run(
        dataclasses.replace(
            config.rollouts,
            backbone=config.rollouts.backbone or own_class(config.pretrain.model.image.name),
            encoder=",".join(encoders[FULL]),
            encoders=others,
            seeds=len(config.seeds),
        )
    )
    episodes = outcome.rows()
    print(f"\n{outcome.table}\n")
    values = {}
    for name in episodes["arm"].unique(maintain_order=True):
        solved = successes(episodes, name, proprioception=config.rollouts.proprioception[0])
        conditions = groups(solved.conditions)
        if OUT_OF_DISTRIBUTION not in conditions:
            raise UserError("rollouts.factors: an ablation needs a perturbed condition")
        variant = FULL if name == TRAINED else name
        values[variant] = solved.of_conditions(conditions[OUT_OF_DISTRIBUTION])
    return rank_variants(values)


def table_of(ranking: Ranking, effective_ranks: dict[str, str]) -> str:
    """The variants in the paper's order, then those that it does not have."""
    places = {place.variant: place for place in ranking.places}
    order = [name for name in PAPER_SUCCESS_PERCENT if name in places]
    order += [
        place.variant for place in ranking.places if place.variant not in PAPER_SUCCESS_PERCENT
    ]
    width = max(len(name) for name in order)
    lines = [
        f"{'variant':<{width}}  success % out of distribution  rank  paper %  "
        "effective rank image/language/flow"
    ]
    for name in order:
        place = places[name]
        shown = f"{100 * place.value:5.1f} [{100 * place.low:.1f}, {100 * place.high:.1f}]"
        paper = PAPER_SUCCESS_PERCENT.get(name)
        published = "" if paper is None else f"{paper:.1f}"
        lines.append(
            f"{name:<{width}}  {shown:<29}  {place.rank:>4}  {published:>7}  "
            f"{effective_ranks.get(name, '')}"
        )
    metrics = metrics_of(ranking)
    lines.append(f"Spearman with the paper's order: {metrics['spearman']:.2f} (equal ranks: ties)")
    if (last := metrics.get("probability_no_negatives_last")) is not None:
        lines.append(f"probability that {NO_NEGATIVES} is last: {last:.2f}")
    return "\n".join(lines)


def metrics_of(ranking: Ranking) -> dict[str, float]:
    """Flat metrics: ``success/<variant>`` with bounds and rank, and the two verdicts."""
    metrics: dict[str, float] = {}
    for place in ranking.places:
        metrics |= {
            f"success/{place.variant}": place.value,
            f"success/{place.variant}/low": place.low,
            f"success/{place.variant}/high": place.high,
            f"rank/{place.variant}": float(place.rank),
        }
    metrics["spearman"] = ranking.spearman(PAPER_SUCCESS_PERCENT)
    shared = [place.variant for place in ranking.places if place.variant in PAPER_SUCCESS_PERCENT]
    if NO_NEGATIVES in shared and len(shared) > 1:
        metrics["probability_no_negatives_last"] = ranking.probability_last(NO_NEGATIVES, shared)
    return metrics


def _effective_ranks(uris: list[str]) -> str:
    """Effective ranks that the runs of a variant's encoders measured last, mean over encoders."""
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
