"""Other people's models as comparators: names, options, pins, licences and features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub_server import Hub
from tiny_rollouts import encoder_folder, tiny

from dynaflip.encoders.outside_models import open_outside_model
from dynaflip.errors import UserError
from dynaflip.platform.evaluation.encoder_entries import EncoderEntry, read_entries, read_entry
from dynaflip.platform.evaluation.encoders_under_test import (
    EncoderUnderTest,
    load,
    resolve_encoders,
    resolve_others,
)
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig
from dynaflip.platform.evaluation.report.encoder_table import encoder_section
from tests.encoders.outside_folders import outside_folder

IMAGES = torch.randint(0, 256, (2, 40, 40, 3), generator=torch.Generator().manual_seed(2)).byte()


def others(config: ProbeSuiteConfig) -> dict[str, EncoderUnderTest]:
    return {entry.name: entry for entry in resolve_others(config)}


def test_entries_name_encoders_and_how_they_are_read() -> None:
    assert read_entry("a=x,y") == EncoderEntry("a", ("x", "y"))
    read = read_entry("big one[mean, 112px, licence: CC BY-NC 4.0]=facebook/dinov2-base@main")
    assert (read.name, read.uris) == ("big one", ("facebook/dinov2-base@main",))
    assert (read.pooling, read.image_px, read.licence) == ("mean", 112, "CC BY-NC 4.0")
    assert read_entry("initialisation").baseline == "initialization"
    assert read_entry("models:/dynaflip/3").name == "dynaflip 3"
    assert read_entry("facebook/dinov2-base@main").name == "dinov2-base"
    assert read_entry("/some/folder/mine").uris == ("/some/folder/mine",)
    for text, said in {
        "dinov2": "must read NAME=URI",
        "a=": "must read NAME=URI",
        "a[max]=x/y": "the option 'max'; known: cls\\+mean, cls, mean, pooler",
        "a/b=x": "the name 'a/b' may hold",
    }.items():
        with pytest.raises(ValueError, match=said):
            read_entry(text)
    with pytest.raises(ValueError, match="two are called a"):
        read_entries(["a=x/y", "a=x/z"])


def test_every_kind_of_model_stands_beside_the_encoder_under_test(
    home: Path, tmp_path: Path
) -> None:
    dinov2 = outside_folder("dinov2", tmp_path / "dinov2", licence="apache-2.0")
    siglip = outside_folder("siglip2", tmp_path / "siglip2")
    (siglip / "README.md").unlink()
    entries = (
        f"dinov2={dinov2}",
        f"dinov2 mean[mean,84px]={dinov2}",
        f"siglip2={siglip}",
        f"said[licence: mine alone]={siglip}",
        "effnet[32px]=efficientnet-lite0",
        f"other={encoder_folder(tmp_path / 'other', seed=1)}",
        "initialisation",
        "random",
    )
    config = tiny(encoder_folder(tmp_path / "encoder"), encoders=entries, seeds=1)
    tested = {entry.name: entry for entry in resolve_encoders(config)}
    # The initialisation is a baseline already: it is evaluated once.
    assert list(tested) == [
        "trained", "initialization", "random", "dinov2", "dinov2 mean", "siglip2", "said",
        "effnet", "other", "scripted expert", "random policy",
    ]  # fmt: skip
    rows = {row[0]: row[1:] for row in encoder_section(list(tested.values())).rows}
    assert rows["dinov2"] == [str(dinov2), "cls+mean", "56 px", "apache-2.0"]
    assert rows["dinov2 mean"][1:] == ["mean", "84 px", "apache-2.0"]
    assert rows["siglip2"][1:] == ["pooler", "64 px", "unknown"]
    assert rows["said"][3] == "mine alone"
    assert rows["effnet"][0] == "efficientnet-lite0"
    assert rows["effnet"][1:3] == ["own", "32 px"]
    assert "scripted expert" not in rows
    plain = open_outside_model(str(dinov2), pooling="mean", image_px=84)
    with torch.no_grad():
        found = load(tested["dinov2 mean"].encoders[0])(IMAGES)
        torch.testing.assert_close(found, plain(IMAGES), atol=1e-5, rtol=1e-4)
    # Equal features have equal digests, so that finished jobs are found.
    digests = {name: entry.encoders[0].digest for name, entry in tested.items()}
    assert digests["siglip2"] == digests["said"]
    assert digests["trained"] == digests["initialization"] == digests["random"]  # never trained
    assert len(set(digests.values())) == len(digests) - 3


def test_a_hub_id_is_pinned_and_its_copy_needs_the_hub_no_more(
    home: Path, tmp_path: Path, model_hub: Hub
) -> None:
    encoder = str(encoder_folder(tmp_path / "encoder"))
    commit = model_hub.push("maker/model", outside_folder("dinov3", tmp_path / "first"))
    config = ProbeSuiteConfig(encoder=encoder, encoders=("maker/model",))
    (found,) = others(config)["model"].encoders
    assert found.name == f"maker/model@{commit}"
    later = model_hub.push("maker/model", outside_folder("dinov2", tmp_path / "second"))
    (moved,) = others(config)["model"].encoders
    assert (moved.name, moved.digest == found.digest) == (f"maker/model@{later}", False)
    asked = len(model_hub.requests)
    pinned = ProbeSuiteConfig(encoder=encoder, encoders=(f"model=maker/model@{commit}",))
    (again,) = others(pinned)["model"].encoders
    assert (again.digest, again.folder) == (found.digest, found.folder)
    assert load(again)(IMAGES).shape == (2, 32)
    assert len(model_hub.requests) == asked


def test_probes_take_baselines_by_name_and_the_initialisation_once(
    home: Path, tmp_path: Path
) -> None:
    encoder = str(encoder_folder(tmp_path / "encoder"))
    words = ("initialisation", "imagenet", "random")
    found = others(ProbeSuiteConfig(encoder=encoder, encoders=words))
    assert list(found) == ["imagenet", "random"]  # beside the initialisation that is always there
    assert found["imagenet"].encoders[0].digest != found["random"].encoders[0].digest


RESTLESS = """
import torch

from dynaflip.encoders.backbones.base import Backbone


class Restless(Backbone):
    @classmethod
    def from_settings(cls, config):
        backbone = cls()
        backbone.scale = torch.nn.Parameter(torch.ones(1))
        return backbone

    def forward(self, pixels):
        tokens = torch.rand(len(pixels), 4, 6)
        return tokens.mean(1) * self.scale, tokens
"""


def test_options_and_names_that_do_not_fit_are_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = str(encoder_folder(tmp_path / "encoder"))
    (tmp_path / "restless_net.py").write_text(RESTLESS)
    monkeypatch.syspath_prepend(str(tmp_path))
    for entry, said in {
        f"mine[mean]={encoder}": "an encoder of this package, .* leave the options out",
        f"file={tmp_path}/restless_net.py": "is a file; give the encoder's folder",
        f"initial={encoder}": "initial is the name of a baseline",
        f"two={encoder},{encoder}": "two has several encoders",
        "own=class:restless_net:Restless": "own: encoder: the same image gave other features",
        "own=class:restless_net:Restles": "encoders: own: cannot import .*; did you mean Restless",
        "own=class:pathlib:Path": "encoders: own: class:pathlib:Path is no subclass of",
        "effnet[mean]=efficientnet-lite0": "effnet: efficientnet-lite0: it has its own pooling",
    }.items():
        with pytest.raises(UserError, match=said):
            resolve_others(ProbeSuiteConfig(encoder=encoder, encoders=(entry,)))
