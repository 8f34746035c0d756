"""The loop without Ray: exact resume, what it reports, and that it stops before it spoils."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_triplets import write_triplets

from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.errors import UserError
from dynaflip.losses.objective import Objective
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.training.checkpoint_manager import Checkpoints
from dynaflip.platform.training.config import (
    PRETRAIN_VERSION,
    DataConfig,
    PretrainConfig,
    TrainConfig,
)
from dynaflip.platform.training.context import Context, Metrics
from dynaflip.platform.training.data.caption_features import write_table
from dynaflip.platform.training.data.collate import Batch, Collate
from dynaflip.platform.training.data.gallery import gallery_batch
from dynaflip.platform.training.data.index import read_index
from dynaflip.platform.training.data.loader import Feed
from dynaflip.platform.training.data.sampling import Position, sampling_of
from dynaflip.platform.training.length import plan, rank_batch_size
from dynaflip.platform.training.loop import Pretraining
from dynaflip.platform.training.optimizer import build_optimizer, build_schedule
from dynaflip.platform.training.progress import clock, progress_line
from dynaflip.platform.training.step import NonFiniteLoss

TINY = ModelConfig(
    image=ImageConfig(image_px=32, pretrained=False),
    flow=FlowConfig(width=32, layers=1, heads=2, channels=8),
    embedding_dim=16,
    hidden_dim=32,
)
CONFIG = PretrainConfig(
    model=TINY,
    data=DataConfig(batch_size=12),
    train=TrainConfig(
        steps=8, report_every_steps=1, checkpoint_every_steps=4, eval_every_steps=4, gallery_size=8
    ),
)


class Trial:
    """A plain run that keeps what it reports and says."""

    def __init__(self, folder: Path, config: PretrainConfig, keep: Path) -> None:
        self.folder, self.config, self.keep = folder, config, keep
        self.index = read_index(str(folder))
        rng = np.random.default_rng(0)
        features = rng.standard_normal((len(self.index.captions), 384)).astype(np.float32)
        text = write_table(folder / "captions.safetensors", self.index.captions, features)
        self.collate = Collate(config.data, 32, text, seed=config.train.seed, augment=True)
        self.sampling = sampling_of(config.data, self.index, config.train.seed)
        self.feed = Feed(
            self.index.train,
            self.collate,
            config.data,
            self.sampling,
            batch_size=rank_batch_size(config, 1),
        )
        self.reports: list[Metrics] = []
        self.logged: list[str] = []
        self.examples: list[list[str]] = []
        self.epochs: list[int] = []

    def batches(self, position: Position) -> Iterator[Batch]:
        self.epochs.append(position.epoch)
        for batch in self.feed(position):
            self.examples.append(batch["triplet_id"])
            yield batch

    def pretraining(self) -> Pretraining:
        """Goes on from what is in the folder ``keep``."""
        gallery = gallery_batch(self.index, self.collate, self.config.train.gallery_size)
        weighted = not self.sampling.is_plain()
        length = plan(self.config, self.index.counts["train"], weighted=weighted)
        checkpoints = Patient(str(self.keep), keep=self.config.train.keep_checkpoints)
        context = Context(
            report=self.reports.append, log=self.logged.append, checkpoints=checkpoints
        )
        return Pretraining(self.config, context, length, gallery, tuple(self.index.sources))


class Patient(Checkpoints):
    """Waits for each write, however slow the disk: which steps are saved is then certain."""

    def busy(self) -> bool:
        if self._writing is not None:
            self._writing.join()
        return False


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads round differently from run to run on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def terms_of(reports: list[Metrics]) -> list[Metrics]:
    """Everything but what the clock says."""
    return [{k: v for k, v in r.items() if not k.startswith("speed/")} for r in reports]


@pytest.mark.parametrize(("every", "kept"), [(4, [4, 8]), (3, [6, 8])])
def test_a_resumed_run_equals_the_uninterrupted_one_exactly(
    triplet_folder: Path, tmp_path: Path, every: int, kept: list[int]
) -> None:
    # 36 triplets, batches of 12: epochs of 3 steps; step 4 lies within one, step 6 ends one.
    train = dataclasses.replace(CONFIG.train, checkpoint_every_steps=every)
    config = dataclasses.replace(CONFIG, train=train)
    whole = Trial(triplet_folder, config, tmp_path)
    done = whole.pretraining()
    done.run(whole.batches)
    names = [f"step-{step:08d}" for step in kept]
    assert [path.name for path in sorted(tmp_path.iterdir())] == names
    shutil.rmtree(tmp_path / names[-1])
    rest = Trial(triplet_folder, config, tmp_path)
    resumed = rest.pretraining()
    assert resumed.step == kept[0]
    resumed.run(rest.batches)
    # First it says again what may have got lost: the reports up to the checkpoint's own.
    assert terms_of(rest.reports) == terms_of(whole.reports)[1:]
    assert rest.examples == whole.examples[kept[0] :]
    assert rest.epochs == whole.epochs[kept[0] // 3 :], "a finished epoch is not begun again"
    for name, value in done.state.model.state_dict().items():
        assert torch.equal(value, resumed.state.model.state_dict()[name]), name


@pytest.mark.parametrize("version", [PRETRAIN_VERSION - 1, PRETRAIN_VERSION])
def test_an_epoch_that_earlier_code_has_begun_begins_anew_with_a_warning(
    triplet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    # Epochs of 3 steps: the checkpoint of step 4 lies within the second.
    written = "dynaflip.platform.training.train_state.PRETRAIN_VERSION"
    with monkeypatch.context() as earlier:
        earlier.setattr(written, version)
        whole = Trial(triplet_folder, CONFIG, tmp_path)
        whole.pretraining().run(whole.batches)
    shutil.rmtree(tmp_path / "step-00000008")
    rest = Trial(triplet_folder, CONFIG, tmp_path)
    rest.pretraining().run(rest.batches)
    warnings = [line for line in rest.logged if line.startswith("warning")]
    if version == PRETRAIN_VERSION:
        assert (rest.examples, warnings) == (whole.examples[4:], [])
        return
    assert "step 4 is of another version of this code" in warnings[0]
    assert "epoch 1 begins anew" in warnings[0]
    assert len(warnings) == 1
    assert rest.epochs == [1, 2], "to the same last step"
    assert rest.examples[:3] == whole.examples[3:6], "each triplet of the epoch comes"
    assert len(rest.examples) == 4


def test_a_slow_store_costs_checkpoints_and_holds_up_no_step(
    triplet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    store = Checkpoints(str(tmp_path))
    publish = store.storage.publish

    def slow(staged: Path, name: str) -> None:
        assert free.wait(60)
        publish(staged, name)

    monkeypatch.setattr(store.storage, "publish", slow)
    reports: list[Metrics] = []

    def report(metrics: Metrics) -> None:
        reports.append(metrics)
        if metrics["step"] == 7:  # the loop came this far though nothing could be stored
            free.set()

    train = dataclasses.replace(CONFIG.train, checkpoint_every_steps=2, report_every_steps=1)
    trial = Trial(triplet_folder, dataclasses.replace(CONFIG, train=train), tmp_path)
    length = plan(trial.config, trial.index.counts["train"])
    context = Context(report=report, log=trial.logged.append, checkpoints=store)
    Pretraining(trial.config, context, length).run(trial.batches)
    left_out = [line for line in trial.logged if "there is none of this step" in line]
    assert [line.split(":")[1] for line in left_out] == [" step 4", " step 6"]
    assert store.storage.names() == ["step-00000002", "step-00000008"], "the last is waited for"
    assert {"speed/report_wait_s", "speed/checkpoint_wait_s"} <= reports[-1].keys()


def test_reports_hold_terms_areas_speed_and_held_out_diagnostics(
    triplet_folder: Path, tmp_path: Path
) -> None:
    trial = Trial(triplet_folder, CONFIG, tmp_path)
    trial.pretraining().run(trial.batches)
    first, last = trial.reports[0], trial.reports[-1]
    assert first["step"] == 0
    assert "heldout/retrieval/all/top1" in first
    wanted = {
        *(f"train/{k}" for k in ("loss", "contrastive", "temporal", "flow", "direct", "lr")),
        *("train/area_matched", "train/area_shuffled", "train/gradient_norm"),
        *("speed/samples_per_s", "speed/data_wait_share"),
        *(f"heldout/retrieval/{s}/{k}" for s in ("all", "task") for k in ("top1", "chance")),
        *(f"heldout/effective_rank/{m}" for m in ("image", "language", "flow")),
    }
    assert wanted <= set(last)
    assert all(isinstance(value, int | float) for value in last.values())
    assert [r["step"] for r in trial.reports] == list(range(9))


@pytest.mark.parametrize("of_triplets", [False, True])
def test_mixed_sources_are_weighed_and_have_curves_of_their_own(
    tmp_path: Path, of_triplets: bool
) -> None:
    folder = write_triplets(tmp_path / "set", clips=16, sources=("robot", "ego 4d+"))
    weights = {"robot": 3.0, "ego 4d+": 1.0}
    if of_triplets:  # what preprocessing was told, instead of this run's settings
        path = folder / "manifest.json"
        sources = {name: {"weight": weight} for name, weight in weights.items()}
        path.write_text(json.dumps({**json.loads(path.read_text()), "sources": sources}))
    data = DataConfig(batch_size=8, source_weights={} if of_triplets else weights)
    train = dataclasses.replace(CONFIG.train, steps=10, eval_every_steps=10)
    config = dataclasses.replace(CONFIG, data=data, train=train)
    trial = Trial(folder, config, tmp_path / "kept")
    trial.pretraining().run(trial.batches)
    shares = [r["train/share/robot"] for r in trial.reports if "train/share/robot" in r]
    assert len(shares) == 10
    assert np.mean(shares) == pytest.approx(0.75, abs=0.12)
    assert trial.reports[1]["train/share/ego_4d_"] == pytest.approx(1 - shares[0])
    for source in ("robot", "ego_4d_"):
        assert f"heldout_{source}/retrieval/all/top1" in trial.reports[-1]


def test_a_checkpoint_is_safetensors_and_json_with_the_whole_config(
    triplet_folder: Path, tmp_path: Path
) -> None:
    trial = Trial(triplet_folder, CONFIG, tmp_path)
    trial.pretraining().run(trial.batches)
    folder = tmp_path / "step-00000008"
    names = sorted(path.name for path in folder.iterdir())
    stems = ("model", "optimizer", "position")
    assert names == ["digests.json", *(f"{stem}.safetensors" for stem in stems), "state.json"]
    state = json.loads((folder / "state.json").read_text())
    assert state["step"] == 8
    assert state["config"]["objective"]["volume"] == CONFIG.objective.volume
    assert state["random"]["seed"] == 0


def test_a_loss_that_is_not_finite_names_step_and_triplets_and_spares_the_weights(
    triplet_folder: Path, tmp_path: Path
) -> None:
    trial = Trial(triplet_folder, CONFIG, tmp_path)
    training = trial.pretraining()
    spoilt: list[str] = []
    before: dict[str, torch.Tensor] = {}

    def batches(position: Position) -> Iterator[Batch]:
        for number, batch in enumerate(trial.batches(position)):
            if number == 1:
                batch["flow_displacement_m"][3, 0, 0, 0, 0] = float("nan")
                spoilt.extend(batch["triplet_id"])
                before.update({k: v.clone() for k, v in training.state.model.state_dict().items()})
            yield batch

    with pytest.raises(NonFiniteLoss, match=r"step 1: loss.*not finite; triplets") as caught:
        training.run(batches)
    assert all(name in str(caught.value) for name in spoilt)
    assert all(torch.equal(v, before[k]) for k, v in training.state.model.state_dict().items())


def test_bfloat16_trains_too(triplet_folder: Path, tmp_path: Path) -> None:
    train = dataclasses.replace(CONFIG.train, steps=2, precision="bfloat16", eval_every_steps=0)
    config = dataclasses.replace(CONFIG, train=train)
    trial = Trial(triplet_folder, config, tmp_path)
    trial.pretraining().run(trial.batches)
    assert all(np.isfinite(r["train/loss"]) for r in trial.reports)


def test_decay_spares_norms_biases_and_tokens_and_the_backbone_has_its_own_rate() -> None:
    from dynaflip.encoders.model import DynaFLIP

    model = DynaFLIP(TINY)
    config = dataclasses.replace(CONFIG.optimizer, backbone_lr_scale=0.1)
    objective = Objective(dataclasses.replace(CONFIG.objective, learn_temperature=True))
    optimizer = build_optimizer(model, objective, config)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim >= 2 and parameter.shape[0] > 1), name
        scale = 0.1 if name.startswith("image.") else 1.0
        assert rates[id(parameter)] == pytest.approx(config.lr * scale), name
    (temperature,) = objective.parameters()
    assert id(temperature) in rates
    assert id(temperature) not in decayed


def test_the_rate_rises_and_falls_on_a_cosine() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.AdamW([weight], lr=1.0)
    settings = dataclasses.replace(CONFIG.optimizer, warmup_share=0.1, final_lr_share=0.01)
    schedule = build_schedule(optimizer, settings, 100)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.batch_size", "1", "data.batch_size must be at least 2"),
        ("optimizer.lr", "0", "optimizer.lr must be above 0"),
        ("optimizer.lr", "nan", "optimizer.lr"),
        ("train.device", "tpu", "train.device must be one of auto, cpu, gpu"),
        ("train.num_workers", "0", "train.num_workers must be at least 1"),
        ("train.stepz", "3", "did you mean train.steps"),
        ("objective.temperature", "-1", "objective.temperature"),
        ("data.jitter_hue", "2", "data.jitter_hue"),
        ("tracking.model_name", "a@b", "tracking.model_name must not contain"),
        ("model.flow.steps", "5", "triplets have 7 steps of a grid of 20 points a side, not 5"),
        ("model.flow.grid", "10", "not 7 and 10"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(key: str, value: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(PretrainConfig, None, {key: value})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_steps_and_epochs_exclude_each_other_and_decide_the_length() -> None:
    with pytest.raises(UserError, match=r"train\.steps and train\.epochs exclude each other"):
        load_config(PretrainConfig, None, {"train.steps": 3, "train.epochs": 2})
    config = load_config(PretrainConfig, None, {"train.epochs": 2.5, "data.batch_size": 4})
    assert plan(config, 43).steps_per_epoch == 10
    assert plan(config, 43).total_steps == 25
    with pytest.raises(ValueError, match="do not fill one batch"):
        plan(config, 3)


def test_the_progress_line_has_rate_remaining_time_and_weighted_terms() -> None:
    metrics = {
        "step": 120,
        "speed/steps_per_s": 2.0,
        "speed/data_wait_share": 0.02,
        "train/loss": 3.25,
        "train/contrastive": 2.5,
        "train/temporal": 0.5,
        "train/flow": 0.25,
        "train/direct": 0.125,
        "train/Smoothness": 7.5,
        "train/Small": 3.21e-5,
        "train/Zero": 0.0,
    }
    terms = ("contrastive", "temporal", "flow", "Smoothness", "Small", "Zero")
    line = progress_line(metrics, 400, terms)
    for part in ("step 120/400", "2.00 steps/s", "ETA 2:20", "loss 3.250", "flow 0.250"):
        assert part in line
    assert "Smoothness 7.500 Small 3.21e-05 Zero 0.000" in line
    assert "direct" not in line
    assert clock(3725) == "1:02:05"


def test_more_workers_than_samples_are_refused() -> None:
    config = PretrainConfig(data=DataConfig(batch_size=2))
    assert rank_batch_size(config, 2) == 1
    with pytest.raises(UserError, match="3 workers cannot share a batch of 2"):
        rank_batch_size(config, 3)
