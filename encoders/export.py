"""An image encoder as others take it: torch.export, ONNX, a plain transformers folder.

What is exported takes (B, 3, px, px) float32 RGB in [0, 1], px the encoder's own size, and
gives the embedding (B, D) and the spatial tokens (B, P, D'); B is free. Normalisation is
inside. Resizing is not: runtimes resize in ways of their own.
"""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynaflip.encoders.image import ImageEncoder
from dynaflip.errors import UserError

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
    """Write the backbone as a folder that plain ``AutoModel.from_pretrained`` loads.

    Raises:
        UserError: the backbone is not of transformers.
    """
    network: Any = getattr(encoder.backbone, "network", None)
    if encoder.architecture is None or network is None:
        raise UserError(f"{encoder.config.name} is no transformers model; export it to ONNX")
    pre = encoder.preprocessing
    network.save_pretrained(folder)
    size = {"height": pre["image_px"], "width": pre["image_px"]}
    # Everything that `ImageEncoder.preprocess` does, whatever the backbone's own processor does.
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pre["mean"]),
        "image_std": list(pre["std"]),
    }
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(settings, indent=1))
    return Path(folder)


def _prepared(encoder: ImageEncoder) -> tuple[Exportable, Tensor]:
    """A copy of the module in evaluation mode on the CPU, and two example images."""
    px = encoder.preprocessing["image_px"]
    encoder = copy.deepcopy(encoder)  # the caller's may be in training, on a GPU, in half precision
    # Ordinary memory order: exporters do not all know channels_last.
    plain = Exportable(encoder).eval().float().cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return plain, torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(0))
