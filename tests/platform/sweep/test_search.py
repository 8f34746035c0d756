"""The search's own path (Tune, study, MLflow) with trials that compute instead of train."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from recovery import descendants
from tiny_sweep import STEPS, bowl, computed, opened, report, send_by_value

from dynaflip.errors import StoreError, UserError
from dynaflip.platform.sweep.consistency import inconsistencies
from dynaflip.platform.sweep.ledger import Assignment, Interrupted
from dynaflip.platform.sweep.opened_sweep import open_to_read
from dynaflip.platform.sweep.show import show
from dynaflip.platform.sweep.stages import run_with
from dynaflip.platform.sweep.study import SEARCH, own_trials
from dynaflip.platform.tracking import child_runs

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def sent_by_value(ray_cluster: None) -> None:
    send_by_value(sys.modules[__name__])


def staged(assignment: Assignment) -> None:
    """Better with every step; a third of the trials is out of luck."""
    from ray import tune

    if assignment.number == 2:
        tune.report({"step": 1, "final": True, "failed": "diverged: step 1: loss not finite"})
        return
    if assignment.number == 3:
        raise MemoryError("CUDA out of memory")
    if assignment.number == 4:
        os._exit(1)
    for step in (1, 3):
        report(step, bowl(assignment.values) + 1 / step)
    report(STEPS, bowl(assignment.values), final=True)


def test_failures_are_recorded_with_their_reason_and_end_nothing(home: Path) -> None:
    sweep = opened("failing", trials=9, scheduler="asha", max_failures=0)
    run_with(sweep, SEARCH, 9, staged, reuse=True)
    trials = own_trials(sweep.study(SEARCH))
    assert trials[0].params == {"objective.volume": 1.0, "objective.flow": 1.0}
    states = [t.state.name for t in trials]
    assert states[2:5] == ["FAIL"] * 3
    assert states[0] == "COMPLETE"  # the paper's weights are never stopped early
    assert states.count("PRUNED") >= 2
    assert trials[2].user_attrs["reason"] == "diverged: step 1: loss not finite"
    assert trials[3].user_attrs["reason"] == "MemoryError: CUDA out of memory"
    assert trials[4].user_attrs["reason"] == "its process died (1 times)"
    assert inconsistencies("failing") == []
    text = show("failing")
    assert "trial-002 failed: diverged" in text
    assert text.count("pruned") == 1 + states.count("PRUNED")
    assert "sweep failing: stopped; continue with: python jobs/sweep.py --resume failing" in text
    runs = child_runs(sweep.parent)
    assert sorted(r.tags["sweep.state"] for r in runs) == sorted(s.lower() for s in states)
    # What does not agree is found.
    runs[0].run.end("KILLED")
    (found,) = inconsistencies("failing")
    assert "KILLED in MLflow" in found


@pytest.mark.integration
def test_an_outage_ends_the_sweep_and_fails_no_trial(home: Path) -> None:
    mended = home / "mended"
    mended_path = str(mended)

    def trial(assignment: Assignment) -> None:
        if assignment.number == 1 and not Path(mended_path).exists():
            raise StoreError("cannot write s3://bucket/run: disk quota exceeded")
        computed(assignment)

    sweep = opened("outage", trials=3, concurrent=1)
    with pytest.raises(
        Interrupted, match=r"quota exceeded; when that is fixed, continue with: .*outage"
    ):
        run_with(sweep, SEARCH, 3, trial)
    states = [t.state.name for t in own_trials(sweep.study(SEARCH))]
    assert states == ["COMPLETE", "RUNNING"]
    mended.touch()
    run_with(open_to_read("outage", "test"), SEARCH, 3, trial)
    states = [t.state.name for t in own_trials(sweep.study(SEARCH))]
    assert states == ["COMPLETE"] * 3


def test_a_database_that_is_shared_keeps_the_studies_of_others(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    opened("mine", storage=storage)
    monkeypatch.setenv("DYNAFLIP_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=f"a study mine that was made from {home}"):
        opened("mine", storage=storage)
    monkeypatch.setenv("DYNAFLIP_HOME", str(home))
    opened("mine", storage=storage)  # what a killed start of one's own left is no obstacle


@pytest.mark.slow
def test_a_pareto_front_and_another_sweeps_history(home: Path) -> None:
    both = ("perturbed", "unperturbed")
    first = opened("first", trials=4, objectives=both)
    run_with(first, SEARCH, 4, computed, reuse=True)
    assert "* on the Pareto front" in show("first")
    # What one gains the other loses: all trials are on the front.
    assert show("first").count("\n*  trial") == 4
    plain = opened("plain", trials=3)
    run_with(plain, SEARCH, 3, computed, reuse=True)
    warm = opened("warm", trials=2, warm_start="plain")
    run_with(warm, SEARCH, 2, computed, reuse=True)
    assert len(warm.study(SEARCH).trials) == 5
    assert [t.user_attrs["name"] for t in own_trials(warm.study(SEARCH))] == [
        "trial-000",
        "trial-001",
    ]
    assert inconsistencies("warm") == []
    with pytest.raises(UserError, match="has no study nowhere"):
        opened("other", warm_start="nowhere")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_tpe_beats_random_search_at_equal_budget(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best: dict[str, list[float]] = {"tpe": [], "random": []}
    for seed in range(20):
        for sampler, found in best.items():
            name = f"{sampler}-{seed}"
            sweep = opened(name, trials=25, sampler=sampler, seed=seed)
            run_with(sweep, SEARCH, 25, computed, reuse=True)
            found.append(sweep.study(SEARCH).best_value)
    medians = {sampler: float(np.median(found)) for sampler, found in best.items()}
    with capsys.disabled():
        print(f"\nmedian best of 25 trials over 20 seeds: {medians}")
    assert medians["tpe"] < medians["random"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_quick_trials_leave_nothing_behind(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(trials: int, name: str) -> tuple[int, int, float]:
        sweep = opened(name, trials=trials)
        run_with(sweep, SEARCH, trials, computed, reuse=True)
        gc.collect()
        actors = [c for c in descendants(os.getpid()).values() if "ray::ImplicitFunc" in c]
        return len(actors), len(os.listdir("/proc/self/fd")), resident_mb()

    before = measured(20, "warm-up")
    after = measured(200, "long")
    with capsys.disabled():
        print(f"\n(actors, file handles, MB) after 20 and 220 trials: {before}, {after}")
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 5
    assert after[2] <= before[2] + 40  # 0.2 MB a trial


def resident_mb() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
