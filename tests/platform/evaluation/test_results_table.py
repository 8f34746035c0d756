"""Tables of an evaluation: tidy results, what is not shown as a score, and terminals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from tiny_rollouts import tiny

from dynaflip.eval.intervals.hierarchical_bootstrap import success_rate
from dynaflip.platform.evaluation.demonstrations import DemonstrationSet
from dynaflip.platform.evaluation.encoders_under_test import Encoder, EncoderUnderTest
from dynaflip.platform.evaluation.job_result import JobResult
from dynaflip.platform.evaluation.plan import plan_jobs
from dynaflip.platform.evaluation.report.tables import Section, as_text, retrieval_section
from dynaflip.platform.evaluation.report.terminal import show_sections
from dynaflip.platform.evaluation.results import episode_table
from dynaflip.platform.evaluation.results_table import (
    SCHEMA,
    policy_results,
    probe_results,
    state_interval,
)
from dynaflip.platform.evaluation.retrieval_scopes import drop_meaningless

ABOUT = {"suite": "rollouts", "run": "r", "split": "dev", "environment": "metaworld"}


def test_a_row_is_an_encoder_task_factor_level_seed_and_metric() -> None:
    tested = [
        EncoderUnderTest("trained", (Encoder("a", "/a", "da"), Encoder("b", "/b", "db"))),
        EncoderUnderTest("other", (Encoder("maker/model@1", "/c", "dc"),)),
    ]
    config = tiny(Path("x"), episodes=4, levels=(1, 3))
    shown = {"reach-v3": DemonstrationSet("reach-v3", "/x", "d", 25)}
    jobs = plan_jobs(config, tested, shown)
    rng = np.random.default_rng(0)
    results = [JobResult(list(rng.random(4) < 0.5), [False] * 4, [9] * 4, 1.0, None) for _ in jobs]
    table = episode_table(jobs, results)
    frame = policy_results(table, jobs, ("success_ever", "success_last"), **ABOUT)
    assert frame.schema == SCHEMA
    # 2 encoders x 2 seeds x (unperturbed and 2 levels of a factor) x 2 metrics.
    assert len(frame) == 2 * 2 * 3 * 2
    keys = ["encoder", "task", "factor", "level", "seed", "metric"]
    assert not frame.select(keys).is_duplicated().any()
    assert set(frame["weights"]) == {"a", "b", "maker/model@1"}
    never = frame.filter(pl.col("metric") == "success_last")
    assert set(never["value"]) == {0.0}
    assert set(never["low"]) == {0.0}
    assert never["high"].min() > 0.5  # of four states none was solved: many others may be
    # The mean over seeds is the table's.
    ever = frame.filter(pl.col("metric") == "success_ever", pl.col("factor") == "none")
    means = ever.group_by("encoder").agg(pl.col("value").mean())
    unperturbed = table.filter(pl.col("factor") == "none")
    expected = unperturbed.group_by("arm").agg(pl.col("success_ever").mean())
    assert dict(means.iter_rows()) == pytest.approx(dict(expected.iter_rows()))


def test_intervals_of_a_policy_are_those_of_the_bootstrap_without_its_noise() -> None:
    for values in (np.array([1.0, 0, 0, 1, 1, 0, 1, 1]), np.ones(6), np.zeros(3)):
        rate = success_rate(values.reshape(1, 1, 1, -1), resamples=40000)
        assert state_interval(values) == pytest.approx((rate.low, rate.high), abs=0.01)
    assert state_interval(np.ones(1)) == (None, None)


def retrieval_metrics(ceiling: float) -> dict[str, dict[str, float]]:
    metrics = {"gallery/size": 12.0, "retrieval/clip/ceiling": ceiling}
    for scope, chance in {"all": 1 / 12, "clip": 1 / 3}.items():
        values = {"top1": 0.5, "low": 0.4, "high": 0.6, "chance": chance, "queries": 12.0}
        metrics |= {f"retrieval/{scope}/{key}": value for key, value in values.items()}
    return {"trained": metrics, "initial": dict(metrics)}


def test_retrieval_among_windows_that_nothing_tells_apart_is_no_score() -> None:
    found = retrieval_metrics(ceiling=1 / 3)
    (note,) = drop_meaningless(found, {})
    assert note.startswith("retrieval, same clip, is not shown: ")
    assert "chance by construction" in note
    (row,) = [r for r in retrieval_section(*found.values()).rows if r[0] == "same clip"]
    assert row[1:] == ["-"] * 4
    rows = probe_results(found, None, {"trained": ("uri", "d")}, 3, **ABOUT)
    assert set(rows["metric"]) == {"retrieval/all/top1"}
    assert rows.filter(pl.col("encoder") == "trained")["weights"].item() == "uri"
    # It is a score where some windows are apart, or where pretraining told them all apart.
    kept: list[dict[str, Any]] = [{}, {"config": {"objective": {"overlapping_negatives": "keep"}}}]
    for ceiling, info in zip((0.5, 1 / 3), kept, strict=True):
        found = retrieval_metrics(ceiling)
        assert drop_meaningless(found, info) == []
        assert "retrieval/clip/top1" in found["trained"]


def test_a_terminal_gets_tables_and_a_file_plain_text() -> None:
    section = Section("Success %", columns=("", "success %", "verdict"))
    section.rows.append(["a", "50.0 [40.0, 60.0]", "better"])
    text = as_text([section])
    printed = io.StringIO()
    console = Console(file=printed, markup=False, highlight=False)
    show_sections([section], text, console=console)
    assert printed.getvalue() == f"\n{text}\n\n"
    terminal = io.StringIO()
    console = Console(
        file=terminal, force_terminal=True, width=100, markup=False, highlight=False,
        color_system="standard",
    )  # fmt: skip
    show_sections([section], text, console=console)
    assert "50.0 [40.0, 60.0]" in terminal.getvalue()
    assert "\x1b[32m better" in terminal.getvalue()
    assert "Success %" in terminal.getvalue()
    # Where it does not fit, columns go below, beside their rows' names, and no cell breaks.
    narrow = io.StringIO()
    console = Console(
        file=narrow, force_terminal=True, width=30, markup=False, highlight=False,
        color_system=None,
    )  # fmt: skip
    show_sections([section], text, console=console)
    lines = [line.split() for line in narrow.getvalue().splitlines()]
    assert ["a", "50.0", "[40.0,", "60.0]"] in lines
    assert ["a", "better"] in lines
