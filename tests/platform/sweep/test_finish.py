"""How a sweep ends: confirmation, plots, a registered version, and an alias only beyond noise."""

from __future__ import annotations

import dataclasses
import functools
import html
import re
import sys
from pathlib import Path

import pytest
import tiny_sweep
from labelled_frames import write_labelled_frames
from tiny_sweep import STEPS, bowl, opened, report

from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.confirmation import Confirmed, confirmed_of
from dynaflip.platform.sweep.consistency import inconsistencies
from dynaflip.platform.sweep.finish import finish
from dynaflip.platform.sweep.ledger import Assignment
from dynaflip.platform.sweep.opened_sweep import Sweep, chosen_settings
from dynaflip.platform.sweep.report import PAGE
from dynaflip.platform.sweep.show import show
from dynaflip.platform.sweep.stages import queue_confirmation, run_with
from dynaflip.platform.sweep.study import CONFIRM, SEARCH
from dynaflip.platform.tracking import registry
from dynaflip.platform.tracking.store import client

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def sent_by_value(ray_cluster: None) -> None:
    """Workers cannot import the tests' files."""
    import ray

    for module in (sys.modules[__name__], tiny_sweep):
        ray.cloudpickle.register_pickle_by_value(module)


def initialised(assignment: Assignment, trials: Path) -> None:
    """Leaves a small untrained encoder, as a training leaves its own."""
    from dynaflip.encoders.checkpoint import save_folder
    from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
    from dynaflip.encoders.model import DynaFLIP
    from dynaflip.platform.training.checkpoint_format import seed_step

    seed = assignment.values.get("train.seed", 0)
    seed_step(seed, 0, 0)
    flow = FlowConfig(width=16, layers=1, heads=2, channels=8, cnn_layers=2)
    image = ImageConfig(image_px=32, pretrained=False)
    model = DynaFLIP(ModelConfig(image=image, flow=flow, embedding_dim=16, hidden_dim=16))
    save_folder(trials / assignment.name / "encoder", model, {"run_name": assignment.name})
    report(STEPS, bowl(assignment.values) + 0.001 * seed, final=True)


def run_both_stages(name: str) -> tuple[Sweep, list[Confirmed]]:
    sweep = opened(name, trials=4, confirm=1, confirm_seeds=2)
    write_labelled_frames(sweep.folder() / folders.FRAMES)
    # The cluster's processes have another home.
    train = functools.partial(initialised, trials=sweep.folder() / "trials")
    run_with(sweep, SEARCH, 4, train, reuse=True)
    queue_confirmation(sweep)
    queue_confirmation(sweep)  # what is queued is not queued again
    run_with(sweep, CONFIRM, len(sweep.study(CONFIRM).trials), train, reuse=True)
    return sweep, confirmed_of(sweep.trials(CONFIRM), chosen_settings(sweep))


@pytest.mark.integration
def test_a_winner_is_confirmed_and_registered_and_moves_the_alias_only_beyond_noise(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, confirmed = run_both_stages("first")
    assert [sorted(c.scores) for c in confirmed] == [[1, 2], [1, 2]]
    assert confirmed[0].setting != 0
    assert confirmed[0].difference.high < 0
    finish(sweep, confirmed)
    said = capsys.readouterr().out
    assert "better beyond noise" in said
    assert "alias candidate: yes: there was none" in said
    model = sweep.base.tracking.model_name
    tags = registry.version_tags(model, "1")
    assert tags["sweep"] == "first"
    assert tags["setting"] == f"trial-{confirmed[0].setting:03d}"
    assert tags["trial"].startswith("confirm-")
    assert len(tags["config_digest"]) == 16
    store = client()
    plots = {item.path for item in store.list_artifacts(sweep.parent.run_id, "plots")}
    names = ("confirmation", "history", "importance", "parallel_coordinates")
    assert plots == {f"plots/{name}.png" for name in names}
    # One verdict everywhere: terminal, page, run and version.
    (verdict,) = re.findall(r"^verdict: (.*)$", said, re.MULTILINE)
    sentence = f"{verdict[0].upper()}{verdict[1:]}."
    assert html.escape(sentence) in (sweep.folder() / PAGE).read_text()
    assert PAGE in {item.path for item in store.list_artifacts(sweep.parent.run_id)}
    note = sweep.parent.tags()["mlflow.note.content"]
    described = store.get_model_version(model, "1").description
    assert note.startswith(f"**{sentence}**")
    assert described.startswith(f"**{sentence}**")
    assert f"/#/models/{model}/versions/1" in note
    assert f"/runs/{sweep.parent.run_id}" in described
    assert store.get_run(sweep.parent.run_id).inputs.dataset_inputs[0].dataset.digest == "synthetic"
    assert inconsistencies("first") == []
    assert "confirmation: 4 done of 4" in show("first")
    finish(sweep, confirmed)  # killed before its end and resumed: no second version
    assert registry.find_version(model, {"sweep": "first"}) == 1
    assert len(store.search_model_versions(f"name='{model}'")) == 1
    # The present candidate is an encoder like it: no gap, so the alias stays.
    twin = sweep.folder() / "trials" / confirmed[-1].names[1] / "encoder"
    assert registry.register(twin, sweep.parent, name=model) == 2
    registry.set_alias(model, "candidate", 2)
    finish(sweep, confirmed)
    assert registry.version_of_alias(model, "candidate") == "2"
    assert "cm to version 2, over episodes and seeds" in capsys.readouterr().out
    client().delete_registered_model_alias(model, "candidate")
    unlucky = [dataclasses.replace(confirmed[0], missing=1), *confirmed[1:]]
    finish(sweep, unlucky)
    assert "alias candidate: no: 1 seeds of the best setting" in capsys.readouterr().out
    # A sweep of the same name in another home: its winner is another encoder.
    store.set_model_version_tag(model, "1", "trial", "another")
    for key, value in (("sweep", "first"), ("trial", tags["trial"])):
        store.set_model_version_tag(model, "2", key, value)
    finish(sweep, confirmed)
    assert registry.version_of_alias(model, "candidate") == "1"
    always = dataclasses.replace(sweep.config, promote="always")
    finish(dataclasses.replace(sweep, config=always), confirmed)
    assert registry.version_of_alias(model, "candidate") == "1"
