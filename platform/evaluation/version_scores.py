"""Scores of rollouts as tags of the registered versions that were evaluated."""

from __future__ import annotations

import polars as pl

from dynaflip.eval.envs.registry import environment
from dynaflip.platform import tracking
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.coverage import missing_coverage
from dynaflip.platform.evaluation.encoders_under_test import TRAINED, EncoderUnderTest, info_of
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.results import MEASURES, groups, metric_name, successes
from dynaflip.platform.tracking import registry
from dynaflip.platform.tracking.version_card import add_result

WHOLE = "whole"  # value of the breadth tag: the evaluation covers what promotion asks for


def mark_versions(config: RolloutConfig, tested: list[EncoderUnderTest], outcome: Outcome) -> None:
    """Log the report on the runs that made the encoders, and the scores on their versions.

    Scores are of frozen encoders. Those that promotion accepts stay before those that it does
    not, and those of more policies before those of fewer: the headline has one policy of each
    version, and promotion asks for several.
    """
    spec = environment(config.environment)
    prefix = f"policies_{config.split}"
    count, breadth, at = f"{prefix}_number", f"{prefix}_breadth", f"{prefix}_run_id"
    for encoder in tested[0].encoders:
        made_by = info_of(encoder).get("mlflow_run_id")
        if not made_by:
            continue
        if (maker := tracking.find_run(made_by)) is not None:  # it may be in another store
            run = maker.run
            assert outcome.report is not None
            run.log_file(outcome.report, "evaluation")
        if config.adaptation != "frozen":
            continue
        add_result(made_by, f"rollouts on {config.split}", outcome.verdict, outcome.run_id)
        own = outcome.rows().filter(
            (pl.col("arm") == TRAINED) & (pl.col("encoder_digest") == encoder.digest)
        )
        policies = own["seed"].n_unique()
        missing = missing_coverage(
            adaptation=config.adaptation,
            episodes=config.episodes,
            tasks=set(own["task"]),
            needed_tasks=spec.tasks_to_promote_on(),
            conditions=set(own.select("factor", "level").iter_rows()),
            factors=spec.factors,
        )
        covered = f"lacks {len(missing)}" if missing else WHOLE
        marks = {count: str(policies), breadth: covered, at: outcome.run_id}
        scores = _scores(config, own)
        for version in registry.versions_of_run(made_by):
            present = (version.tags.get(breadth) == WHOLE, int(version.tags.get(count, 0)))
            if present > (not missing, policies):
                continue
            others = [
                key
                for key in version.tags
                if key.startswith(f"{config.split}/") and key not in scores
            ]
            registry.set_version_tags(version.name, version.number, {**scores, **marks}, others)


def _scores(config: RolloutConfig, own: pl.DataFrame) -> dict[str, str]:
    """``SPLIT/success_ever/GIVEN/GROUP`` of one encoder's episodes."""
    scores = {}
    for proprioception in config.proprioception:
        values = successes(own, TRAINED, proprioception=proprioception)
        for group, conditions in groups(values.conditions).items():
            key = f"{config.split}/{metric_name(MEASURES[0], proprioception, group)}"
            scores[key] = f"{values.of_conditions(conditions).mean():.4g}"
    return scores
