"""Probe scores of several pretraining seeds: their means, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.config import TUNING_SPLIT
from dynaflip.platform.evaluation.encoder_entries import read_entry
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig

if TYPE_CHECKING:
    import polars as pl

    from dynaflip.eval.intervals.cluster_bootstrap import Interval

KIND = "probe_seeds"  # the run's tag `kind`
_CONDITIONS = {"none": "unperturbed", "one": "one factor", "all": "all factors"}
_NOTE = (
    "Means over pretraining seeds with 95 % intervals over seeds (Student's where there are fewer "
    "than six): how much another pretraining would differ. Each seed stands beside its own "
    "initialisation, and has a score and a report of its own. Holm's correction is over the rows."
)


def seeds_of(config: ProbeSuiteConfig) -> list[ProbeSuiteConfig]:
    """Settings of each pretraining seed; of a single encoder, these settings alone.

    Seed k of the encoder under test is compared with the k-th of the other encoders' URIs.

    Raises:
        UserError: another encoder has several URIs, and not one for each seed.
    """
    uris = [uri.strip() for uri in config.encoder.split(",") if uri.strip()]
    if len(uris) < 2:
        return [config]
    several = {text: read_entry(text).uris for text in config.encoders}
    for text, own in several.items():
        if len(own) not in (0, 1, len(uris)):
            raise UserError(
                f"encoders: {text} has {len(own)} pretraining seeds, and encoder {len(uris)}; give "
                "one for each, or one for all"
            )

    def entry(text: str, seed: int) -> str:
        own = several[text]
        return f"{text.partition('=')[0]}={own[seed]}" if len(own) > 1 else text

    return [
        replace(config, encoder=uri, encoders=tuple(entry(t, seed) for t in config.encoders))
        for seed, uri in enumerate(uris)
    ]


def report_seeds(config: ProbeSuiteConfig, outcomes: Sequence[Outcome]) -> Outcome:
    """Write the page of the seeds' means, and log it as a run that names the seeds' own.

    Args:
        config: of all seeds.
        outcomes: the score of each.
    """
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.report.html_page import write_report
    from dynaflip.platform.evaluation.report.log_report import log_report
    from dynaflip.platform.evaluation.report.tables import as_text
    from dynaflip.platform.evaluation.results_table import save_results
    from dynaflip.platform.paths import home, new_run_name

    sections, metrics = seed_sections([one.metrics for one in outcomes])
    table, name = as_text(sections), new_run_name(KIND)
    path = home() / "reports" / f"{name}.html"
    facts = {f"seed {k}": f"run {one.run_name}" for k, one in enumerate(outcomes)}
    notes = [_NOTE, *dict.fromkeys(note for one in outcomes for note in one.notes)]
    write_report(
        path,
        title=f"DynaFLIP: probe scores of {len(outcomes)} pretraining seeds",
        verdict=[],
        facts={"encoder": config.encoder, **facts, "perturbation": TUNING_SPLIT},
        sections=sections,
        notes=notes,
        images=[],
    )
    tags = {"kind": KIND, "encoder": config.encoder, "perturbation_split": TUNING_SPLIT}
    tags["seed_runs"] = ",".join(one.run_id for one in outcomes)
    run = tracking.open_run(config.experiment, name, tags)
    with tracking.ending(run):
        run.log_settings(config)
        run.log_metrics(metrics, step=0)
        run.log_text(table, "table.txt")
        log_report(run, path, [], [])
        results = save_results(_results(outcomes, name), path, run)
    return Outcome(
        table, name, run.run_id, notes, metrics, path, sections=sections, results=results
    )


def seed_sections(by_seed: Sequence[dict[str, float]]) -> tuple[list[Any], dict[str, float]]:
    """A table of means over seeds, and their metrics.

    Args:
        by_seed: metrics of each seed's score.
    """
    from dynaflip.eval.intervals.holm import family_verdicts
    from dynaflip.platform.evaluation.report.probe_verdicts import rate_of
    from dynaflip.platform.evaluation.report.tables import Section

    title = f"Means over {len(by_seed)} pretraining seeds, with intervals over seeds"
    columns = ("", "trained", "initial", "trained - initial", "verdict", "verdict, Holm")
    section, gaps = Section(title, columns=columns), {}
    metrics: dict[str, float] = {}
    for label, (trained, initial, sign) in _measures().items():
        if not all(key in one for one in by_seed for key in (trained, initial)):
            continue
        values = [[one[key] for one in by_seed] for key in (trained, initial)]
        means = [_mean(own) for own in values]
        gap = _mean([mine - theirs for mine, theirs in zip(*values, strict=True)])
        gaps[label] = rate_of(gap, sign)
        section.rows.append([label, *map(_text, means), _text(gap, "+")])
        for name, one in (("mean", means[0]), ("mean_difference", gap)):
            place = f"seeds/{trained}/{name}"
            metrics |= {place: one.value, f"{place}/low": one.low, f"{place}/high": one.high}
    together = family_verdicts({n: rate for n, rate in gaps.items() if rate is not None})
    for row in section.rows:
        rate = gaps[row[0]]
        assert rate is not None, "two seeds have an interval"
        row += [rate.verdict(), together[row[0]]]
    return [section], metrics


def _measures() -> dict[str, tuple[str, str, int]]:
    """Row → metric of the trained encoder and of its initialisation, and 1 where more is better."""
    from dynaflip.eval.labelled_frames import TARGETS, UNITS
    from dynaflip.eval.plots import TARGET_NAMES

    rows = {
        f"{TARGET_NAMES[target]}, {said}, {UNITS[target]}": (
            f"probe/{target}/{condition}/trained_{UNITS[target]}",
            f"probe/{target}/{condition}/initial_{UNITS[target]}",
            -1,
        )
        for target in TARGETS
        for condition, said in _CONDITIONS.items()
    }
    rows["flow explained, %"] = ("flow_probe/trained_percent", "flow_probe/initial_percent", 1)
    for scope in ("all", "task", "clip"):
        keys = [f"{who}/retrieval/{scope}/top1" for who in ("trained", "initial")]
        rows[f"retrieval, {scope}"] = (keys[0], keys[1], 1)
    return rows


def _mean(values: Sequence[float]) -> Interval:
    import numpy as np

    from dynaflip.eval.intervals.cluster_bootstrap import cluster_mean

    return cluster_mean(np.array(values), np.arange(len(values)))


def _text(interval: Interval, sign: str = "") -> str:
    return f"{interval.value:{sign}.3g} [{interval.low:{sign}.3g}, {interval.high:{sign}.3g}]"


def _results(outcomes: Sequence[Outcome], run_name: str) -> pl.DataFrame:
    """The seeds' own rows, with the seed's number."""
    import polars as pl

    parts = [
        pl.read_parquet(path).with_columns(
            pl.lit(seed).cast(pl.Int64).alias("seed"), pl.lit(run_name).alias("run")
        )
        for seed, one in enumerate(outcomes)
        if (path := one.results) is not None and Path(path).is_file()
    ]
    return pl.concat(parts)
