"""The encoders that an evaluation compares: the one under test, its baselines, and others."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoder_entries import BASELINES, EncoderEntry, read_entries
from dynaflip.platform.evaluation.initialisation import initialisation_of
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig
from dynaflip.platform.paths import made_encoders
from dynaflip.platform.tracking import registry

if TYPE_CHECKING:
    from dynaflip.encoders.image import ImageEncoder

TRAINED = "trained"
EXPERT, RANDOM_POLICY = "scripted expert", "random policy"
NO_IMAGE = "no image"  # policies of the suite offline that are given everything but the image
# Promotion and the probes' tables read these names, so no other encoder may take one.
_RESERVED = (TRAINED, *BASELINES, EXPERT, RANDOM_POLICY, "initial", "raw pixels", "mean", NO_IMAGE)


@dataclass(frozen=True)
class Encoder:
    """An encoder on disk. ``folder`` is None for the policies that use none."""

    name: str  # as the user gave it
    folder: str | None
    digest: str  # of weights and preprocessing: equal digests give equal features
    backbone: str | None = None  # the user's own class that the folder names, to load it with
    licence: str = ""  # in the user's words, instead of those of the folder

    def code(self) -> tuple[str, ...]:
        """The version of the user's own class; nothing where the folder's backbone is another."""
        return code_of_backbone(self.backbone)


def code_of_backbone(name: str | None) -> tuple[str, ...]:
    """The version of a backbone that is not built in; nothing where none is named."""
    if name is None:
        return ()
    from dynaflip.encoders.backbones import BACKBONES

    return BACKBONES.code_of(name)


@dataclass(frozen=True)
class EncoderUnderTest:
    """One entry of a comparison: an encoder under test or a baseline, for each pretraining seed."""

    name: str
    encoders: tuple[Encoder, ...]  # one per pretraining seed

    def encoder(self, seed: int) -> Encoder:
        """The encoder that policy ``seed`` is trained on."""
        return self.encoders[seed % len(self.encoders)]


def resolve_encoders(
    config: RolloutConfig | OfflineConfig, built_in: Path | None = None
) -> list[EncoderUnderTest]:
    """The encoder under test, the baselines, and the other encoders, in the table's order.

    Args:
        config: of the evaluation.
        built_in: folder of the encoders that are made here; None: the home's.

    Raises:
        UserError: an encoder does not exist, two entries share a name or one takes a reserved
            name, or an entry has several encoders and another number of policies.
    """
    trained = [encoder_at(uri, config.backbone) for uri in _split(config.encoder)]
    if not trained:
        raise UserError("encoder must not be empty")
    tested = [EncoderUnderTest(TRAINED, tuple(trained))]
    entries = read_entries(config.encoders)
    named = [entry.baseline for entry in entries if entry.baseline is not None]
    for baseline in dict.fromkeys([*config.baselines, *named]):
        built = [_build_baseline(baseline, encoder, built_in) for encoder in trained]
        # Equal weights (an initialisation from ImageNet, say) are one encoder.
        equal = len({encoder.digest for encoder in built}) == 1
        tested.append(EncoderUnderTest(baseline, tuple(built[:1] if equal else built)))
    tested += [_entry(e, config.backbone, built_in) for e in entries if e.baseline is None]
    if isinstance(config, RolloutConfig) and config.check_harness:
        without = [Encoder(name, None, name) for name in (EXPERT, RANDOM_POLICY)]
        tested += [EncoderUnderTest(encoder.name, (encoder,)) for encoder in without]
    _check_entries(tested, config.seeds)
    return tested


def resolve_others(
    config: ProbeSuiteConfig, built_in: Path | None = None
) -> list[EncoderUnderTest]:
    """The encoders that probes compare with beside the initialisation, which is always there.

    Args:
        config: of the evaluation.
        built_in: folder of the encoders that are made here; None: the home's.

    Raises:
        UserError: an encoder does not exist, takes a reserved name, or has several seeds.
    """
    tested = []
    for entry in read_entries(config.encoders):
        if entry.baseline == "initialization":
            continue
        if entry.baseline is not None:
            trained = encoder_at(config.encoder, config.backbone)
            built = _build_baseline(entry.baseline, trained, built_in)
            tested.append(EncoderUnderTest(entry.name, (built,)))
            continue
        if len(entry.uris) > 1:
            raise UserError(f"encoders: {entry.name} has several encoders; probes take one each")
        tested.append(_entry(entry, config.backbone, built_in))
    return tested


def _entry(
    entry: EncoderEntry, backbone: str | None, built_in: Path | None = None
) -> EncoderUnderTest:
    """The encoders of an entry that is no baseline."""
    if entry.name in _RESERVED:
        raise UserError(
            f"encoders: {entry.name} is the name of a baseline that is built here "
            "(--baselines, --check_harness); choose another"
        )
    encoders = tuple(_other(uri, entry, backbone, built_in) for uri in entry.uris)
    return EncoderUnderTest(entry.name, encoders)


def _other(uri: str, entry: EncoderEntry, backbone: str | None, built_in: Path | None) -> Encoder:
    """An encoder of the registry or in a folder, or a model of others as it stands."""
    from dynaflip.encoders.backbones import backbone_class, own_class
    from dynaflip.encoders.outside_models import is_outside_model, source_of
    from dynaflip.platform.evaluation.outside_encoders import outside_folder

    if Path(uri).is_file():
        raise UserError(
            f"encoders: {entry.name}: {uri} is a file; give the encoder's folder, or one of "
            "`dynaflip export URI FOLDER --format transformers`"
        )
    if not is_outside_model(uri):
        if entry.options():
            raise UserError(
                f"encoders: {entry.name}: {uri} is an encoder of this package, which has its own "
                "pooling and image size; leave the options out"
            )
        return replace(encoder_at(uri, backbone), licence=entry.licence)
    if own_class(uri):
        backbone_class(uri, setting=f"encoders: {entry.name}")
    source = source_of(uri)
    own = own_class(source) or backbone
    encoder = _encoder_in(outside_folder(source, entry, own, built_in), source, own)
    return replace(encoder, licence=entry.licence)


def _check_entries(tested: list[EncoderUnderTest], seeds: int) -> None:
    names = [entry.name for entry in tested]
    for entry in tested:
        number = len(entry.encoders)
        # Two policies of one pretraining seed are no two seeds, and one left out is lost.
        if number not in (1, seeds):
            raise UserError(
                f"seeds: {entry.name} has {number} pretraining seeds; give --seeds {number}, "
                f"a policy for each"
            )
        if names.count(entry.name) > 1:
            raise UserError(f"encoders: two are called {entry.name}")


def load(encoder: Encoder) -> ImageEncoder:
    """An encoder for use: eval mode, on the CPU."""
    from dynaflip.encoders.checkpoint import load_image_encoder

    assert encoder.folder is not None
    return load_image_encoder(encoder.folder, backbone=encoder.backbone)


def info_of(encoder: Encoder) -> dict[str, Any]:
    """Origin of the encoder, as its folder records it; empty for policies without one."""
    if encoder.folder is None:
        return {}
    return json.loads((Path(encoder.folder) / "config.json").read_text())["info"]


def single_seed_notes(tested: list[EncoderUnderTest]) -> list[str]:
    """A note where all policies of an entry are trained on one pretrained encoder; else nothing.

    An initialisation is no draw of a pretraining, however many policies are trained on it.
    """
    names = [
        entry.name
        for entry in tested
        if len(entry.encoders) == 1
        and entry.encoders[0].folder is not None
        and "baseline" not in info_of(entry.encoders[0])
    ]
    if not names:
        return []
    return [
        f"note: one pretraining seed of {', '.join(names)}, so its intervals and verdicts leave "
        "out how much another pretraining would differ"
    ]


def weights_digest(uri: str) -> str:
    """The digest of an encoder's weights and preprocessing, as in an evaluation's episodes."""
    from dynaflip.encoders import checkpoint

    return checkpoint.weights_digest(registry.resolve(uri))


def encoder_at(uri: str, backbone: str | None = None) -> Encoder:
    """An encoder of the registry or in a folder, with the digest of its weights.

    Args:
        uri: of the encoder.
        backbone: the user's own class, where they have named one.

    Raises:
        UserError: there is none, it does not load, or it has another class as its backbone.
    """
    return _encoder_in(registry.resolve(uri), uri, backbone)


def _encoder_in(folder: Path, name: str, backbone: str | None) -> Encoder:
    from dynaflip.encoders import checkpoint

    backbone = checkpoint.allowed_backbone(folder, backbone)
    checkpoint.load_image_encoder(
        folder, backbone=backbone
    )  # complete and readable, or a clear error now
    return Encoder(name, str(folder), checkpoint.weights_digest(folder), backbone)


def _split(uris: str) -> list[str]:
    return [uri.strip() for uri in uris.split(",") if uri.strip()]


def _build_baseline(name: str, encoder: Encoder, built_in: Path | None = None) -> Encoder:
    """Build a baseline of the encoder's image size, and except ImageNet's of its architecture."""
    from dynaflip.encoders.checkpoint import load_model, save_folder
    from dynaflip.encoders.config import EFFICIENTNET_LITE0, ImageConfig

    assert encoder.folder is not None
    trained = load_model(encoder.folder, backbone=encoder.backbone)
    model_config = trained.config
    if name != "initialization":
        image = replace(trained.config.image, pretrained=False)
        if name == "imagenet":  # the weights that ship in a package, whatever the backbone is
            image = ImageConfig(EFFICIENTNET_LITE0, image_px=image.image_px)
        model_config = replace(trained.config, image=image)
    model = initialisation_of(trained, model_config)
    folder = (built_in or made_encoders()) / f"{name}-of-{encoder.digest}"
    save_folder(folder, model, {"baseline": name, "of": encoder.name})
    return _encoder_in(folder, f"{name} of {encoder.name}", encoder.backbone)
