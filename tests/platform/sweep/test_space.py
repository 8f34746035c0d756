"""What can be searched, and how a mistake is refused."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from checkout import REPOSITORY

from dynaflip.errors import UserError
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.platform.evaluation.flow_probe_config import FlowProbeConfig
from dynaflip.platform.sweep.config import ScoreConfig, SweepConfig, SweepJobConfig, pretrain_part
from dynaflip.platform.sweep.resources import DRIVER_CPUS, fit_trials, placed
from dynaflip.platform.sweep.run import with_changes
from dynaflip.platform.sweep.space import paper_values, parse_space, short_names, with_values
from dynaflip.platform.sweep.study import sampler, score_steps
from dynaflip.platform.training.backends.ray_train import scaling_of
from dynaflip.platform.training.config import PretrainConfig, TrainConfig

SPECS = (
    "objective.volume=log(0.1,10)",
    "objective.contrastive=uniform(0.2,2)",
    "data.batch_size=int(4,32)",
    "model.image.train_batchnorm=choice(true,false)",
)


def test_a_space_is_read_as_it_is_typed() -> None:
    space = parse_space(SPECS)
    assert [d.kind for d in space] == ["log", "uniform", "int", "choice"]
    assert space[3].choices == (True, False)
    assert parse_space([d.text() for d in space]) == space
    assert short_names(space) == ["volume", "contrastive", "batch_size", "train_batchnorm"]
    assert short_names(parse_space(["objective.flow=log(1,2)", "model.flow.layers=int(1,2)"]))


@pytest.mark.parametrize(
    "spec",
    [
        "optimizer.lr=choice(1e-3,0.1234567)",
        "optimizer.lr=log(1.2345678e-05,0.1)",
        "data.batch_size=int(2,1234567)",
        "train.checkpoint_storage=choice(null,/mnt/other)",
    ],
)
def test_a_space_reads_back_as_the_very_same_numbers(spec: str) -> None:
    (dimension,) = parse_space([spec])
    assert parse_space([dimension.text()]) == (dimension,)
    assert not any(choice == "1e-3" for choice in dimension.choices)


def test_values_come_from_the_range_and_fit_the_settings() -> None:
    space = parse_space(SPECS)
    study = optuna.create_study(sampler=sampler(SweepConfig(sampler="random"), 1))
    for _ in range(20):
        trial = study.ask()
        values = {d.key: d.suggest(trial) for d in space}
        settings = with_values(PretrainConfig(), values)
        assert 0.1 <= settings.objective.volume <= 10
        assert isinstance(settings.data.batch_size, int)
        assert 4 <= settings.data.batch_size <= 32
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        with_values(PretrainConfig(), {"data.batch_size": 1})


def test_trial_0_has_the_papers_weights_and_the_users_other_settings() -> None:
    base = PretrainConfig(
        objective=dataclasses.replace(ObjectiveConfig(), volume=7.0),
        data=dataclasses.replace(PretrainConfig().data, batch_size=9),
    )
    values = paper_values(parse_space(SPECS), base)
    assert values["objective.volume"] == ObjectiveConfig().volume
    assert values["data.batch_size"] == 9
    with pytest.raises(UserError, match="trial 0 has 1, which is not among the choices"):
        paper_values(parse_space(["objective.volume=choice(0.5,2)"]), base)


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([], "nothing to search"),
        (["objective.volum=log(0.1,10)"], "no setting objective.volum; did you mean"),
        (["objective.volume=log(0,10)"], "the logarithm of 0 does not exist"),
        (["objective.volume=log(3,1)"], "the range is empty: 3 is not below 1"),
        (["objective.volume=uniform(1,1)"], "the range is empty"),
        (["objective.volume=log(nan,1)"], "the range is empty"),
        (["objective.volume=log(1)"], "takes two numbers"),
        (["objective.volume=log(1,2)", "objective.volume=log(1,3)"], "is given twice"),
        (["objective.volume=gauss(1,2)"], "write KEY=log"),
        (["objective.volume"], "write KEY=log"),
        (["objective.volume=uniform(-1,2)"], "objective.volume must be in [0, inf)"),
        (["data.batch_size=uniform(2,9)"], "is a whole number; use data.batch_size=int"),
        (["data.batch_size=int(2.5,9)"], "int takes two whole numbers"),
        (["train.device=log(1,2)"], "is no number; use train.device=choice"),
        (["train.device=choice(cpu,tpu)"], "must be one of auto, cpu, gpu"),
        (["objective.flow=choice(1)"], "at least two different choices"),
        (["train.seed=int(0,9)"], "cannot be searched: the confirmation varies it"),
        (["train.steps=int(5,9)"], "cannot be searched"),
    ],
)
def test_a_mistake_in_the_space_is_one_clear_line(specs: list[str], said: str) -> None:
    with pytest.raises(UserError, match="search") as caught:
        parse_space(specs)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_is_exit_code_2_and_one_line(tmp_path: Path) -> None:
    words = ["--search", "objective.volume=log(0,10)", "--train.steps", "5"]
    done = job(*words, home=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "logarithm of 0" in done.stderr
    done = job("--resume", "nowhere", home=tmp_path)
    assert done.returncode == 2
    assert "there is no such sweep" in done.stderr
    words = ["--search", "objective.volume=log(1,10)", "--objective.volume", "5"]
    done = job(*words, home=tmp_path)
    assert done.returncode == 2
    assert "is set and searched as well" in done.stderr


def test_a_changed_space_is_refused_on_resume_and_the_same_one_is_not() -> None:
    saved = SweepJobConfig(sweep=SweepConfig(search=("objective.volume=log(0.1,10)",)))
    for word in ("objective.volume=log(0.1,11)", "objective.flow=log(0.1,10)"):
        with pytest.raises(UserError, match="the sweep began with another space"):
            with_changes("s", saved, {"sweep.search": (word,)})
    with pytest.raises(UserError, match=r"it began with train\.steps None; leave it out"):
        with_changes("s", saved, {"train.steps": 9})
    same = {"sweep.search": ("objective.volume=log(0.10, 10)",), "sweep.trials": 30}
    assert with_changes("s", saved, same).sweep.trials == 30


@pytest.mark.slow
def test_a_dry_run_says_space_resources_and_cost_and_leaves_nothing(
    triplet_folder: Path, tmp_path: Path
) -> None:
    tiny = REPOSITORY / "tests" / "tiny.yaml"
    words = ["--config", tiny, "--triplets", triplet_folder, "--train.steps", 40, "--trials", 7]
    words += ["--confirm_seeds", 4, "--search", "objective.volume=log(0.1,10)"]
    done = job("--dry-run", *map(str, words), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "objective.volume log(0.1,10) 1" in " ".join(done.stdout.split())
    assert "a trial uses 1 worker(s)" in done.stdout
    assert "40 steps of" in done.stdout
    assert "confirmation: 12 trainings" in done.stdout
    assert not (tmp_path / "sweeps").exists()
    assert not (tmp_path / "mlflow").exists()


def job(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / "sweep.py"), *words],
        env={**os.environ, "DYNAFLIP_HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scheduler": "hyperband"}, "scheduler must be one of none, median, asha"),
        ({"sampler": "grid"}, "sampler must be one of"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"objectives": ("loss",)}, "objectives must be perturbed or flow_probe"),
        ({"objectives": ("policy",)}, "alone or with one other of perturbed, unperturbed, flow_pr"),
        ({"objectives": ("flow_probe", "flow_probe")}, "alone or with one other"),
        (
            {"objectives": ("flow_probe",), "score": ScoreConfig(data="/set")},
            "score.data is read for the objective perturbed alone, not for flow_probe",
        ),
        (
            {"score": ScoreConfig(flow_probe=FlowProbeConfig(clips=9))},
            "score.flow_probe is read for the objective flow_probe alone",
        ),
        ({"objectives": ("perturbed", "unperturbed"), "scheduler": "asha"}, "needs one objective"),
        ({"confirm_seeds": 1}, "confirm_seeds must be at least 2"),
        ({"name": "a/b"}, "name must be of letters"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SweepConfig(**values)
    with pytest.raises(ValueError, match="folds must be at least 2"):
        ScoreConfig(folds=1)


@pytest.mark.parametrize(
    ("cpus", "workers", "most"), [(2, 1, 2), (2, 2, 1), (16, 1, 16), (16, 4, 4), (3, 2, 1)]
)
def test_trials_share_the_cluster_and_training_accepts_their_share(
    cpus: int, workers: int, most: int
) -> None:
    config = PretrainConfig(train=TrainConfig(num_workers=workers))
    resources = {"CPU": float(cpus)}
    for concurrent in range(1, most + 1):
        fit = fit_trials(config, concurrent, resources)
        assert fit.most == most
        taken = concurrent * (workers * fit.cpus_per_worker + DRIVER_CPUS)
        assert taken <= cpus + 1e-9
        scaling = scaling_of(placed(config, fit), resources)
        assert scaling.resources_per_worker == {"CPU": fit.cpus_per_worker}
    with pytest.raises(UserError, match=rf"its CPUs hold {most} such trial\(s\) at once"):
        fit_trials(config, most + 1, resources)


def test_gpus_are_shared_by_fractions() -> None:
    half = PretrainConfig(train=TrainConfig(gpus_per_worker=0.5, device="gpu"))
    resources = {"CPU": 16.0, "GPU": 2.0}
    assert fit_trials(half, 4, resources).gpus_per_worker == 0.5
    placed_half = placed(half, fit_trials(half, 4, resources))
    assert scaling_of(placed_half, resources).resources_per_worker["GPU"] == 0.5
    with pytest.raises(UserError, match=r"16 CPUs and 2 GPUs, and its GPUs hold 4 such"):
        fit_trials(half, 5, resources)
    with pytest.raises(UserError, match=r"its GPUs hold no trial"):
        fit_trials(half, 1, {"CPU": 16.0})
    with pytest.raises(UserError, match="hold no trial of 1 worker"):
        fit_trials(PretrainConfig(), 1, {"CPU": 0.5})


def test_rungs_are_reached_by_every_length() -> None:
    asha = SweepConfig(scheduler="asha", reduction=3)
    assert score_steps(asha, 90) == (10, 30, 90)
    assert score_steps(asha, 125) == (13, 39, 125)
    assert score_steps(SweepConfig(scheduler="median"), 100) == (25, 50, 75, 100)
    assert score_steps(SweepConfig(), 100) == (100,)
    for total in range(1, 30):
        steps = score_steps(asha, total)
        assert list(steps) == sorted(set(steps))
        assert steps[-1] == total


def test_a_resumed_sampler_suggests_what_an_uninterrupted_one_would() -> None:
    def suggested(break_after: int | None) -> list[float]:
        config, storage = SweepConfig(startup_trials=3), optuna.storages.InMemoryStorage()
        study = optuna.create_study(storage=storage, study_name="s")
        for number in range(8):
            if number == break_after:
                study = optuna.load_study(storage=storage, study_name="s")
            study.sampler = sampler(config, number)
            trial = study.ask()
            study.tell(trial, (trial.suggest_float("x", 0, 1) - 0.3) ** 2)
        return [t.params["x"] for t in study.trials]

    assert suggested(None) == suggested(5)
    assert len(set(suggested(None))) == 8


def test_the_sweeps_settings_lie_over_those_of_pretraining() -> None:
    job_config = SweepJobConfig(train=TrainConfig(steps=7))
    assert pretrain_part(job_config) == PretrainConfig(train=TrainConfig(steps=7))
