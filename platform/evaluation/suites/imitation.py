"""The suite ``imitation``: action error of policies on the expert's own observations.

Jobs, encoders, demonstrations and fitted policies are those of the suite ``rollouts``, so a
rollout of the same settings afterwards finds its policies fitted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.suites.base import Suite

if TYPE_CHECKING:
    import polars as pl

    from dynaflip.eval.metrics.attention import AttentionMaps
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest
    from dynaflip.platform.evaluation.plan import EvaluationJob
    from dynaflip.platform.evaluation.report.tables import Section
    from dynaflip.platform.evaluation.results import Successes
    from dynaflip.platform.evaluation.worker import ImitationResult

KIND = "imitation"  # the run's tag `kind`
AGREEMENT = "agreement"  # column and metric: 1 − relative action error
AGREEMENTS_FILE = "agreements.parquet"
COLUMNS = (
    "", "", "of the policy", "trained - this", "verdict", "verdict, Holm",
    "best of all, %",
)  # fmt: skip

NOTES = [
    "Shown is 100 less the action error: the mean over the expert's moments of max(0, 1 - squared "
    "distance of the policy's action from the expert's / variance of the expert's actions), in "
    "percent; 100 is the expert itself. It is no success: policies are not rolled out.",
    "Intervals are 95 %, by hierarchical bootstrap over policies and initial states, tasks fixed; "
    "every policy is shown the same moments, and differences are paired.",
]


class Imitation(Suite):
    """Compare the same policies' actions with the expert's, without a rollout.

    Every policy is shown the expert's own observations, unperturbed and under perturbation:
    minutes, for tuning on dev.
    """

    settings: ClassVar[type] = RolloutConfig

    def run(self, config: RolloutConfig) -> Outcome:
        """Fit policies, compare their actions with the expert's, and log.

        Raises:
            UserError: the split is not ``dev``, an encoder or a task does not exist, or the
                simulator cannot render.
        """
        check_split(config)
        from dynaflip.eval.envs.registry import environment
        from dynaflip.platform import tracking
        from dynaflip.platform.demonstrations.collect import check_expert
        from dynaflip.platform.evaluation.attention import compute_attention
        from dynaflip.platform.evaluation.encoder_service import EncoderService
        from dynaflip.platform.evaluation.encoders_under_test import info_of
        from dynaflip.platform.evaluation.kept_policies import keep_policies
        from dynaflip.platform.evaluation.plan import prepare
        from dynaflip.platform.evaluation.protocols import label_of
        from dynaflip.platform.evaluation.rollout_run import PROTOCOL_TAG
        from dynaflip.platform.evaluation.schedule import (
            compare_with_expert,
            fit_missing,
            open_pool,
        )
        from dynaflip.platform.paths import new_run_name

        if config.source:  # collecting asks for the expert too
            check_expert(
                spec := environment(config.environment),
                spec.tasks_of(config.tasks)[0],
                "whose actions policies' are compared with; roll policies out with --suite "
                "rollouts, or compare them with held-out recordings with --suite offline",
            )
        service = EncoderService(config.encoder_actor)  # refused before anything is counted
        tested, jobs = prepare(config)
        tags = {
            "kind": KIND,
            "encoder": config.encoder,
            "encoder_run_id": info_of(tested[0].encoders[0]).get("mlflow_run_id", ""),
            "perturbation_split": config.split,
        }
        if protocol := label_of(config, KIND):
            tags[PROTOCOL_TAG] = protocol
        run = tracking.open_run(config.experiment, new_run_name(KIND), tags)
        with tracking.ending(run):
            run.log_settings(config)
            with service, open_pool(environment(config.environment)) as pool:
                fit_missing(jobs, pool, config.fits, service)
                results = compare_with_expert(jobs, pool, service)
                attention = compute_attention(config, jobs, pool)
            kept = keep_policies(config, jobs, run)
            table = imitation_table(jobs, results)
            return _report(config, tested, jobs, table, attention, run, kept)

    def dry_run(self, config: RolloutConfig, *, gpu_images_per_s: float) -> list[Section]:
        """The policies, what of them is cached, and the time of the rest on several machines."""
        from dynaflip.platform.evaluation.cost import dry_run

        check_split(config)
        return dry_run(config, gpu_images_per_s=gpu_images_per_s, imitation=True)


def check_split(config: RolloutConfig) -> None:
    """Refuse the split of headlines.

    Raises:
        UserError: the split is not ``dev``.
    """
    if config.split != "dev":
        raise UserError(
            "split: the suite imitation is for tuning, so it is shown dev alone; roll "
            "policies out on test with --suite rollouts"
        )


def imitation_table(
    jobs: list[EvaluationJob], results: dict[tuple[str, str], ImitationResult]
) -> pl.DataFrame:
    """A row per job and initial state: its mean over the expert's moments.

    Args:
        jobs: all of an evaluation.
        results: (task, digest of a policy) → its result.
    """
    import numpy as np
    import polars as pl

    rows: list[dict[str, Any]] = []
    for job in jobs:
        digest = job.policy.digest()
        result = results[job.task, digest]
        here = result.condition == job.condition.name
        for index, start in enumerate(job.starts):
            moments = result.agreement[digest][here & (result.episode == index)]
            rows.append(
                {
                    "arm": job.under_test,
                    "encoder_digest": job.policy.encoder.digest,
                    "proprioception": job.policy.use_proprioception,
                    "demonstrations": job.policy.demonstrations[0].shown,
                    "seed": job.policy.seed,
                    "task": job.task,
                    "factor": job.condition.factor,
                    "level": job.condition.level,
                    "episode": index,
                    "layout_seed": start.layout_seed,
                    "moments": len(moments),
                    AGREEMENT: float(np.mean(moments)),
                }
            )
    return pl.DataFrame(rows)


def _report(
    config: RolloutConfig,
    tested: list[EncoderUnderTest],
    jobs: list[EvaluationJob],
    table: pl.DataFrame,
    attention: dict[str, AttentionMaps],
    run: tracking.Run,
    kept: list[str],
) -> Outcome:
    """Write the report, and log it with the table of moments."""
    from dynaflip.platform.evaluation.encoders_under_test import single_seed_notes
    from dynaflip.platform.evaluation.own_demonstrations import own_notes
    from dynaflip.platform.evaluation.report.attention import attention_images, attention_sections
    from dynaflip.platform.evaluation.report.demonstration_curve import (
        curve_images,
        curve_sections,
    )
    from dynaflip.platform.evaluation.report.encoder_table import encoder_section
    from dynaflip.platform.evaluation.report.html_page import write_report
    from dynaflip.platform.evaluation.report.log_report import log_report
    from dynaflip.platform.evaluation.report.rollout_images import measure_figures
    from dynaflip.platform.evaluation.report.rollout_report import (
        COMPARISONS,
        facts_of,
        power_lines,
        verdict_of,
    )
    from dynaflip.platform.evaluation.report.rollout_tables import GIVEN
    from dynaflip.platform.evaluation.report.tables import as_text
    from dynaflip.platform.evaluation.report.verdict import IMITATION
    from dynaflip.platform.evaluation.results import successes
    from dynaflip.platform.evaluation.results_table import policy_results, save_results
    from dynaflip.platform.paths import home

    sections, metrics = _sections(config, tested, table)
    names, unit = [entry.name for entry in tested], "100 - action error, %"
    curves, values = curve_sections(config, names, table, AGREEMENT, unit)
    attended, shares = attention_sections(config, jobs, attention)
    sections, metrics = curves + sections + attended, metrics | values | shares
    sections.append(encoder_section(tested))
    power = power_lines(config, [entry.name for entry in tested], table, AGREEMENT)
    notes = [*NOTES, COMPARISONS, *power, *single_seed_notes(tested), *kept]
    notes += own_notes([shown for job in jobs for shown in job.policy.demonstrations])
    path = home() / "reports" / f"{run.run_name}.html"
    given = config.proprioception[0]
    verdict = verdict_of(config, names, table, AGREEMENT, IMITATION)
    by_name = {
        name: successes(table, name, proprioception=given, measure=AGREEMENT) for name in names
    }
    images = measure_figures(by_name, "closeness to the expert's actions", GIVEN[given])
    images += curve_images(config, names, table, AGREEMENT, unit)
    images += attention_images(config, jobs, attention)
    write_report(
        path,
        title=f"DynaFLIP: action error of policies on {config.encoder}",
        verdict=verdict,
        facts=facts_of(config, tested, table, KIND),
        sections=sections,
        notes=notes,
        images=images,
    )
    text = as_text(sections)
    run.log_metrics(metrics, step=0)
    run.log_text(text, "table.txt")
    log_report(run, path, verdict, images)
    with tempfile.TemporaryDirectory() as folder:
        table.write_parquet(Path(folder) / AGREEMENTS_FILE)
        run.log_file(Path(folder) / AGREEMENTS_FILE)
    about = {"suite": "imitation", "run": run.run_name, "split": config.split}
    frame = policy_results(table, jobs, (AGREEMENT,), environment=config.environment, **about)
    saved = save_results(frame, path, run)
    return Outcome(
        text, run.run_name, run.run_id, notes, metrics, path, table, sections, saved, verdict
    )


def _sections(
    config: RolloutConfig, tested: list[EncoderUnderTest], table: pl.DataFrame
) -> tuple[list[Section], dict[str, float]]:
    from dynaflip.platform.evaluation.report import rollout_tables
    from dynaflip.platform.evaluation.results import successes

    sections: list[Section] = []
    metrics: dict[str, float] = {}
    for proprioception in config.proprioception:
        by_name = {
            entry.name: successes(
                table, entry.name, proprioception=proprioception, measure=AGREEMENT
            )
            for entry in tested
        }
        compared = _comparison_section(by_name, proprioception, metrics)
        by_condition = rollout_tables.condition_section(by_name)
        by_condition.title = "100 - action error, %, by condition"
        for section in [compared, by_condition]:
            section.title += f" ({rollout_tables.GIVEN[proprioception]})"
            sections.append(section)
    return sections, metrics


def _comparison_section(
    by_name: dict[str, Successes], proprioception: bool, metrics: dict[str, float]
) -> Section:
    """Each group of conditions: every encoder's score and how much better the reference is."""
    from dynaflip.eval.intervals.holm import family_verdicts
    from dynaflip.eval.intervals.ranking import probability_best
    from dynaflip.platform.evaluation.encoders_under_test import TRAINED
    from dynaflip.platform.evaluation.report import rollout_tables
    from dynaflip.platform.evaluation.report.tables import Section
    from dynaflip.platform.evaluation.results import compare_encoders, groups, metric_name

    section = Section("100 - action error, %", columns=COLUMNS)
    for group, conditions in groups(by_name[TRAINED].conditions).items():
        compared = compare_encoders(by_name, TRAINED, conditions)
        differences = {name: one.difference for name, one in compared.items()}
        together = family_verdicts(rollout_tables.encoders_alone(differences))
        values = {name: one.of_conditions(conditions) for name, one in by_name.items()}
        best = probability_best(rollout_tables.encoders_alone(values))
        for name, comparison in compared.items():
            gain = comparison.difference
            row = [group, name, rollout_tables.percent(comparison.rate)]
            row += [rollout_tables.points(gain), gain.verdict()] if gain else ["-", "-"]
            row.append(together.get(name, "-"))
            row.append(f"{100 * best[name]:.0f}" if name in best else "-")
            section.rows.append(row)
            key = f"{metric_name(AGREEMENT, proprioception, group)}/{name.replace(' ', '_')}"
            metrics[key] = comparison.rate.value
    return section
