"""Export of an image encoder: torch.export, ONNX, or a transformers folder.

An exported program or ONNX file takes (B, 3, px, px) float32 RGB in [0, 1], px the encoder's own
size, and gives the embedding (B, D) and the spatial tokens (B, P, D'); B is free. Normalisation is
inside. Resizing is not: runtimes resize in ways of their own.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dynaflip.encoders.backbones.base import Backbone
from dynaflip.encoders.backbones.transformers_vision import TransformersBackbone
from dynaflip.encoders.image import ImageEncoder
from dynaflip.encoders.model_card import model_card
from dynaflip.encoders.source_bundle import bundle
from dynaflip.errors import UserError

_MODEL = "dynaflip.encoders.exported_model"
INPUT, OUTPUTS = "images", ("embedding", "tokens")


class Exportable(nn.Module):
    """An encoder without its checks and its resizing."""

    mean: Tensor  # (1, 3, 1, 1)
    std: Tensor  # (1, 3, 1, 1)

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        pre = encoder.preprocessing
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(pre[name]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, px, px) float32 in [0, 1] → embedding (B, D) and tokens (B, P, D')."""
        return self.encoder.features((images - self.mean) / self.std)


def export_program(
    encoder: ImageEncoder, path: str | Path | None = None
) -> torch.export.ExportedProgram:
    """The encoder as an ``ExportedProgram``, saved as ``path`` (.pt2) where one is given."""
    exportable, example = _prepared(encoder)
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=4096)}}
    with torch.no_grad():
        program = torch.export.export(exportable, (example,), dynamic_shapes=batch)
    if path is not None:
        torch.export.save(program, path)
    return program


def export_onnx(encoder: ImageEncoder, path: str | Path) -> Path:
    """Write the encoder as an ONNX file, checked by ONNX's own checker.

    Raises:
        UserError: the packages of the extra ``export`` are missing.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise UserError(
            f"export to ONNX needs {' and '.join(missing)}: pip install 'dynaflip[export]'"
        )
    import onnx

    program = torch.onnx.export(
        export_program(encoder),
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    onnx.checker.check_model(str(path))
    return Path(path)


def save_transformers(encoder: ImageEncoder, folder: str | Path) -> Path:
    """Write a folder that transformers loads without this package.

    ``AutoModel.from_pretrained(folder, trust_remote_code=True)`` gives a model whose
    ``pooler_output`` is the embedding (B, D), whose ``last_hidden_state`` is the spatial tokens
    (B, P, D'), and whose ``encode(images)`` takes images of any size as the encoder does. Its code
    is copied from this package into the folder. With a backbone of transformers, plain
    ``AutoModel.from_pretrained(folder)`` loads that backbone alone, in transformers of the same
    major version.

    Args:
        encoder: any; low-rank additions folded.
        folder: new or empty, or made by this function.

    Raises:
        UserError: the backbone's source is not available.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pre = encoder.preprocessing
    settings: dict[str, Any] = {
        "image_px": pre["image_px"],
        "mean": list(pre["mean"]),
        "std": list(pre["std"]),
        "token_grid": _token_grid(encoder),
        "train_batchnorm": encoder.config.train_batchnorm,
    }
    if isinstance(encoder.backbone, TransformersBackbone):
        _save_around_transformers(encoder.backbone, folder, settings)
    else:
        settings["image"] = asdict(replace(encoder.config, frozen_blocks=0))
        settings["architecture"] = encoder.architecture
        _save_with_backbone(encoder.backbone, folder, settings)
    # What `ImageEncoder.preprocess` does, which the backbone's own processor may not.
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": pre["image_px"], "width": pre["image_px"]},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pre["mean"]),
        "image_std": list(pre["std"]),
    }
    _write_json(folder / "preprocessor_config.json", processor)
    card = model_card(encoder, encoder.info, library="transformers")
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _save_around_transformers(
    backbone: TransformersBackbone, folder: Path, settings: dict[str, Any]
) -> None:
    """A backbone of transformers in its own format, and code that adds our features to it."""
    network: Any = backbone.network
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_dynaflip.DynaFLIPVisionModel"}
    config["dynaflip"] = settings
    _write_json(folder / "config.json", config)
    source = bundle([f"{_MODEL}:DynaFLIPVisionModel"])
    (folder / "modeling_dynaflip.py").write_text(source, encoding="utf-8")


def _save_with_backbone(backbone: Backbone, folder: Path, settings: dict[str, Any]) -> None:
    """Any other backbone, with its own source."""
    cls = type(backbone)
    weights = {
        f"backbone.{name}": value.detach().cpu().contiguous()
        for name, value in backbone.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    _write_json(
        folder / "config.json",
        {
            "model_type": "dynaflip",
            "architectures": ["DynaFLIPModel"],
            "auto_map": {
                "AutoConfig": "configuration_dynaflip.DynaFLIPConfig",
                "AutoModel": "modeling_dynaflip.DynaFLIPModel",
            },
            "dtype": str(next(backbone.parameters()).dtype).removeprefix("torch."),
            "dynaflip": settings,
        },
    )
    config = bundle([f"{_MODEL}:DynaFLIPConfig"])
    (folder / "configuration_dynaflip.py").write_text(config, encoding="utf-8")
    # Pretrained weights are in the folder: what would fetch them is left out, unless the backbone
    # is rebuilt by the same method.
    rebuilds = cls.from_description.__func__ is not Backbone.from_description.__func__  # type: ignore[attr-defined]
    omit = [f"{part.__name__}.from_settings" for part in cls.__mro__] if rebuilds else []
    source = bundle(
        [f"{_MODEL}:DynaFLIPModel", f"{cls.__module__}:{cls.__qualname__}"],
        omit=omit,
        imported={"DynaFLIPConfig": "from .configuration_dynaflip import DynaFLIPConfig"},
    )
    source += f"\n\nDynaFLIPModel.backbone_class = {cls.__qualname__}\n"
    (folder / "modeling_dynaflip.py").write_text(source, encoding="utf-8")


def _token_grid(encoder: ImageEncoder) -> tuple[int, int] | None:
    try:
        return encoder.token_grid
    except UserError:
        return None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _prepared(encoder: ImageEncoder) -> tuple[Exportable, Tensor]:
    """A copy of the module in evaluation mode on the CPU, and two example images."""
    px = encoder.preprocessing["image_px"]
    encoder = copy.deepcopy(encoder)  # the caller's may be in training, on a GPU, in half precision
    # Ordinary memory order: exporters do not all know channels_last.
    plain = Exportable(encoder).eval().float().cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return plain, torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(0))
