"""Each setting of data, optimizer and training does something: one that is ignored is a defect.

Every field has a case: another value for it, and what must then be otherwise than in the same run
without it. A field without a case fails, so that a new setting comes with its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import REPOSITORY
from synthetic_triplets import write_triplets
from tiny_run import Found, equal, train

from dynaflip.platform.training.config import DataConfig, OptimizerConfig, TrainConfig

Differs = Callable[[Found, Found], bool]


def weights(base: Found, found: Found) -> bool:
    """Other weights at the end."""
    return not found.error and not equal(base.weights, found.weights)


def of(read: Callable[[Found], Any]) -> Differs:
    """Something that the run left is another, and the weights are not."""

    def differs(base: Found, found: Found) -> bool:
        assert not found.error
        assert equal(base.weights, found.weights), "the training itself is as before"
        return read(base) != read(found)

    return differs


def refused(text: str) -> Differs:
    """The run does not begin, or it ends, with an error that says why."""
    return lambda base, found: text in found.error


def steps_of(found: Found) -> list[float]:
    return found.curve("step")


def checkpoints(found: Found) -> list[str]:
    return [
        name
        for name in found.files
        if name.startswith("checkpoints/step-") and name.count("/") == 1
    ]


def names_of(prefix: str) -> Callable[[Found], list[float]]:
    """Steps at which there is any curve of a kind."""
    return lambda found: [
        point["step"] for point in found.curves if any(n.startswith(prefix) for n in point)
    ]


def collapse(found: Found) -> list[str]:
    return [line for line in found.lines if "collapsed" in line]


def heldout(found: Found) -> dict[str, float]:
    return {name: v for name, v in found.curves[-1].items() if name.startswith("heldout/")}


ALWAYS = {"train__collapse_spread": 1.0, "train__collapse_checks": 1}
# Field to: settings that differ from the base run (the field first), what must differ from it, and
# settings of a base of its own where the usual one would not show it.
Case = tuple[dict[str, Any], Differs] | tuple[dict[str, Any], Differs, dict[str, Any]]
CASES: dict[str, Case] = {
    "data.batch_size": ({"data__batch_size": 5}, weights),
    "data.shuffle_buffer_mb": ({"data__shuffle_buffer_mb": 0.05}, weights),
    "data.prefetch_batches": (
        {"data__prefetch_batches": 5},
        lambda base, found: found.batches_ahead == 5,
    ),
    "data.decode_threads": (
        {"data__decode_threads": 3},
        of(lambda found: found.decode_threads),
    ),
    "data.jitter_brightness": ({"data__jitter_brightness": 0.5}, weights),
    "data.jitter_contrast": ({"data__jitter_contrast": 0.5}, weights),
    "data.jitter_saturation": ({"data__jitter_saturation": 0.5}, weights),
    "data.jitter_hue": ({"data__jitter_hue": 0.2}, weights),
    "data.jitter_per_image": ({"data__jitter_per_image": True}, weights),
    "data.patches": ({"data__patches": 2}, weights),
    "data.crop_min_share": ({"data__crop_min_share": 0.5}, weights),
    "data.source_weights": ({"data__source_weights": {"robot": 3, "human": 1}}, weights),
    "optimizer.lr": ({"optimizer__lr": 2e-2}, weights),
    "optimizer.backbone_lr_scale": ({"optimizer__backbone_lr_scale": 0.5}, weights),
    "optimizer.weight_decay": ({"optimizer__weight_decay": 0.5}, weights),
    "optimizer.beta1": ({"optimizer__beta1": 0.5}, weights),
    "optimizer.beta2": ({"optimizer__beta2": 0.9}, weights),
    "optimizer.warmup_share": ({"optimizer__warmup_share": 0.5}, weights),
    "optimizer.final_lr_share": ({"optimizer__final_lr_share": 0.5}, weights),
    "optimizer.clip_norm": ({"optimizer__clip_norm": 1e-3}, weights),
    "train.steps": (
        {"train__steps": 3},
        lambda base, found: len(found.curves) == len(base.curves) - 1,
    ),
    "train.epochs": (
        {"train__epochs": 1, "train__steps": None},
        lambda base, found: steps_of(found) == list(range(7)),  # 24 triplets in batches of 4
    ),
    # The batch of two workers, on one: in two micro-batches, each as large as a worker's.
    "train.num_workers": (
        {"train__num_workers": 2},
        lambda base, found: found.rows == 4 and weights(base, found),
    ),
    "train.device": ({"train__device": "gpu"}, refused("train.device gpu")),
    "train.threads": ({"train__threads": 2}, lambda base, found: found.threads == 2),
    "train.precision": (
        {"train__precision": "bfloat16"},
        lambda base, found: found.bfloat16 and weights(base, found),
    ),
    "train.tf32": ({"train__tf32": True}, of(lambda found: found.tf32)),
    "train.micro_batch_size": (
        {"train__micro_batch_size": 2},
        lambda base, found: (base.rows, found.rows) == (4, 2) and weights(base, found),
    ),
    "train.activation_checkpointing": (
        {"train__activation_checkpointing": True},
        of(lambda found: found.blocks),
    ),
    "train.compile": ({"train__compile": True}, of(lambda found: found.compiled)),
    "train.ema_decay": (
        {"train__ema_decay": 0.5},
        lambda base, found: (
            equal(base.weights, found.weights)
            and not equal(base.evaluated, found.evaluated)
            and heldout(base) != heldout(found)
        ),
    ),
    "train.seed": ({"train__seed": 1}, weights),
    "train.report_every_steps": ({"train__report_every_steps": 4}, of(steps_of)),
    "train.checkpoint_every_steps": (
        {"train__checkpoint_every_steps": 1},
        of(checkpoints),
        {"train__eval_every_steps": 0},
    ),
    "train.eval_every_steps": ({"train__eval_every_steps": 4}, of(names_of("heldout/"))),
    "train.gallery_size": (
        {"train__gallery_size": 2},
        of(lambda found: found.curve("heldout/retrieval/all/chance")),
    ),
    "train.diagnostics_every_steps": (
        {"train__diagnostics_every_steps": 4},
        of(names_of("diagnostics/")),
    ),
    "train.collapse_spread": (ALWAYS, of(collapse), {"train__collapse_checks": 1}),
    "train.collapse_checks": ({**ALWAYS, "train__collapse_checks": 3}, of(collapse), ALWAYS),
    "train.collapse_action": (
        {**ALWAYS, "train__collapse_action": "stop"},
        refused("Collapsed"),
        ALWAYS,
    ),
    "train.checkpoint_storage": ({"train__checkpoint_storage": "ELSEWHERE"}, of(checkpoints)),
    "train.keep_checkpoints": ({"train__keep_checkpoints": 1}, of(checkpoints)),
    "train.best_metric": (
        {"train__best_metric": "heldout/effective_rank/image"},
        of(checkpoints),
        # The best beside the one that stays anyway.
        {"train__eval_every_steps": 1, "train__keep_checkpoints": 1},
    ),
}
# Settings that the in-process backend does not know, or that change no result: where each is seen.
PRETRAIN = "platform/training/test_pretrain.py"
ELSEWHERE = {
    "train.profile_steps": "platform/training/test_speed.py::test_steps_are_profiled_",
    "train.min_workers": f"{PRETRAIN}::test_a_cluster_that_is_too_small_",
    "train.cpus_per_worker": f"{PRETRAIN}::test_a_cluster_that_is_too_small_",
    "train.gpus_per_worker": f"{PRETRAIN}::test_machines_are_waited_for_",
    "train.wait_s": f"{PRETRAIN}::test_machines_are_waited_for_",
    "train.grace_s": "platform/training/test_notices.py::test_a_store_that_takes_longer_",
    "train.max_failures": "platform/training/test_training_chaos.py::test_killed_workers_",
}


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-sources") / "triplets"
    return write_triplets(folder, clips=16, per_clip=2, sources=("robot", "human"), shards=2)


@pytest.fixture(scope="module")
def base_runs() -> dict[str, Found]:
    """Runs that cases compare with, each made once."""
    return {}


def test_every_setting_has_a_case() -> None:
    sections = {"data": DataConfig, "optimizer": OptimizerConfig, "train": TrainConfig}
    fields = {f"{s}.{f.name}" for s, cls in sections.items() for f in dataclasses.fields(cls)}
    assert fields == CASES.keys() | ELSEWHERE.keys()
    assert not CASES.keys() & ELSEWHERE.keys()
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}" in (REPOSITORY / "tests" / file).read_text(), place


@pytest.mark.parametrize("name", CASES)
def test_the_setting_does_something(
    name: str,
    triplets: Path,
    base_runs: dict[str, Found],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed, differs, *base_settings = CASES[name]
    base_of: dict[str, Any] = base_settings[0] if base_settings else {}
    key = repr(sorted(base_of.items()))
    if key not in base_runs:
        base_runs[key] = train(triplets, tmp_path / "base", monkeypatch, **base_of)
        assert not base_runs[key].error
    storage = {"train__checkpoint_storage": str(tmp_path / "elsewhere")}
    changed = changed | (storage if "train__checkpoint_storage" in changed else {})
    found = train(triplets, tmp_path / "run", monkeypatch, **{**base_of, **changed})
    assert differs(base_runs[key], found), found.error or f"{name} changes nothing"


def test_equal_settings_give_equal_weights(
    triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this every difference above could be chance."""
    one, two = (train(triplets, tmp_path / n, monkeypatch) for n in ("one", "two"))
    assert not one.error
    assert equal(one.weights, two.weights)
    assert len(one.curves) == 5
