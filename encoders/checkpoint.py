"""The folder of a model: ``config.json``, ``encoder.safetensors``, ``towers.safetensors``.

``README.md`` beside them is the model card. The image encoder's weights have a file of their own,
because use needs nothing else. Nothing is pickled. A folder is complete or absent: it is written
under a hidden name and renamed. The image network's architecture is in ``config.json``, so that
loading needs neither a hub nor the folder that pretraining started from.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dynaflip.encoders.backbones import own_class
from dynaflip.encoders.config import FlowConfig, ImageConfig, LanguageConfig, ModelConfig
from dynaflip.encoders.image import ImageEncoder, rebuild_image_encoder
from dynaflip.encoders.model import DynaFLIP
from dynaflip.encoders.model_card import model_card
from dynaflip.errors import UserError
from dynaflip.files import replace_folder, unfinished_path
from dynaflip.renames import current_settings

FORMAT_VERSION = 1
CONFIG, ENCODER, TOWERS = "config.json", "encoder.safetensors", "towers.safetensors"
CARD = "README.md"
IMAGE_PREFIX = "image."
# What the configuration holds beside the format's version.
_DESCRIBED = ("model", "text_dim", "preprocessing", "image_architecture", "info")


def save_folder(folder: str | Path, model: DynaFLIP, info: Mapping[str, Any]) -> Path:
    """Write a model's folder, in place of one that is already there.

    Args:
        folder: where; its parent is made.
        model: the model, on any device.
        info: becomes ``encoder.info``: resolved config, git commit, data digest,
            metrics. Anything that JSON can hold.

    Returns:
        The absolute folder.
    """
    state = {key: _plain(value) for key, value in model.state_dict().items()}
    image = {k.removeprefix(IMAGE_PREFIX): v for k, v in state.items() if k.startswith("image.")}
    towers = {key: value for key, value in state.items() if not key.startswith(IMAGE_PREFIX)}
    described = _described(model.image, model.config, model.text_dim, info)
    weights = {ENCODER: image, TOWERS: towers}
    return _write(folder, described, weights, model_card(model.image, info))


def save_image_encoder(
    folder: str | Path, encoder: ImageEncoder, info: Mapping[str, Any], card: str
) -> Path:
    """Write an image encoder's folder without other towers, in place of one that is there.

    :func:`load_image_encoder` reads it; :func:`load_model` does not.

    Args:
        folder: where; its parent is made.
        encoder: the encoder, on any device.
        info: becomes ``encoder.info``.
        card: text of its README.md.

    Returns:
        The absolute folder.
    """
    state = {key: _plain(value) for key, value in encoder.state_dict().items()}
    described = _described(encoder, ModelConfig(image=encoder.config), 0, info)
    return _write(folder, described, {ENCODER: state}, card)


def _described(
    image: ImageEncoder, config: ModelConfig, text_dim: int, info: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "model": asdict(config),
        "text_dim": text_dim,
        "preprocessing": image.preprocessing,
        "image_architecture": image.architecture,
        "licence": image.backbone.licence,
        "info": dict(info),
    }


def _write(
    folder: str | Path,
    described: Mapping[str, Any],
    weights: Mapping[str, dict[str, Tensor]],
    card: str,
) -> Path:
    """Write all files under a hidden name and rename; the absolute folder."""
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        os.chmod(fresh, 0o755)
        for name, state in weights.items():
            save_file(state, fresh / name)
        (fresh / CARD).write_text(card, encoding="utf-8")
        (fresh / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        # mkdtemp and safetensors make files for their owner alone; these are to be shared.
        for path in fresh.iterdir():
            path.chmod(0o644)
        replace_folder(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def load_model(folder: str | Path, *, backbone: str | None = None) -> DynaFLIP:
    """The whole model of a folder, in evaluation mode, on the CPU.

    Args:
        folder: of :func:`save_folder`.
        backbone: as of :func:`load_image_encoder`.

    Raises:
        UserError: the folder is missing, incomplete or of another format.
    """
    described = _read_config(folder)
    config = _model_config(folder, described["model"])
    image = _image_encoder(folder, described, config.image, backbone)
    model = DynaFLIP(config, image=image, text_dim=described["text_dim"])
    state = {IMAGE_PREFIX + k: v for k, v in _read_tensors(folder, ENCODER).items()}
    _fill(folder, model, {**state, **_read_tensors(folder, TOWERS)})
    return model.eval()


def load_image_encoder(folder: str | Path, *, backbone: str | None = None) -> ImageEncoder:
    """The image encoder of a folder, in evaluation mode, on the CPU; ``info`` as saved.

    A folder may have been downloaded, so its backbone is a built-in one or one of an installed
    package; ``class:MODULE:NAME`` is taken from the caller alone.

    Args:
        folder: of :func:`save_folder`.
        backbone: name of the backbone instead of the folder's own.

    Raises:
        UserError: the folder is missing, incomplete or of another format, or its backbone is
            not available.
    """
    described = _read_config(folder)
    config = _model_config(folder, described["model"]).image
    encoder = _image_encoder(folder, described, config, backbone)
    _fill(folder, encoder, _read_tensors(folder, ENCODER))
    return encoder.eval()


def backbone_name(folder: str | Path) -> str:
    """The backbone that a folder names: pass it on for folders that the same job has made."""
    return str(_read_config(folder)["model"]["image"]["name"])


def weights_digest(folder: str | Path) -> str:
    """A hash of weights and preprocessing: equal ones give equal features."""
    described = json.loads((Path(folder) / CONFIG).read_text())
    # Equal tensors of another architecture (more heads, another activation) see otherwise.
    recipe = [described["preprocessing"], described["image_architecture"]]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    digest.update((Path(folder) / ENCODER).read_bytes())
    return digest.hexdigest()[:16]


def allowed_backbone(folder: str | Path, own: str | None) -> str | None:
    """The ``backbone`` to load a folder with, where the user's settings name a class of theirs.

    Args:
        folder: of :func:`save_folder`.
        own: ``class:MODULE:NAME`` from the user's settings. It serves a folder that names the
            same class; one with a backbone that is built in or installed needs none.

    Raises:
        UserError: the folder names another class.
    """
    name = backbone_name(folder)
    if own is None or own_class(name) is None:
        return None
    if name != own:
        raise UserError(f"backbone: {folder} has the backbone {name}, not {own}")
    return own


def load_for_use(
    folder: str | Path, uri: str, *, device: str | None = None, backbone: str | None = None
) -> ImageEncoder:
    """The image encoder of a folder on a device, in evaluation mode; ``info`` holds its URI.

    Args:
        folder: of :func:`save_folder`.
        uri: by which the user named it.
        device: ``cpu``, ``cuda``, …; the CPU by default.
        backbone: as of :func:`load_image_encoder`.

    Raises:
        UserError: as of :func:`load_image_encoder`.
    """
    encoder = load_image_encoder(folder, backbone=backbone)
    encoder.info.setdefault("uri", uri)
    return encoder if device is None else encoder.to(device)


def copy_encoder(folder: str | Path, target: str | Path) -> Path:
    """Copy what use needs of a model's folder: all but the weights of the other towers."""
    target = Path(target).absolute()
    fresh = unfinished_path(target)
    try:
        shutil.copytree(folder, fresh, ignore=shutil.ignore_patterns(TOWERS))
        replace_folder(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def _image_encoder(
    folder: str | Path, described: Mapping[str, Any], config: ImageConfig, backbone: str | None
) -> ImageEncoder:
    if backbone is None and own_class(config.name) is not None:
        raise UserError(
            f"{folder}: its backbone {config.name} is a class that is neither built in nor "
            "installed, and a folder may not choose which code runs; if the class is yours, name "
            f"it: load_encoder(folder, backbone={config.name!r}) in Python, --backbone "
            f"{config.name} in a job"
        )
    try:
        encoder = rebuild_image_encoder(
            config, described["image_architecture"], described["preprocessing"], backbone
        )
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    encoder.backbone.licence = described.get("licence") or encoder.backbone.licence
    encoder.info = described["info"]
    return encoder


def _plain(value: Tensor) -> Tensor:
    """A copy on the CPU in the ordinary memory order, which safetensors wants."""
    return value.detach().cpu().contiguous()


def _read_config(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / CONFIG
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no encoder here ({CONFIG} is missing)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    version = described.get("format_version") if isinstance(described, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: encoder format {version}; this code reads {FORMAT_VERSION}, "
            "use the release that wrote it"
        )
    if missing := [name for name in _DESCRIBED if name not in described]:
        raise UserError(f"{path}: {', '.join(missing)} missing; the file is incomplete")
    return described


def _model_config(folder: str | Path, saved: Mapping[str, Any]) -> ModelConfig:
    saved = current_settings(ModelConfig, saved)
    try:
        rest = {k: v for k, v in saved.items() if k not in ("image", "language", "flow")}
        return replace(
            ModelConfig(**rest),
            image=ImageConfig(**saved["image"]),
            language=LanguageConfig(**saved["language"]),
            flow=FlowConfig(**saved["flow"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: settings in {CONFIG} do not fit ({error})") from None


def _read_tensors(folder: str | Path, name: str) -> dict[str, Tensor]:
    path = Path(folder) / name
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{folder}: {name} is missing; the folder is incomplete") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _fill(folder: str | Path, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: the weights do not fit the settings{_other_release(folder)} ({reason})"
        ) from None


def _other_release(folder: str | Path) -> str:
    """A hint where the network is of another release of transformers than the one here."""
    architecture = _read_config(folder)["image_architecture"] or {}
    written = architecture.get("transformers_version")
    if written is None:
        return ""
    installed = importlib.metadata.version("transformers")
    if installed == written:
        return ""
    return (
        f": they were written with transformers {written}, and {installed} is installed, which "
        "may name them otherwise; `dynaflip export URI FOLDER --format transformers` writes a "
        "folder for either"
    )
