"""The suite ``offline``: policies on your own recordings, without a simulator."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dynaflip.platform.evaluation.offline_config import KIND, OfflineConfig
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.suites.base import Suite

if TYPE_CHECKING:
    from dynaflip.eval.metrics.action_scale import ActionScale
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest
    from dynaflip.platform.evaluation.offline_data import OfflineData
    from dynaflip.platform.evaluation.offline_plan import OfflinePlan
    from dynaflip.platform.evaluation.offline_run import OfflineResult
    from dynaflip.platform.evaluation.report.tables import Section


class Offline(Suite):
    """Compare encoders on your own LeRobot data set, where there is no simulator.

    Policies learn from training episodes on frozen features; their actions are compared with
    those of held-out episodes, as recorded and under perturbations of the images.
    """

    settings: ClassVar[type] = OfflineConfig

    def run(self, config: OfflineConfig) -> Outcome:
        """Encode, fit, compare and log.

        Raises:
            UserError: the data set has no actions, too few episodes or episodes of several
                widths, or an encoder does not exist.
        """
        from dynaflip.eval.policies.registry import (
            check_reads,
            head_settings,
            readout_settings,
        )
        from dynaflip.platform import tracking
        from dynaflip.platform.actor_pool import ActorPool
        from dynaflip.platform.evaluation.encoder_service import EncoderService
        from dynaflip.platform.evaluation.encoders_under_test import resolve_encoders
        from dynaflip.platform.evaluation.offline_data import read_offline
        from dynaflip.platform.evaluation.offline_kept import keep_offline_policies
        from dynaflip.platform.evaluation.offline_plan import (
            heldout_share_notes,
            plan_offline,
            with_no_image,
        )
        from dynaflip.platform.evaluation.offline_run import fit_and_test
        from dynaflip.platform.evaluation.offline_worker import OfflineWorker

        # Refused now, not in every worker.
        head_settings(config.head, config.settings_of_head())
        readout_settings(config.readout, config.settings_of_readout())
        check_reads(config.head, config.readout)
        version = _version_to_promote(config)
        data = read_offline(config)
        tested = with_no_image(data, resolve_encoders(config))
        plan = plan_offline(config, data)
        service = EncoderService(config.encoder_actor)  # refused before anything is counted
        run, test_evaluation = _open_run(config, data, plan, tested)
        with tracking.ending(run):
            run.log_settings(config)
            with service, ActorPool(OfflineWorker, job="evaluate") as pool:
                found = fit_and_test(config, data, plan, tested, pool, service)
            notes = [*data.notes, *heldout_share_notes(config.heldout_share, tested)]
            notes += [f"note: left out {reason}" for reason in found.lost]
            if test_evaluation:
                notes.append(
                    f"this is evaluation {test_evaluation} on the test split in this store"
                )
            notes += keep_offline_policies(config, data, tested[0], found, run)
            outcome = _report(config, data, plan, tested, found, notes, run)
            _mark_versions(config, data, tested, outcome)
            if version is not None:
                outcome.notes.append(_promoted(config, *version))
        return outcome

    def dry_run(self, config: OfflineConfig, *, gpu_images_per_s: float) -> list[Section]:
        """Images to encode, those cached, policies to fit, and the time on several machines."""
        from dynaflip.platform.evaluation.cost_offline import dry_run

        return dry_run(config, gpu_images_per_s=gpu_images_per_s)


def _version_to_promote(config: OfflineConfig) -> tuple[str, str] | None:
    """Name and number of the version under test; None where nothing is to be promoted.

    Raises:
        UserError: the encoder under test is no registered version, or there is no such one.
    """
    from dynaflip.platform.tracking import registry

    return registry.named_version(config.encoder, "promote") if config.promote else None


def _promoted(config: OfflineConfig, name: str, number: str) -> str:
    """Make the version champion if the evidence holds; what came of it."""
    from dynaflip.errors import UserError
    from dynaflip.platform.promotion import promote

    try:
        return promote(name, number, needed=config.promotion).explanation
    except UserError as error:  # evidence that is too narrow, say: the evaluation stands
        return f"{name} version {number} is not promoted: {error}"


def _open_run(
    config: OfflineConfig, data: OfflineData, plan: OfflinePlan, tested: list[EncoderUnderTest]
) -> tuple[tracking.Run, int]:
    """Open the run, with its number among the evaluations on ``test`` (0 on dev)."""
    from dynaflip.eval.image_perturbations import IMAGE_FACTOR_NAMES
    from dynaflip.platform.evaluation.evaluation_run import open_counted_run
    from dynaflip.platform.evaluation.offline_evidence import VERSION_TAG
    from dynaflip.platform.evaluation.offline_plan import evaluation_digest, version_tag

    return open_counted_run(
        config,
        tested[0],
        kind=KIND,
        split=config.split,
        digest=evaluation_digest(config, data, plan, tested),
        factors=IMAGE_FACTOR_NAMES,
        tags={"data": data.name, VERSION_TAG: version_tag(config)},
    )


def _report(
    config: OfflineConfig,
    data: OfflineData,
    plan: OfflinePlan,
    tested: list[EncoderUnderTest],
    found: OfflineResult,
    notes: list[str],
    run: tracking.Run,
) -> Outcome:
    """Write the report, and log it with the errors of every episode."""
    from dynaflip.platform.evaluation.encoders_under_test import single_seed_notes
    from dynaflip.platform.evaluation.offline_evidence import ERRORS_FILE
    from dynaflip.platform.evaluation.offline_features import example_images
    from dynaflip.platform.evaluation.report import offline_report
    from dynaflip.platform.evaluation.report.encoder_table import encoder_section
    from dynaflip.platform.evaluation.report.html_page import (
        ReportImage,
        jpeg_of,
        write_report,
    )
    from dynaflip.platform.evaluation.report.log_report import log_report
    from dynaflip.platform.evaluation.report.tables import as_text
    from dynaflip.platform.evaluation.results_table import save_results
    from dynaflip.platform.paths import home

    table = found.table
    sections, metrics = offline_report.comparison_sections(table)
    sections += [
        offline_report.condition_section(table),
        _strength_section(config, tested),
        encoder_section(tested),
    ]
    notes = [*notes, *_constant_note(config, found.scale), *offline_report.notes_of(table)]
    notes += single_seed_notes(tested)
    verdict = offline_report.verdict_of(table, config.encoder, data.name, config.split)
    conditions = ", ".join(one.name for one in plan.conditions).replace("none", "as recorded")
    path = home() / "reports" / f"{run.run_name}.html"
    images = [*offline_report.figures_of(table)]
    if (shown := example_images(config, data, plan)) is not None:
        heading = "A held-out frame under each condition"
        images.append(ReportImage("examples.jpg", conditions, jpeg_of(shown), heading))
    write_report(
        path,
        title=f"DynaFLIP: action error on {data.name}, {config.encoder}",
        verdict=verdict,
        facts=_facts(config, data, found.scale),
        sections=sections,
        notes=notes,
        images=images,
    )
    text = as_text(sections)
    run.log_metrics(metrics, step=0)
    run.log_text(text, "table.txt")
    log_report(run, path, verdict, images)
    with tempfile.TemporaryDirectory() as folder:
        table.write_parquet(Path(folder) / ERRORS_FILE)
        run.log_file(Path(folder) / ERRORS_FILE)
    frame = offline_report.offline_results(
        table,
        {encoder.digest: encoder.name for entry in tested for encoder in entry.encoders},
        proprioception=bool(data.train[0].proprioception.shape[1]),
        suite=KIND,
        run=run.run_name,
        split=config.split,
        environment=data.name,
    )
    saved = save_results(frame, path, run)
    return Outcome(
        text, run.run_name, run.run_id, notes, metrics, path, table, sections, saved, verdict
    )


def _strength_section(config: OfflineConfig, tested: list[EncoderUnderTest]) -> Any:
    """What the splits draw at these levels, beside what pretraining's augmentation reaches."""
    from dynaflip.eval.image_perturbations import IMAGE_FACTOR_NAMES, strength_rows
    from dynaflip.platform.evaluation.encoders_under_test import info_of
    from dynaflip.platform.evaluation.report.tables import Section

    settings = info_of(tested[0].encoders[0]).get("config", {}).get("data")
    columns = ("", "level", "dev", "test", "pretraining's augmentation")
    rows = strength_rows(config.factors or IMAGE_FACTOR_NAMES, config.levels, settings)
    return Section("Strength of the perturbations", rows, columns)


def _constant_note(config: OfflineConfig, scale: ActionScale) -> list[str]:
    constant = scale.constant()
    if not constant:
        return []
    return [
        f"note: entries {', '.join(map(str, constant))} of {config.action} are constant in the "
        f"training episodes and left out; {int(scale.moving.sum())} of {len(scale.moving)} are "
        "compared"
    ]


def _facts(config: OfflineConfig, data: OfflineData, scale: ActionScale) -> dict[str, str]:
    from dynaflip.platform.provenance import git_commit, hardware

    settings, reads = config.settings_of_head(), config.settings_of_readout()
    moments = sum(len(episode.frames) for episode in data.heldout)
    return {
        "data set": config.source,
        "recordings": f"{data.recordings[False]} to learn from, {data.recordings[True]} held out "
        f"(heldout_share {config.heldout_share:g})",
        "episodes used": f"{len(data.train)} to learn from, {len(data.heldout)} held out with "
        f"{moments} moments",
        "cameras": ", ".join(data.cameras),
        "actions": f"{config.action}, {len(scale.moving)} entries, of which "
        f"{int(scale.moving.sum())} move",
        "proprioception": ", ".join(data.proprioception) or "none: images alone",
        "policy": config.head,
        "policy's settings": ", ".join(f"{key} {value}" for key, value in settings.items()),
        "read-out": ", ".join(
            [config.readout, *(f"{key} {value}" for key, value in reads.items())]
        ),
        "policies": f"{config.seeds} per encoder",
        "perturbation split": config.split,
        "levels": ", ".join(map(str, config.levels)),
        "image": f"short side at most {config.image_px} px",
        "git commit": git_commit(),
        "hardware": hardware(),
    }


def _mark_versions(
    config: OfflineConfig, data: OfflineData, tested: list[EncoderUnderTest], outcome: Outcome
) -> None:
    """Log the report on the runs that made the encoders, and the scores on their versions."""
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.encoders_under_test import TRAINED, info_of
    from dynaflip.platform.tracking import registry
    from dynaflip.platform.tracking.version_card import add_result

    scores = {
        f"{KIND}_{config.split}/{key}": f"{value:.4g}"
        for key, value in outcome.metrics.items()
        if key.endswith(f"/{TRAINED}")
    }
    marks = {f"{KIND}_{config.split}_run_id": outcome.run_id}
    marks[f"{KIND}_{config.split}_data"] = data.name
    for encoder in tested[0].encoders:
        made_by = info_of(encoder).get("mlflow_run_id")
        if not made_by:
            continue
        if (maker := tracking.find_run(made_by)) is not None:  # it may be in another store
            assert outcome.report is not None
            maker.run.log_file(outcome.report, "evaluation")
        what = f"{KIND} on {data.name}, {config.split}"
        add_result(made_by, what, outcome.verdict, outcome.run_id)
        for version in registry.versions_of_run(made_by):
            own = [key for key in version.tags if key.startswith(f"{KIND}_{config.split}/")]
            others = [key for key in own if key not in scores]
            registry.set_version_tags(version.name, version.number, {**scores, **marks}, others)
