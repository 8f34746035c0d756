"""The suite ``rollouts``: success of policies in the simulator."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.suites.base import Suite

if TYPE_CHECKING:
    import polars as pl

    from dynaflip.eval.metrics.attention import AttentionMaps
    from dynaflip.platform import tracking
    from dynaflip.platform.actor_pool import ActorPool
    from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest
    from dynaflip.platform.evaluation.plan import EvaluationJob
    from dynaflip.platform.evaluation.report.html_page import ReportImage
    from dynaflip.platform.evaluation.report.tables import Section
    from dynaflip.platform.evaluation.worker import SaliencyMaps

SALIENCY_IMAGES = 3  # images per task whose saliency is shown


class Rollouts(Suite):
    """Fit policies on the frozen encoder and on its baselines, and roll them out in the simulator.

    Success unperturbed and under perturbation, with paired 95 % intervals: for decisions and
    headlines. Policies and finished jobs are cached: an interrupted evaluation resumes, and a new
    encoder only runs its own rollouts.
    """

    settings: ClassVar[type] = RolloutConfig

    def run(self, config: RolloutConfig) -> Outcome:
        """Fit policies, roll them out, compare and log.

        Raises:
            UserError: an encoder or a task does not exist, or the simulator cannot render.
        """
        from dynaflip.eval.envs.registry import environment
        from dynaflip.platform import tracking
        from dynaflip.platform.demonstrations.collect import check_expert
        from dynaflip.platform.evaluation.attention import compute_attention
        from dynaflip.platform.evaluation.encoder_service import EncoderService
        from dynaflip.platform.evaluation.kept_policies import keep_policies
        from dynaflip.platform.evaluation.plan import prepare
        from dynaflip.platform.evaluation.results import episode_table
        from dynaflip.platform.evaluation.rollout_run import open_rollout_run
        from dynaflip.platform.evaluation.schedule import open_pool, run_jobs
        from dynaflip.platform.evaluation.version_scores import mark_versions

        if config.source and config.check_harness:  # collecting asks for the expert too
            check_expert(
                spec := environment(config.environment),
                spec.tasks_of(config.tasks)[0],
                "which check_harness rolls out beside the policies; leave it out",
            )
        service = EncoderService(config.encoder_actor)  # refused before anything is counted
        tested, jobs = prepare(config)
        # Opened before the first episode: an evaluation on test counts though it is killed.
        run, test_evaluation = open_rollout_run(config, tested, jobs)
        with tracking.ending(run):
            run.log_settings(config)
            with service, open_pool(environment(config.environment)) as pool:
                table = episode_table(jobs, run_jobs(jobs, pool, config.fits, service))
                saliency = _saliency(config, tested, pool)
                attention = compute_attention(config, jobs, pool)
            kept = keep_policies(config, jobs, run)
            outcome = _report(
                config, tested, jobs, table, saliency, attention, run, test_evaluation, kept
            )
            mark_versions(config, tested, outcome)
        return outcome

    def dry_run(self, config: RolloutConfig, *, gpu_images_per_s: float) -> list[Section]:
        """The jobs, what of them is cached, and the time of the rest on several machines."""
        from dynaflip.platform.evaluation.cost import dry_run

        return dry_run(config, gpu_images_per_s=gpu_images_per_s)


def _saliency(
    config: RolloutConfig,
    tested: list[EncoderUnderTest],
    pool: ActorPool,
) -> dict[str, SaliencyMaps]:
    """Saliency of the first encoder of each entry, by task; policies without one have none."""
    from dynaflip.eval.envs.registry import environment
    from dynaflip.eval.perturbations import layout_seed
    from dynaflip.platform.evaluation.schedule import compute_saliency
    from dynaflip.platform.evaluation.worker import SceneSpec

    if config.adaptation != "frozen":
        return {}  # the encoder that a policy has tuned is another one
    encoders = {entry.encoders[0].digest: entry.encoders[0] for entry in tested}
    on_disk = [encoder for encoder in encoders.values() if encoder.folder is not None]
    seeds = [layout_seed(config.split, index) for index in range(SALIENCY_IMAGES)]
    tasks = environment(config.environment).tasks_of(config.tasks)
    scenes = [SceneSpec(config.environment, task, config.image_px) for task in tasks]
    return compute_saliency(scenes, seeds, on_disk, pool)


def _report(
    config: RolloutConfig,
    tested: list[EncoderUnderTest],
    jobs: list[EvaluationJob],
    table: pl.DataFrame,
    saliency: dict[str, SaliencyMaps],
    attention: dict[str, AttentionMaps],
    run: tracking.Run,
    test_evaluation: int,
    kept: list[str],
) -> Outcome:
    """Write the report, and log it with the episodes."""
    from dynaflip.platform.evaluation.own_demonstrations import own_notes
    from dynaflip.platform.evaluation.report import rollout_report
    from dynaflip.platform.evaluation.report.attention import attention_sections
    from dynaflip.platform.evaluation.report.demonstration_curve import (
        curve_images,
        curve_sections,
    )
    from dynaflip.platform.evaluation.report.encoder_table import encoder_section
    from dynaflip.platform.evaluation.report.failures import failure_section
    from dynaflip.platform.evaluation.report.html_page import write_report
    from dynaflip.platform.evaluation.report.rollout_images import images_of
    from dynaflip.platform.evaluation.report.rollout_report import verdict_of
    from dynaflip.platform.evaluation.report.tables import as_text
    from dynaflip.platform.evaluation.results import MEASURES
    from dynaflip.platform.evaluation.results_table import policy_results, save_results
    from dynaflip.platform.paths import home

    unseen_tasks = _unseen_tasks(tested[0], config)
    names = [entry.name for entry in tested]
    sections, metrics = rollout_report.sections_of(config, names, table, unseen_tasks)
    curves, values = curve_sections(config, names, table, MEASURES[0], "Success %")
    sections, metrics = curves + sections, metrics | values
    if saliency:
        section, shares = rollout_report.saliency_section(tested, saliency)
        sections.append(section)
        metrics |= shares
    attended, shares = attention_sections(config, jobs, attention)
    sections, metrics = sections + attended, metrics | shares
    if ends := failure_section(table, names):
        sections.append(ends)
    sections.append(encoder_section(tested))
    notes = rollout_report.notes_of(config, tested, table, unseen_tasks, test_evaluation) + kept
    notes += own_notes([shown for job in jobs for shown in job.policy.demonstrations])
    verdict = verdict_of(config, names, table)
    curve = curve_images(config, names, table, MEASURES[0], "success, %")
    images = images_of(config, tested, jobs, table, saliency, attention, curve)
    path = home() / "reports" / f"{run.run_name}.html"
    write_report(
        path,
        title=f"DynaFLIP: policies on {config.encoder} ({config.adaptation})",
        verdict=verdict,
        facts=rollout_report.facts_of(config, tested, table),
        sections=sections,
        notes=notes,
        images=images,
    )
    text = as_text(sections)
    about = {"suite": "rollouts", "run": run.run_name, "split": config.split}
    frame = policy_results(table, jobs, MEASURES, environment=config.environment, **about)
    results = save_results(frame, path, run)
    outcome = Outcome(
        text, run.run_name, run.run_id, notes, metrics, path, table, sections, results, verdict
    )
    _log(outcome, run, images)
    return outcome


def _log(outcome: Outcome, run: tracking.Run, images: list[ReportImage]) -> None:
    from dynaflip.platform.evaluation.report.log_report import log_report
    from dynaflip.platform.evaluation.rollout_run import EPISODES_FILE

    assert outcome.report is not None
    run.log_metrics(outcome.metrics, step=0)
    run.log_text(outcome.table, "table.txt")
    run.log_text(json.dumps(outcome.metrics, indent=1, sort_keys=True), "metrics.json")
    log_report(run, outcome.report, outcome.verdict, images)
    with tempfile.TemporaryDirectory() as folder:
        outcome.rows().write_parquet(Path(folder) / EPISODES_FILE)
        run.log_file(Path(folder) / EPISODES_FILE)


def _unseen_tasks(entry: EncoderUnderTest, config: RolloutConfig) -> list[str]:
    """Tasks that no pretraining of these encoders had, where their folders record its tasks."""
    from dynaflip.eval.envs.registry import environment
    from dynaflip.platform.evaluation.encoders_under_test import info_of

    seen: set[str] = set()
    for encoder in entry.encoders:
        groups = info_of(encoder).get("caption_groups")
        if groups is None:
            return []
        seen |= set(groups)
    tasks = environment(config.environment).tasks_of(config.tasks)
    return [task for task in tasks if task not in seen]
