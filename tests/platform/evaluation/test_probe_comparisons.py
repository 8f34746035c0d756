"""Probes of several pretraining seeds, verdicts on several encoders, and what is no comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynaflip.errors import UserError
from dynaflip.eval.envs.registry import environment
from dynaflip.eval.intervals.cluster_bootstrap import Interval
from dynaflip.eval.labelled_frames import TARGETS
from dynaflip.eval.metrics.probe_report import Difference, ProbeReport
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig
from dynaflip.platform.evaluation.probe_seeds import seed_sections, seeds_of
from dynaflip.platform.evaluation.recordings import check_recorded_in
from dynaflip.platform.evaluation.report.probe_verdicts import verdict_section


def test_seed_k_stands_beside_the_kth_of_the_others() -> None:
    config = ProbeSuiteConfig(encoder="models:/a/1, models:/a/2", encoders=("b=x/1,x/2", "random"))
    first, second = seeds_of(config)
    assert (first.encoder, first.encoders) == ("models:/a/1", ("b=x/1", "random"))
    assert (second.encoder, second.encoders) == ("models:/a/2", ("b=x/2", "random"))
    assert seeds_of(first) == [first]
    with pytest.raises(UserError, match="has 3 pretraining seeds, and encoder 2"):
        seeds_of(ProbeSuiteConfig(encoder="1,2", encoders=("b=x/1,x/2,x/3",)))


def test_means_over_seeds_have_intervals_over_seeds() -> None:
    def scored(hand: float, flow: float) -> dict[str, float]:
        return {
            "probe/hand/none/trained_cm": hand,
            "probe/hand/none/initial_cm": 5.0,
            "flow_probe/trained_percent": flow,
            "flow_probe/initial_percent": 10.0,
        }

    (section,), metrics = seed_sections([scored(3.0, 9.0), scored(3.2, 13.0), scored(2.8, 11.0)])
    rows = {row[0].partition(",")[0]: row for row in section.rows}
    assert len(rows) == 2, "what was not scored is not shown"
    hand, flow = rows.values()
    # 0.2 / sqrt(3) of Student's 4.303.
    assert hand[1:4] == ["3 [2.5, 3.5]", "5 [5, 5]", "-2 [-2.5, -1.5]"]
    assert hand[4:] == ["better", "better"], "a lower error is better"
    assert flow[4:] == ["not distinguishable"] * 2
    assert metrics["seeds/flow_probe/trained_percent/mean"] == 11


def test_verdicts_of_probes_hold_together() -> None:
    def gap(against: str, condition: str, low: float, high: float) -> Difference:
        error = Interval((low + high) / 2, low, high, 12)
        return Difference("hand", condition, "trained", against, error)

    clear = gap("initial", "none", -3, -2)
    narrow = [gap("other", name, -2, -0.01) for name in ("none", "all")]
    worse, alone = gap("third", "none", 1, 2), gap("one", "none", float("nan"), float("nan"))
    report = ProbeReport([], [clear, *narrow, worse, alone], {}, ["none", "all"])
    rows = verdict_section(report).rows
    assert [row[4] for row in rows] == ["better", "better", "better", "worse", "one episode"]
    assert [row[5] for row in rows] == [
        "better", "not distinguishable", "not distinguishable", "worse", "-",
    ]  # fmt: skip
    assert "hand" in TARGETS


def test_recordings_of_another_environment_or_version_are_refused(tmp_path: Path) -> None:
    about = tmp_path / "meta" / "dynaflip.json"

    def recorded(**recipe: object) -> None:
        about.parent.mkdir(exist_ok=True)
        about.write_text(json.dumps({"settings": {}, **recipe}))

    check_recorded_in(str(tmp_path), "metaworld", "--data")  # by others, who say nothing
    recorded()  # before there was a choice, and before versions were recorded
    check_recorded_in(str(tmp_path), "metaworld", "--data")
    with pytest.raises(UserError, match=r"was recorded in metaworld, .* are rendered in ogbench"):
        check_recorded_in(str(tmp_path), "ogbench", "--data")
    recorded(settings={"environment": "ogbench"})
    with pytest.raises(
        UserError, match=r"recorded in ogbench, .* set views.environment to ogbench"
    ):
        check_recorded_in(str(tmp_path), "metaworld", "--data")
    now = environment("metaworld").version()
    recorded(simulator=now)
    check_recorded_in(str(tmp_path), "metaworld", "--data")
    recorded(simulator="metaworld 0.1")
    with pytest.raises(UserError, match=r"recorded in metaworld 0.1, and views are rendered in"):
        check_recorded_in(str(tmp_path), "metaworld", "--data")


@pytest.mark.integration
def test_two_seeds_are_scored_and_their_means_logged(home: Path, tmp_path: Path) -> None:
    from synthetic_triplets import write_triplets
    from tiny_rollouts import encoder_folder

    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.flow_probe_config import FlowProbeConfig
    from dynaflip.platform.evaluation.probe_config import ProbesConfig
    from dynaflip.platform.evaluation.suites.probes import Probes

    folders = [str(encoder_folder(tmp_path / f"encoder-{seed}", seed=seed)) for seed in (0, 1)]
    config = ProbeSuiteConfig(
        encoder=",".join(folders),
        triplets=str(write_triplets(tmp_path / "triplets")),
        gallery_size=2,
        flow_probe=FlowProbeConfig(windows_per_clip=1, clips=5, heldout_clips=5),
        probes=ProbesConfig(enabled=False),
    )
    outcome = Probes().run(config)
    runs = tracking.runs_with_tags({"kind": "evaluate"})
    assert {run.tags["encoder"] for run in runs} == set(folders)
    (means,) = tracking.runs_with_tags({"kind": "probe_seeds"})
    assert set(means.tags["seed_runs"].split(",")) == {run.run_id for run in runs}
    row = outcome.sections[0].rows[-1]
    # Nobody trained these weights: they are their own initialisation.
    assert row[3] == "+0 [+0, +0]"
    assert outcome.report is not None
    assert "Means over 2 pretraining seeds" in outcome.report.read_text()
    # The second start finds both scores.
    again = Probes().find_finished(config)
    assert again is not None
    assert again.metrics == outcome.metrics
