"""The image encoder: one RGB image → one vector, and spatial tokens. Nothing else at use.

Frame embedding of DynaFLIP (arXiv 2605.30350): a vision transformer's [CLS] ⊕ the mean of its
patch tokens; for a convolutional network the mean of its spatial tokens.
Shapes: B images, D embedding width, P spatial tokens of width D'.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynaflip.encoders import preprocessing
from dynaflip.encoders.backbones import transformers_vision
from dynaflip.encoders.backbones.efficientnet_lite import (
    HEAD_CHANNELS,
    EfficientNetLite0,
    load_packaged_weights,
)
from dynaflip.encoders.config import EFFICIENTNET_LITE0, ImageConfig
from dynaflip.errors import UserError

# EfficientNet-Lite was trained on (value − 127) / 128.
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


class ImageEncoder(nn.Module):
    """Images to embeddings. ``info`` tells where the weights come from.

    Attributes:
        config: the settings it was built with.
        dim: D, width of an embedding.
        token_dim: D', width of a spatial token.
        preprocessing: ``image_px``, ``mean``, ``std``: what happens to an image first.
        architecture: a transformers model's configuration, None for EfficientNet-Lite0.
        info: free for the checkpoint: config, git commit, data digest, metrics.
    """

    def __init__(
        self,
        config: ImageConfig,
        backbone: Backbone,
        dim: int,
        token_dim: int,
        preprocessing: Mapping[str, Any],
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.dim = dim
        self.token_dim = token_dim
        self.preprocessing = dict(preprocessing)
        self.architecture = None if architecture is None else dict(architecture)
        self.info: dict[str, Any] = {}
        # Torch's stubs do not know this overload.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Any) -> Tensor:
        """Embeddings of images: (B, D).

        Args:
            images: (B, H, W, 3) or (B, 3, H, W), uint8 or float in [0, 1], any size; resizing
                and normalising happen inside.

        Raises:
            UserError: another shape, type or range.
        """
        return self.features(self._checked(images))[0]

    def tokens(self, images: Any) -> Tensor:
        """Spatial features of images in row-major order: (B, P, D'). As :meth:`forward`."""
        return self.features(self._checked(images))[1]

    def preprocess(self, images: Any) -> Tensor:
        """Check, resize and normalise: images → (B, 3, px, px) float32."""
        pre = self.preprocessing
        images = preprocessing.channels_first(images)
        return preprocessing.to_pixels(images, pre["image_px"], pre["mean"], pre["std"])

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, px, px) → embedding (B, D) and tokens (B, P, D').

        In the weights' own precision, so that ``encoder.half()`` just works.
        """
        return self.backbone(pixels.to(next(self.parameters()).dtype))

    def train(self, mode: bool = True) -> ImageEncoder:
        """As of nn.Module, but BatchNorm keeps its statistics unless the setting frees them."""
        super().train(mode)
        if not self.config.train_batchnorm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def recompute_activations(self) -> None:
        """Keep no activations inside the blocks: the backward pass computes them again."""
        for block in self.backbone.blocks():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def freeze_unread(self) -> None:
        """Freeze weights that no embedding depends on, such as a mask token or an unused pooler.

        They get no gradient, and DDP would wait for it.
        """
        px, training = self.preprocessing["image_px"], self.training
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trained:
            return
        blank = torch.zeros(1, 3, px, px, device=trained[0].device)
        with torch.enable_grad():
            embedding, _ = self.eval().features(blank)
            found = torch.autograd.grad(embedding.sum(), trained, allow_unused=True)
        self.train(training)
        for parameter, gradient in zip(trained, found, strict=True):
            parameter.requires_grad_(gradient is not None)

    def _checked(self, images: Any) -> Tensor:
        images = preprocessing.channels_first(images)
        preprocessing.check_range(images)
        device = next(self.parameters()).device
        return self.preprocess(images.to(device))


class Backbone(nn.Module):
    """A network behind the one interface that :class:`ImageEncoder` uses."""

    # First blocks (and what comes before them) that get no gradient.
    frozen_blocks: int = 0

    def blocks(self) -> nn.ModuleList:
        """Its repeated blocks, in order."""
        raise NotImplementedError


class LiteBackbone(Backbone):
    """EfficientNet-Lite0 with its first blocks frozen."""

    def __init__(self, frozen_blocks: int) -> None:
        super().__init__()
        self.network = EfficientNetLite0()
        if frozen_blocks > len(self.network.blocks):
            raise UserError(f"frozen_blocks: {frozen_blocks} of {len(self.network.blocks)} blocks")
        self.frozen_blocks = frozen_blocks
        if frozen_blocks:
            for part in (self.network.stem, *self.network.blocks[:frozen_blocks]):
                part.requires_grad_(False)

    def blocks(self) -> nn.ModuleList:
        """The inverted residual blocks."""
        return self.network.blocks

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, px, px) → (B, 1280) and (B, P, 1280)."""
        network, frozen = self.network, self.frozen_blocks
        # Saliency asks for gradients of the pixels, through frozen blocks too.
        with torch.no_grad() if frozen and not pixels.requires_grad else nullcontext():
            x = network.stem(pixels)
            for block in network.blocks[:frozen]:
                x = block(x)
        for block in network.blocks[frozen:]:
            x = block(x)
        tokens = network.head(x).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens


class TransformersBackbone(Backbone):
    """A transformers vision model: DINOv2, ViT, SigLIP, CLIP, or a convolutional one."""

    def __init__(self, network: nn.Module, frozen_blocks: int) -> None:
        super().__init__()
        self.network = network
        self.prefix_tokens = transformers_vision.prefix_tokens(network)
        self.call_settings = transformers_vision.call_settings(network)
        transformers_vision.freeze_first_blocks(network, frozen_blocks)

    def blocks(self) -> nn.ModuleList:
        """The transformer's layers, or a convolutional network's stages."""
        return transformers_vision.longest_list(self.network)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, px, px) → (B, D) and (B, P, D')."""
        out = self.network(pixel_values=pixels, **self.call_settings)
        hidden = out.last_hidden_state
        if hidden.ndim == 4:
            tokens = hidden.flatten(2).transpose(1, 2)
            return tokens.mean(1), tokens
        tokens = hidden[:, self.prefix_tokens :]
        if self.prefix_tokens:
            return torch.cat([hidden[:, 0], tokens.mean(1)], -1), tokens
        # SigLIP has no [CLS]: its attention pooling plays that part.
        pooled = getattr(out, "pooler_output", None)
        mean = tokens.mean(1)
        return mean if pooled is None else torch.cat([pooled, mean], -1), tokens


def build_image_encoder(
    config: ImageConfig,
    architecture: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> ImageEncoder:
    """The image encoder that the settings name.

    Args:
        config: the settings.
        architecture: a saved transformers configuration: the network is then built from it
            with random weights, to be filled from a checkpoint, and nothing is looked up.
        preprocessing: saved with it.

    Raises:
        UserError: the model cannot be reached or does not fit the settings.
    """
    if config.name == EFFICIENTNET_LITE0:
        lite = LiteBackbone(config.frozen_blocks)
        if config.pretrained and preprocessing is None:
            load_packaged_weights(lite.network)
        pre = {"image_px": config.image_px, "mean": LITE_MEAN, "std": LITE_STD}
        encoder = ImageEncoder(config, lite, HEAD_CHANNELS, HEAD_CHANNELS, preprocessing or pre)
        if not config.pretrained and preprocessing is None:
            _calibrate_batchnorm(encoder)
        return encoder.train(True)
    if architecture is None:
        network, mean, std = transformers_vision.load_vision_model(config.name, config.pretrained)
        preprocessing = {"image_px": config.image_px, "mean": mean, "std": std}
    else:
        assert preprocessing is not None
        network = transformers_vision.vision_model_from(architecture)
    backbone = TransformersBackbone(network, config.frozen_blocks)
    dim, token_dim = _widths(backbone, config)
    described = transformers_vision.describe(network)
    encoder = ImageEncoder(config, backbone, dim, token_dim, preprocessing, described)
    if not config.pretrained and architecture is None:
        _calibrate_batchnorm(encoder)
    return encoder.train(True)


@torch.no_grad()
def _calibrate_batchnorm(encoder: ImageEncoder) -> None:
    """Give random weights the BatchNorm statistics of fixed images of random colour fields.

    A data-dependent initialisation (Mishkin and Matas 2016, arXiv 1511.06422). With the
    statistics that BatchNorm begins with (0 and 1), frozen, activations of a deep random
    network die out: EfficientNet-Lite0 then gives features near 1e-10 that show nothing.
    """
    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    generator = torch.Generator().manual_seed(0)
    side = encoder.preprocessing["image_px"]
    fields = []
    for cells in (2, 4, 8, 16):
        coarse = torch.rand(8, 3, cells, cells, generator=generator)
        fields.append(nn.functional.interpolate(coarse, size=(side, side), mode="bilinear"))
    momenta = [norm.momentum for norm in norms]
    encoder.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    encoder.features(encoder.preprocess(torch.cat(fields)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def _widths(backbone: nn.Module, config: ImageConfig) -> tuple[int, int]:
    """D and D', by one blank image: it also tells whether the size suits the network."""
    backbone.eval()
    blank = torch.zeros(1, 3, config.image_px, config.image_px)
    try:
        embedding, tokens = backbone(blank)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"image_px: {config.name} does not take {config.image_px} px: {reason}"
        ) from None
    return embedding.shape[1], tokens.shape[2]
