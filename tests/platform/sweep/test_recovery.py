"""SIGKILL at any moment, of anything: no finished trial is repeated and all records agree."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from checkout import REPOSITORY
from labelled_frames import write_labelled_frames
from recovery import WORKER, Process, kill, start, until

from dynaflip.platform.sweep.consistency import inconsistencies
from dynaflip.platform.sweep.opened_sweep import open_to_read
from dynaflip.platform.sweep.study import CONFIRM, SEARCH, own_trials
from dynaflip.platform.tracking import registry

pytestmark = pytest.mark.ray
INTERVAL = 5  # steps between checkpoints


def words_for(
    name: str, triplets: Path, folder: Path, *, trials: int, steps: int, confirm: int = 0
) -> list[str]:
    settings = {
        "--config": REPOSITORY / "tests" / "tiny.yaml",
        "--triplets": triplets,
        "--sweep.score.frames": write_labelled_frames(folder / "frames.npz"),
        "--train.steps": steps,
        "--train.checkpoint_every_steps": INTERVAL,
        "--name": name,
        "--trials": trials,
        "--confirm": confirm,
    }
    words = [str(word) for pair in settings.items() for word in pair]
    return [*words, "--search", "objective.volume=log(0.1,10)", "objective.flow=uniform(0,2)"]


def run_with_kills(
    home: Path, words: Sequence[str], name: str, kinds: Sequence[str], seed: int
) -> Process:
    """Run a sweep to its end, killing something of each kind on the way."""
    moments, log = random.Random(seed), home.parent / "sweep.log"
    process = start(home, words, log)
    pending = list(kinds)
    while pending:
        # While its processes start, or while it trains.
        starting = moments.random() < 0.25
        seen = 0 if starting else steps_said(home, name)

        def ready(process: Process = process, starting: bool = starting, seen: int = seen) -> bool:
            found = process.find(WORKER) if starting else steps_said(home, name) > seen
            return bool(found) or process.popen.poll() is not None

        until(ready, 240, "a trial")
        assert process.popen.poll() is None, f"ended before {pending}:\n{process.said()}"
        time.sleep(moments.uniform(0, 3))
        if kill(process, pending[0]) and pending.pop(0) != "worker":
            process = start(home, ["--resume", name], log)
    assert process.popen.wait(timeout=400) == 0, process.said()
    return process


def steps_said(home: Path, name: str, trial: str = "") -> int:
    """Lines of progress of all trials whose names begin so."""
    logs = (home / "sweeps" / name / "trials").glob(f"{trial}*/progress.log")
    return sum(len(log.read_text().splitlines()) for log in logs)


def assert_recovered(name: str, trials: int, kills: int) -> None:
    assert inconsistencies(name) == []
    sweep = open_to_read(name, "test")
    found = own_trials(sweep.study(SEARCH))
    assert [t.state.name for t in found] == ["COMPLETE"] * trials, process_reasons(found)
    trained = [steps_trained(sweep.folder() / "tune", t.user_attrs["name"]) for t in found]
    again = sum(max(0, times - 1) for steps in trained for times in steps.values())
    assert again <= kills * INTERVAL
    # A finished trial that was run again would have trained its last step twice.
    assert [steps[sweep.facts.total_steps] for steps in trained] == [1] * trials


def steps_trained(sessions: Path, name: str) -> dict[int, int]:
    """Step → how often it was trained, by all that Tune was told.

    A run that goes on repeats its last reports word for word; a step trained again has another
    speed.
    """
    speeds: dict[int, set[float]] = {}
    for path in sessions.glob(f"*/{name}/result.json"):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            if "speed/steps_per_s" in result:
                speeds.setdefault(result["step"], set()).add(result["speed/steps_per_s"])
    return {step: len(found) for step, found in speeds.items()}


def process_reasons(trials: list) -> list[str]:
    return [t.user_attrs.get("reason", "") for t in trials]


@pytest.mark.integration
def test_computed_trials_survive_one_death_of_each_kind(home: Path, tmp_path: Path) -> None:
    script, trial = Path(__file__).with_name("computed_sweep.py"), "ray::ImplicitFunc"
    words, log = ["killed", "1"], tmp_path / "sweep.log"
    process = start(home, words, log, script)
    for kind in ("worker", "driver", "node"):
        seen = steps_told(home, "killed")

        def computes(process: Process = process, seen: int = seen) -> bool:
            return steps_told(home, "killed") > seen or process.popen.poll() is not None

        until(computes, 240, "a report")
        assert kill(process, kind, trial), process.said()
        if kind != "worker":
            process = start(home, words, log, script)
    assert process.popen.wait(timeout=240) == 0, process.said()
    assert inconsistencies("killed") == []
    found = own_trials(open_to_read("killed", "test").study(SEARCH))
    assert [t.state.name for t in found] == ["COMPLETE"], process_reasons(found)


def steps_told(home: Path, name: str) -> int:
    """Reports of all trials that have reached Tune's files."""
    files = (home / "sweeps" / name / "tune").glob("*/trial-*/result.json")
    return sum(len(file.read_text().splitlines()) for file in files)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_a_sweep_survives_the_death_of_worker_driver_and_node(
    home: Path, triplet_folder: Path, tmp_path: Path
) -> None:
    words = words_for("killed", triplet_folder, tmp_path, trials=1, steps=40, confirm=1)
    words += ["--confirm-seeds", "2"]
    log = tmp_path / "sweep.log"
    process = start(home, words, log)
    for kind, trial in [("worker", "trial-"), ("driver", "trial-"), ("node", f"{CONFIRM}-")]:
        seen = steps_said(home, "killed", trial)

        def trains(trial: str = trial, seen: int = seen, process: Process = process) -> bool:
            return steps_said(home, "killed", trial) > seen or process.popen.poll() is not None

        until(trains, 240, f"a training of {trial}")
        assert kill(process, kind), process.said()
        if kind != "worker":
            process = start(home, ["--resume", "killed"], log)
    assert process.popen.wait(timeout=400) == 0, process.said()
    assert_recovered("killed", 1, kills=3)
    confirmed = own_trials(open_to_read("killed", "test").study(CONFIRM))
    assert [t.state.name for t in confirmed] == ["COMPLETE"] * 2, process_reasons(confirmed)
    assert {t.user_attrs["seed"] for t in confirmed} == {1, 2}


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_a_sweep_survives_deaths_at_random_moments(
    home: Path, triplet_folder: Path, tmp_path: Path, seed: int
) -> None:
    name = f"chaos-{seed}"
    kinds = ["worker", "driver", "node"]
    random.Random(seed).shuffle(kinds)
    words = words_for(name, triplet_folder, tmp_path, trials=3, steps=60)
    words += ["--concurrent", "2"]
    run_with_kills(home, words, name, kinds, seed)
    assert_recovered(name, 3, kills=3)


@pytest.mark.slow
def test_two_sweeps_that_end_at_once_both_get_their_versions(
    home: Path, triplet_folder: Path, tmp_path: Path
) -> None:
    names = ["left", "right"]
    begun = []
    for name in names:
        words = words_for(name, triplet_folder, tmp_path / name, trials=1, steps=10)
        begun.append(start(home, [*words, "--promote", "always"], tmp_path / f"{name}.log"))
    for process in begun:
        assert process.popen.wait(timeout=400) == 0, process.said()
    model = registry.DEFAULT_NAME
    assert {registry.version_tags(model, version)["sweep"] for version in "12"} == set(names)
    assert registry.version_of_alias(model, "candidate") in {"1", "2"}
    assert inconsistencies("left") == inconsistencies("right") == []
