"""The suite ``probes``: a trained encoder beside its own initialisation.

Three measures: retrieval over held-out transitions, the share of their flow that a ridge on frozen
features explains, and linear probes from frozen features to positions, fitted on unperturbed
training recordings and tested unchanged on unperturbed and on ``dev``-perturbed episodes. Only
``dev`` is shown here: what is tuned against this score must never have seen ``test``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dynaflip.platform.evaluation.config import TUNING_SPLIT
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig
from dynaflip.platform.evaluation.suites.base import Suite

if TYPE_CHECKING:
    import polars as pl

    from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest
    from dynaflip.platform.evaluation.flow_comparison import FlowComparison
    from dynaflip.platform.evaluation.probe_scores import Pair, Probed
    from dynaflip.platform.evaluation.report.html_page import ReportImage
    from dynaflip.platform.evaluation.report.tables import Section


class Probes(Suite):
    """Score a registered encoder beside its own initialisation, in about a minute.

    Retrieval over held-out transitions, and linear probes from frozen features to positions,
    unperturbed and under the dev perturbations.
    """

    settings: ClassVar[type] = ProbeSuiteConfig

    def run(self, config: ProbeSuiteConfig) -> Outcome:
        """Score the encoder, or each of its pretraining seeds and their means, and log the scores.

        Raises:
            UserError: the encoder or the triplets do not exist, the recordings are of another
                environment, or the simulator cannot render.
        """
        from dynaflip.platform.evaluation.probe_seeds import report_seeds, seeds_of

        seeds = seeds_of(config)
        if len(seeds) == 1:
            return _score(config)
        outcomes = []
        for number, one in enumerate(seeds, 1):
            print(f"pretraining seed {number} of {len(seeds)}: {one.encoder}", flush=True)
            outcomes.append(_score(one))
        return report_seeds(config, outcomes)

    def find_finished(self, config: ProbeSuiteConfig) -> Outcome | None:
        """The newest score of these weights on these triplets with these settings, if any."""
        from dynaflip.platform.evaluation.probe_seeds import report_seeds, seeds_of
        from dynaflip.platform.evaluation.score_cache import find_score

        seeds = seeds_of(config)
        found = [outcome for one in seeds if (outcome := find_score(one)) is not None]
        if len(found) < len(seeds):
            return None
        return found[0] if len(seeds) == 1 else report_seeds(config, found)

    def dry_run(self, config: ProbeSuiteConfig, *, gpu_images_per_s: float) -> list[Section]:
        """Images to render and to encode, and the time on several machines."""
        from dynaflip.platform.evaluation.cost_probes import dry_run

        return dry_run(config, gpu_images_per_s=gpu_images_per_s)


def _score(config: ProbeSuiteConfig) -> Outcome:
    """Score one encoder and log the score."""
    from dynaflip.platform.evaluation.encoders_under_test import resolve_others
    from dynaflip.platform.evaluation.flow_comparison import compare_flow
    from dynaflip.platform.evaluation.probe_scores import (
        load_pair,
        score_positions,
        score_retrieval,
    )
    from dynaflip.platform.evaluation.recordings import check_recorded_in
    from dynaflip.platform.evaluation.retrieval_scopes import drop_meaningless
    from dynaflip.platform.evaluation.score_cache import resolved, score_digest
    from dynaflip.platform.tracking import registry
    from dynaflip.platform.triplets.report.cautions import small_set_lines
    from dynaflip.platform.triplets.schema import read_manifest

    folder = registry.resolve(config.encoder)
    config = resolved(config)
    assert config.triplets is not None
    manifest = read_manifest(config.triplets)
    reason = _why_no_probes(config)
    if reason is None:
        check_recorded_in(str(config.data), config.views.environment, "--data")
    others = resolve_others(config)
    digest = score_digest(config, folder, manifest, others)
    pair = load_pair(folder, config.backbone)
    notes = [f"note: {line}" for line in small_set_lines(manifest)]
    for line in notes:
        print(line, flush=True)
    if pair.info.get("data_digest") not in (None, manifest["digest"]):
        notes.append(
            "note: the encoder was trained on other triplets than the gallery is taken from; "
            "a recording in both is held out in both"
        )
    began = time.monotonic()
    retrieval = score_retrieval(pair, config)
    print(f"retrieval scored in {time.monotonic() - began:.0f} s")
    notes += drop_meaningless(retrieval, pair.info)
    began = time.monotonic()
    flow = compare_flow(pair.trained, pair.initial, others, config)
    print(f"flow probe scored in {time.monotonic() - began:.0f} s")
    if isinstance(flow, str):
        notes.append(f"the flow probe is not shown: {flow}")
    began = time.monotonic()
    probed = None
    if reason is None:
        probed = score_positions(pair, config, manifest, others)
        print(f"probes scored in {time.monotonic() - began:.0f} s")
    else:
        notes.append(f"probes skipped: {reason}")
        if others:
            notes.append("encoders: the others are compared by the flow probe alone")
    shown = None if isinstance(flow, str) else flow
    return _report(config, pair, others, retrieval, probed, shown, notes, digest)


def _report(
    config: ProbeSuiteConfig,
    pair: Pair,
    others: Sequence[EncoderUnderTest],
    retrieval: dict[str, dict[str, float]],
    probed: Probed | None,
    flow: FlowComparison | None,
    notes: list[str],
    digest: str,
) -> Outcome:
    """Write the report with its tables and images, and log the score."""
    from dynaflip.platform.evaluation.flow_comparison import NOTE
    from dynaflip.platform.evaluation.report import html_page, tables
    from dynaflip.platform.evaluation.report.encoder_table import encoder_section
    from dynaflip.platform.evaluation.report.probe_verdicts import verdict_section
    from dynaflip.platform.evaluation.score_cache import log_score
    from dynaflip.platform.paths import home, new_run_name

    trained, initial = retrieval["trained"], retrieval["initial"]
    sections = [
        tables.retrieval_section(trained, initial),
        tables.embedding_section(trained, initial),
    ]
    metrics = {f"{who}/{k}": v for who, scores in retrieval.items() for k, v in scores.items()}
    if flow is not None:
        sections.append(flow.section())
        metrics |= {key.replace(" ", "_"): v for key, v in flow.metrics().items()}
        notes = [*notes, NOTE]
    if probed is not None:
        sections += tables.probe_sections(probed.report)
        if others:
            sections += tables.further_sections(probed.report, [entry.name for entry in others])
            sections.append(encoder_section(others))
        sections.append(verdict_section(probed.report))
        metrics |= {key.replace(" ", "_"): v for key, v in probed.report.metrics().items()}
    images = _images(retrieval, probed)
    verdict = _verdict(config, probed)
    run_name = new_run_name("evaluate")
    path = home() / "reports" / f"{run_name}.html"
    html_page.write_report(
        path,
        title=f"DynaFLIP: score of {config.encoder}",
        verdict=verdict,
        facts=_facts(config, pair.info),
        sections=sections,
        notes=[*notes, *_explanations(probed is not None)],
        images=images,
    )
    table = tables.as_text(sections)
    for image in images:
        path.with_name(f"{run_name}-{image.name}").write_bytes(image.data)
    results = _results(config, others, retrieval, probed, flow, run_name)
    run_id = log_score(config, pair.info, digest, run_name, metrics, table, path, results, verdict)
    return Outcome(
        table,
        run_name,
        run_id,
        notes,
        metrics,
        path,
        sections=sections,
        results=path.with_suffix(".parquet"),
        verdict=verdict,
    )


def _verdict(config: ProbeSuiteConfig, probed: Probed | None) -> list[str]:
    """Sentences about the object's position, with one factor perturbed and with none."""
    from dynaflip.eval.expert_views import UNPERTURBED
    from dynaflip.eval.plots import ONE_FACTOR, condition_name
    from dynaflip.platform.evaluation.report import verdict

    if probed is None:
        return []
    subject, lines = verdict.subject_name(config.encoder), []
    for condition in (ONE_FACTOR, UNPERTURBED):
        if condition not in probed.report.conditions:
            continue
        gap = probed.report.difference("object", condition).error
        finding = verdict.finding_of(
            gap,
            where=f"{condition_name(condition)} on {TUNING_SPLIT}",
            subject=subject,
            other="initial",
            design=verdict.counted(gap.clusters, "episode"),
            scale=-1,
            caution="a probe, no policy",
        )
        lines.append(verdict.sentence(finding, verdict.position("object")))
    return lines


def _results(
    config: ProbeSuiteConfig,
    others: Sequence[EncoderUnderTest],
    retrieval: dict[str, dict[str, float]],
    probed: Probed | None,
    flow: FlowComparison | None,
    run_name: str,
) -> pl.DataFrame:
    from dynaflip.platform.evaluation.encoders_under_test import weights_digest
    from dynaflip.platform.evaluation.results_table import probe_results

    weights = {entry.name: entry.encoders[0] for entry in others}
    named = {name: (encoder.name, encoder.digest) for name, encoder in weights.items()}
    named["trained"] = (config.encoder, weights_digest(config.encoder))
    about = {
        "suite": "probes",
        "run": run_name,
        "split": TUNING_SPLIT,
        "environment": config.views.environment,
    }
    report = None if probed is None else probed.report
    table = probe_results(retrieval, report, named, config.views.level, **about)
    return table if flow is None else table.vstack(flow.results(named, **about))


_PROBES = "Error of linear probes by condition, with 95 % intervals: lower is better."
_RETRIEVAL = (
    "Share of transitions whose caption and flow are found, with 95 % intervals: higher is better; "
    "a black line is chance."
)


def _images(retrieval: dict[str, dict[str, float]], probed: Probed | None) -> list[ReportImage]:
    """Figures, and examples of what probes were tested on."""
    from dynaflip.eval import plots
    from dynaflip.platform.evaluation.report.html_page import ReportImage, jpeg_of, png_of
    from dynaflip.platform.evaluation.report.tables import INITIAL, TRAINED

    made: list[ReportImage] = []
    if probed is not None:
        bars = plots.probe_figure(probed.report, (TRAINED, INITIAL))
        made.append(ReportImage("probes.png", _PROBES, png_of(bars), "Probes"))
    figure = plots.retrieval_figure(retrieval)
    made.append(ReportImage("retrieval.png", _RETRIEVAL, png_of(figure), "Retrieval"))
    if probed is not None:
        sheet, columns = plots.contact_sheet(probed.views)
        caption = "Frames that probes were tested on: " + ", ".join(
            map(plots.condition_name, columns)
        )
        made.append(ReportImage("examples.jpg", caption, jpeg_of(sheet), "Frames"))
    return made


def _why_no_probes(config: ProbeSuiteConfig) -> str | None:
    from dynaflip.platform.evaluation.recordings import labels_missing

    if not config.probes.enabled:
        return "probes.enabled is false"
    assert config.data is not None
    return labels_missing(config.data)


def _facts(config: ProbeSuiteConfig, info: dict[str, Any]) -> dict[str, str]:
    from dynaflip.platform.provenance import git_commit

    return {
        "encoder": config.encoder,
        "pretraining run": str(info.get("run_name", "unknown")),
        "steps": str(info.get("steps", "unknown")),
        "flow": ", ".join(info.get("flow_sources", [])) or "unknown",
        "git commit of the encoder": str(info.get("git_commit", "unknown")),
        "git commit of this score": git_commit(),
        "triplets": str(config.triplets),
        "data set": str(config.data),
        "perturbation": f"{TUNING_SPLIT}, level {config.views.level}",
    }


def _explanations(probes: bool) -> list[str]:
    lines = [
        "Intervals are 95 %, by bootstrap over recordings or episodes. The initialisation is the "
        "same network before its first step."
    ]
    if probes:
        lines.append(
            "Probes are ridge regressions from frozen, standardised features to positions in the "
            "world frame, with an offset for each task; fitted on unperturbed training recordings "
            "alone, their penalty chosen by cross-validation over recordings. Rendered episodes "
            "have layouts and perturbations of the dev split; the same moments are shown under "
            "every condition."
        )
    return lines
