"""Registering and loading encoders from a real store."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import dynaflip
from dynaflip.encoders.checkpoint import load_model, save_folder
from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.model import DynaFLIP
from dynaflip.errors import UserError
from dynaflip.platform import tracking
from dynaflip.platform.evaluation.probe_config import ProbesConfig, ProbeSuiteConfig
from dynaflip.platform.evaluation.score_cache import log_score
from dynaflip.platform.tracking import registry
from dynaflip.platform.tracking.store import client
from dynaflip.platform.tracking.version_card import (
    TRIPLET_RUNS,
    add_result,
    describe_version,
)
from dynaflip.platform.triplets.report.data_card import CARD_NAME

TINY = ModelConfig(
    image=ImageConfig(image_px=32, pretrained=False),
    flow=FlowConfig(width=32, layers=1, heads=2, channels=8),
    embedding_dim=16,
    hidden_dim=32,
)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)


@pytest.fixture
def registered(home: Path, tmp_path: Path) -> Path:
    """An encoder's folder, registered twice; candidate is version 1."""
    folder = save_folder(tmp_path / "encoder", DynaFLIP(TINY, text_dim=384), {"steps": 3})
    look = tracking.open_run(TRIPLET_RUNS, "look")
    with tracking.ending(look):
        look.log_dataset("triplets", "abc", "elsewhere/triplets")
        look.log_text("<html></html>", CARD_NAME)
    run = tracking.open_run("test", "register")
    with tracking.ending(run):
        run.log_dataset("triplets", "abc", "triplets")
        tags = {"data_digest": "abc", "config_digest": "1f2e"}
        assert registry.register(folder, run, tags=tags) == 1
        registry.set_alias(registry.DEFAULT_NAME, "candidate", 1)
        assert registry.register(folder, run) == 1, "a run that was killed then keeps its version"
    run = tracking.open_run("test", "second")
    with tracking.ending(run):
        assert registry.register(folder, run) == 2
    return folder


def test_every_uri_finds_the_same_encoder(
    registered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = load_model(registered).image(IMAGES)

    def no_pickle(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", no_pickle)
    monkeypatch.setattr(pickle, "loads", no_pickle)
    monkeypatch.setattr(torch, "load", no_pickle)
    for uri in (
        "models:/dynaflip-encoder@candidate",
        "models:/dynaflip-encoder@latest",
        "models:/dynaflip-encoder/latest",
        "models:/dynaflip-encoder/1",
        "2",
        1,
        str(registered),
    ):
        encoder = dynaflip.load_encoder(uri, device="cpu")
        assert not encoder.training
        with torch.no_grad():
            assert torch.equal(encoder(IMAGES), wanted)
        assert encoder.info["steps"] == 3


def test_a_version_is_described_by_its_card_and_what_evaluations_found(registered: Path) -> None:
    def described() -> str:
        return str(client().get_model_version(registry.DEFAULT_NAME, "1").description)

    found = client().get_model_version(registry.DEFAULT_NAME, "1")
    card = described()
    assert card.startswith("# DynaFLIP image encoder\n")
    assert 'dynaflip.load_encoder("models:/dynaflip-encoder/1")' in card
    assert f"/runs/{found.run_id}" in card
    assert "* none yet" in card
    assert "settings have the digest `1f2e`" in card
    look = tracking.find_run("look")
    assert look is not None
    assert f"/runs/{look.run_id}/artifacts/data_card.html)" in card
    other = client().get_model_version(registry.DEFAULT_NAME, "2").description
    assert "inspect FOLDER` makes" in other, "nobody has looked at its triplets"
    assert "digest `" not in other
    assert "licences of the data" in card
    run = tracking.open_run("dynaflip-evaluate", "evaluation")
    add_result(found.run_id, "rollouts on dev", ["It is better.", "More."], run.run_id)
    add_result(found.run_id, "rollouts on test", ["It is worse."], run.run_id)
    add_result(found.run_id, "rollouts on dev", ["It is the same."], run.run_id)
    run.end("FINISHED")
    told = described()
    assert "* none yet" not in told
    assert "It is better." not in told
    results = told.partition("## Results so far\n\n")[2].partition("\n\n")[0].split("\n")
    assert [line[: line.index("(")] for line in results] == [
        "* **rollouts on test**: It is worse. ",
        "* **rollouts on dev**: It is the same. ",
    ]
    describe_version(registry.DEFAULT_NAME, 1, "First words.")
    assert described() == f"First words.\n\n{told}"


def test_a_score_by_probes_stands_in_the_card(registered: Path, tmp_path: Path) -> None:
    made_by = client().get_model_version(registry.DEFAULT_NAME, "1").run_id
    off = ProbesConfig(enabled=False)
    config = ProbeSuiteConfig(encoder="models:/dynaflip-encoder/1", probes=off)
    report = tmp_path / "evaluate-1.html"
    report.write_text("<html></html>")
    what = (config, {"mlflow_run_id": made_by}, "0a", "evaluate-1", {}, "table", report)
    run_id = log_score(*what, pl.DataFrame({"score": [1.0]}), ["It is better.", "More."])
    card = client().get_model_version(registry.DEFAULT_NAME, "1").description
    results = card.partition("## Results so far\n\n")[2].partition("\n\n")[0]
    assert results.startswith("* **probes on dev**: It is better. ([evaluate-1](")
    assert f"/runs/{run_id})" in results
    assert "* none yet" in client().get_model_version(registry.DEFAULT_NAME, "2").description


def test_latest_moves_by_itself_and_candidate_on_request(registered: Path) -> None:
    store = client()
    name = registry.DEFAULT_NAME
    assert int(store.get_model_version_by_alias(name, "latest").version) == 2
    assert int(store.get_model_version_by_alias(name, "candidate").version) == 1
    assert store.get_model_version(name, "1").tags["data_digest"] == "abc"
    run = tracking.open_run("test", "again")
    assert registry.register(registered, run) == 3
    registry.set_alias(name, "candidate", 3)
    assert int(store.get_model_version_by_alias(name, "candidate").version) == 3
    # Registering leaves the run to its owner.
    assert store.get_run(run.run_id).info.status == "RUNNING"


def test_a_store_that_does_not_answer_is_not_an_alias_that_nobody_has(
    registered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    assert registry.version_of_alias(registry.DEFAULT_NAME, "champion") is None
    assert registry.version_of_alias("no-such-model", "champion") is None

    class Down:
        def get_model_version_by_alias(self, name: str, alias: str) -> None:
            raise MlflowException("connection refused")

    monkeypatch.setattr(registry, "client", Down)
    with pytest.raises(UserError, match="cannot read it from"):
        registry.version_of_alias(registry.DEFAULT_NAME, "champion")


def test_a_version_is_served_by_mlflow_itself_without_pickle(registered: Path) -> None:
    import mlflow

    client()
    served = mlflow.pyfunc.load_model("models:/dynaflip-encoder/1")
    vectors = served.predict(IMAGES)
    assert vectors.shape == (2, 1280)
    assert vectors.dtype == np.float32
    source = client().get_model_version_download_uri("dynaflip-encoder", "1")
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=source))
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    assert "encoder.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pth", ".bin"))]
    assert "torch==" in (folder / "requirements.txt").read_text()


def test_what_does_not_exist_is_one_line_that_lists_what_does(
    registered: Path, tmp_path: Path
) -> None:
    there = r"dynaflip-encoder versions 1, 2 \(candidate = 1\)"
    for uri in ("models:/dynaflip-encoder@nobody", "models:/dynaflip-encoder/9", "17", "models:/x"):
        with pytest.raises(UserError, match=there) as caught:
            dynaflip.load_encoder(uri)
        assert uri in str(caught.value)
    with pytest.raises(UserError, match="models: dynaflip-encoder"):
        dynaflip.load_encoder("models:/other@candidate")
    with pytest.raises(UserError, match=f"folder .*nowhere does not exist; registered: {there}"):
        dynaflip.load_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="not an encoder's folder"):
        dynaflip.load_encoder(str(tmp_path))
    with pytest.raises(UserError, match=r"compare it with one: --encoders '\[\"own=class:a:B\"\]'"):
        dynaflip.load_encoder("class:a:B")


def test_an_empty_home_says_so_and_stays_empty(home: Path) -> None:
    with pytest.raises(UserError, match="nothing yet in"):
        dynaflip.load_encoder("models:/dynaflip-encoder@candidate")
    assert not (home / "mlflow").exists()


def test_a_checkout_called_dynaflip_is_not_taken_for_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Taken whole it would bring its .venv: 90,000 files in every registered version.
    checkout = tmp_path / "dynaflip"
    monkeypatch.setattr(
        registry, "__file__", str(checkout / "platform" / "tracking" / "registry.py")
    )
    folders = {Path(path).relative_to(checkout).as_posix() for path in registry._code_paths()}
    assert folders == {"dynaflip", "encoders", "losses", "platform"}
    checkout.mkdir(parents=True)
    (checkout / "__init__.py").touch()
    assert registry._code_paths() == [str(checkout)]
