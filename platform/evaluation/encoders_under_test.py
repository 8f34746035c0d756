"""The encoders that are set side by side, each a folder with a digest of its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.rollout_config import BASELINES, RolloutConfig
from dynaflip.platform.paths import home
from dynaflip.platform.tracking import registry

TRAINED = "trained"
EXPERT, RANDOM_POLICY = "scripted expert", "random policy"
# What these are called in a table is what they are, and promotion goes by it.
_OURS = (TRAINED, *BASELINES, EXPERT, RANDOM_POLICY)


@dataclass(frozen=True)
class Encoder:
    """An encoder on disk. ``folder`` is None for the policies that use none."""

    name: str  # as the user gave it
    folder: str | None
    digest: str  # of weights and preprocessing: equal digests give equal features


@dataclass(frozen=True)
class Arm:
    """What is compared: a way of pretraining, with an encoder for each pretraining seed."""

    name: str
    encoders: tuple[Encoder, ...]

    def encoder(self, seed: int) -> Encoder:
        """That policy ``seed`` learns from."""
        return self.encoders[seed % len(self.encoders)]


def resolve_arms(config: RolloutConfig) -> list[Arm]:
    """The encoder under test, the baselines, and the other arms, in the table's order.

    Raises:
        UserError: an encoder does not exist, two arms share a name or one takes a name that is
            made here, or an arm has several encoders and another number of policies.
    """
    trained = [encoder_at(uri) for uri in _split(config.encoder)]
    if not trained:
        raise UserError("encoder must not be empty")
    arms = [Arm(TRAINED, tuple(trained))]
    for baseline in config.baselines:
        made = [_baseline(baseline, encoder) for encoder in trained]
        # Equal weights (an initialisation from ImageNet, say) are one encoder.
        alike = len({encoder.digest for encoder in made}) == 1
        arms.append(Arm(baseline, tuple(made[:1] if alike else made)))
    for text in config.arms:
        name, _, uris = text.partition("=")
        if name.strip() in _OURS:
            raise UserError(
                f"arms: {name.strip()} is the name of an arm that is made here (--baselines, "
                "--check_harness); choose another"
            )
        arms.append(Arm(name.strip(), tuple(encoder_at(uri) for uri in _split(uris))))
    if config.check_harness:
        arms += [Arm(name, (Encoder(name, None, name),)) for name in (EXPERT, RANDOM_POLICY)]
    for arm in arms:
        number = len(arm.encoders)
        # Two policies of one pretraining seed are no two seeds, and one left out is lost.
        if number not in (1, config.seeds):
            raise UserError(
                f"seeds: {arm.name} has {number} pretraining seeds; give --seeds {number}, "
                f"a policy for each"
            )
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"arms: two are called {name}")
    return arms


def info_of(encoder: Encoder) -> dict[str, Any]:
    """What the encoder's folder says about its making."""
    if encoder.folder is None:
        return {}
    return json.loads((Path(encoder.folder) / "config.json").read_text())["info"]


def single_seed_notes(arms: list[Arm]) -> list[str]:
    """A note, where some arm's policies all learn from one pretrained encoder; else nothing.

    An initialisation is no draw of a pretraining, however many policies learn from it.
    """
    names = [
        arm.name
        for arm in arms
        if len(arm.encoders) == 1
        and arm.encoders[0].folder is not None
        and "baseline" not in info_of(arm.encoders[0])
    ]
    if not names:
        return []
    return [
        f"note: one pretraining seed of {', '.join(names)}, so its intervals and verdicts leave "
        "out how much another pretraining would differ"
    ]


def weights_digest(uri: str) -> str:
    """The digest of an encoder's weights and preprocessing, as in an evaluation's episodes."""
    return encoder_at(uri).digest


def encoder_at(uri: str) -> Encoder:
    """An encoder of the registry or in a folder, with the digest of its weights.

    Raises:
        UserError: there is none, or it does not load.
    """
    folder = registry.resolve(uri)
    return Encoder(uri, str(folder), _weights_digest(folder))


def _split(uris: str) -> list[str]:
    return [uri.strip() for uri in uris.split(",") if uri.strip()]


def _weights_digest(folder: Path) -> str:
    from dynaflip.encoders.checkpoint import CONFIG, ENCODER, load_image_encoder

    load_image_encoder(folder)  # complete and readable, or a clear line now
    described = json.loads((folder / CONFIG).read_text())
    # Equal tensors of another architecture (more heads, another activation) see otherwise.
    recipe = [described["preprocessing"], described["image_architecture"]]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    digest.update((folder / ENCODER).read_bytes())
    return digest.hexdigest()[:16]


def _baseline(name: str, encoder: Encoder) -> Encoder:
    """Make a baseline of the encoder's image size, and but for ImageNet's of its architecture."""
    import torch

    from dynaflip.encoders.checkpoint import load_model, save_folder
    from dynaflip.encoders.config import EFFICIENTNET_LITE0, ImageConfig
    from dynaflip.encoders.model import DynaFLIP
    from dynaflip.platform.training.checkpoint_format import seed_step

    assert encoder.folder is not None
    trained = load_model(encoder.folder)
    settings = trained.image.info.get("config", {})
    if name == "initialization":
        model_config = trained.config
    else:
        image = replace(trained.config.image, pretrained=False)
        if name == "imagenet":  # the weights that ship in a package, whatever the backbone is
            image = ImageConfig(EFFICIENTNET_LITE0, image_px=image.image_px)
        model_config = replace(trained.config, image=image)
    with torch.random.fork_rng(devices=[]):
        # As the training loop does before it builds the model.
        seed_step(int(settings.get("train", {}).get("seed", 0)), 0, 0)
        model = DynaFLIP(model_config).eval()
    folder = home() / "evaluation" / "encoders" / f"{name}-of-{encoder.digest}"
    save_folder(folder, model, {"baseline": name, "of": encoder.name})
    return Encoder(f"{name} of {encoder.name}", str(folder), _weights_digest(folder))
