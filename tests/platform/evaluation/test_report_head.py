"""The head of a report: an honest sentence, a figure of the tables' numbers, one file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dynaflip.eval.plots import gain_figure, gain_words, heat_figure
from dynaflip.platform.evaluation.report.gains import heat_maps, success_gains, verdict_lines
from dynaflip.platform.evaluation.report.html_page import (
    IMAGE_BUDGET_BYTES,
    ReportImage,
    png_of,
    write_report,
)
from dynaflip.platform.evaluation.report.rollout_tables import headline_sections
from dynaflip.platform.evaluation.report.tables import Section
from dynaflip.platform.evaluation.report.verdict import (
    IMITATION,
    SUCCESS,
    Finding,
    sentence,
    subject_name,
)
from dynaflip.platform.evaluation.results import Successes

CONDITIONS = (("none", 0), ("camera", 1), ("camera", 3), ("light_tint", 1), ("light_tint", 3))


def encoders(rates: dict[str, float], seeds: int = 6, tasks: int = 5) -> dict[str, Successes]:
    """Successes of some mean rates, on the same initial states."""
    luck = np.random.default_rng(0).random((seeds, tasks, len(CONDITIONS), 40))
    names = tuple(f"task-{i}" for i in range(tasks))
    return {n: Successes((luck < r).astype(float), names, CONDITIONS) for n, r in rates.items()}


def lines(by_name: dict[str, Successes]) -> list[str]:
    return verdict_lines(by_name, "trained", subject="dynaflip/7", split="test")


def test_a_verdict_says_what_the_interval_says() -> None:
    better = lines(encoders({"trained": 0.58, "initialization": 0.5, "imagenet": 0.56}))[0]
    assert re.fullmatch(
        r"Out of distribution on test, dynaflip/7 succeeds \d points more often than its "
        r"initialisation \[\d+, \d+\] \(6 policies, 5 tasks; holds with Holm's correction for 2 "
        r"comparisons\): better\.",
        better,
    )
    worse = lines(encoders({"trained": 0.5, "initialization": 0.58}))[0]
    assert "points less often than its initialisation [" in worse
    assert worse.endswith("(6 policies, 5 tasks): worse.")
    same = lines(encoders({"trained": 0.5, "random": 0.5}, seeds=1, tasks=1))
    assert same[0].startswith("Not distinguishable: out of distribution on test, dynaflip/7 ")
    assert "succeeds as often as random weights" in same[0]
    assert "1 policy, 1 task; one policy each" in same[0]
    assert same[1].startswith("Not distinguishable: in distribution")
    (alone, *_) = lines(encoders({"trained": 0.5, "scripted expert": 1.0}))
    assert re.fullmatch(
        r"Out of distribution on test, dynaflip/7 succeeds in 5\d % \[\d+, \d+\] of the episodes "
        r"\(6 policies, 5 tasks\); nothing to compare with\.",
        alone,
    )
    imitated = verdict_lines(
        encoders({"trained": 0.5}), "trained", subject="a", split="dev", wording=IMITATION
    )
    assert "a reaches 5" in imitated[0]
    assert "(100 % is the expert's actions) (6 policies" in imitated[0]


def test_numbers_keep_the_digits_that_tell_and_the_verdict_its_correction() -> None:
    near = Finding("on dev", "a", "b", 0.44, 0.04, 0.83, "2 policies", "not distinguishable", 4)
    assert sentence(near, SUCCESS) == (
        "On dev, a succeeds 0.44 points more often than b [0.04, 0.83] (2 policies; not with "
        "Holm's correction for 4 comparisons): better."
    )
    wide = Finding("on dev", "a", "b", -2.0, -8.0, 4.0, "2 policies")
    assert "2 points less often than b [-8, +4]" in sentence(wide, SUCCESS)
    unknown = Finding("on dev", "a", "b", 3.0, float("nan"), float("nan"), "1 episode")
    assert sentence(unknown, SUCCESS).startswith("Not known: on dev")
    assert subject_name("models:/dynaflip-encoder/7") == "dynaflip-encoder/7"
    assert subject_name("a/b/mine, a/b/other") == "mine and 1 more seed"


def test_the_figure_shows_the_numbers_of_the_tables() -> None:
    by_name = encoders({"trained": 0.6, "initialization": 0.5, "imagenet": 0.62})
    gains = {(gain.row, gain.baseline): gain for gain in success_gains(by_name, "trained")}
    assert [row for row, _ in gains][::2] == [
        "in distribution", "out of distribution: mean of the factors", "camera", "light tint",
    ]  # fmt: skip
    tables = headline_sections(by_name, by_name, "trained")
    (row,) = [r for r in tables[1].rows if r[0] == "initialization"]
    shown = gains["out of distribution: mean of the factors", "its initialisation"]
    assert row[3] == f"{shown.value:+.1f} [{shown.low:+.1f}, {shown.high:+.1f}]"
    assert "its initialisation" in gain_words(list(gains.values()), "points")
    own, gap = heat_maps(by_name, "trained")
    assert own.columns == ("none", "level 1", "level 3")
    assert own.values[1, 2] == 100 * by_name["trained"].values[:, :, 4].mean()
    np.testing.assert_allclose(
        gap.values, own.values - heat_maps(by_name, "initialization")[0].values
    )
    one_level = {
        name: Successes(one.values[:, :, [0, 2]], one.tasks, (CONDITIONS[0], CONDITIONS[2]))
        for name, one in by_name.items()
    }
    (by_encoder,) = heat_maps(one_level, "trained")
    assert by_encoder.columns == tuple(by_name)


def test_a_report_is_one_file_with_words_for_every_image(tmp_path: Path) -> None:
    by_name = encoders({"trained": 0.6, "initialization": 0.5})
    gains = success_gains(by_name, "trained")
    figures = [
        ReportImage("gains.png", "Gain", png_of(gain_figure(gains, "points", "Gain")), "Gain",
                    gain_words(gains, "points")),
        ReportImage("heat_map.png", "Heat", png_of(heat_figure(heat_maps(by_name, "trained")))),
        ReportImage("a.jpg", "a failure", b"\xff\xd8\xff", "Failures", tile=True),
        ReportImage("b.webp", "side by side", b"RIFF", "Rollouts", columns=("a: solved", "b")),
        ReportImage("c.jpg", "too large", bytes(IMAGE_BUDGET_BYTES)),
    ]  # fmt: skip
    path = tmp_path / "reports" / "r.html"
    write_report(
        path,
        title="A <title>",
        verdict=["First & foremost.", "Second."],
        facts={"split": "test"},
        sections=[Section("Success", [["a", "<b>"]], ("", "success %"))],
        notes=["a note"],
        images=figures,
    )
    page = path.read_text()
    assert not re.search(r"https?:|//\w|<script|<link|@import", re.sub(r"base64,[^\"]*", "", page))
    tags = re.findall(r"<img [^>]*>", page)
    assert len(tags) == 4
    assert all(re.search(r'alt="[^"]+"', tag) for tag in tags)
    assert "1 more images are in the MLflow run" in page
    order = ["First &amp; foremost.", "Second.", "<img", "a note", "&lt;b&gt;", "split"]
    assert [page.index(part) for part in order] == sorted(page.index(part) for part in order)
    for kind in ("png", "jpeg", "webp"):
        assert f"data:image/{kind};base64," in page


def test_a_figure_of_nothing_compared_is_not_drawn() -> None:
    alone = encoders({"trained": 0.5})
    assert success_gains(alone, "trained") == []
    assert len(heat_maps(alone, "trained")) == 1
    with pytest.raises(KeyError):
        success_gains(alone, "nothing")
