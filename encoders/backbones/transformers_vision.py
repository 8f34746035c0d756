"""Vision models of the transformers library: DINOv2, ViT, SigLIP, CLIP, or a convolutional one.

Frame embedding of DynaFLIP (arXiv 2605.30350): a vision transformer's [CLS] ⊕ the mean of its
patch tokens; for a convolutional network the mean of its spatial tokens.
Shapes: B images, D embedding width, P spatial tokens of width D'.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynaflip.encoders import hub
from dynaflip.encoders.backbones.base import Backbone
from dynaflip.encoders.backbones.block_order import freeze_first_blocks, repeated_blocks
from dynaflip.encoders.config import ImageConfig
from dynaflip.errors import UserError


class TransformersBackbone(Backbone):
    """A vision model by folder or hub id, rebuilt from its saved configuration."""

    def __init__(self, network: nn.Module, config: ImageConfig | None = None) -> None:
        """``config`` says how many blocks to freeze, for images of which size; None = none."""
        super().__init__()
        self.network = network
        self.prefix_tokens = prefix_tokens(network)
        self.call_settings = call_settings(network)
        if config is not None:
            freeze_first_blocks(network, config.frozen_blocks, lambda: self._run_blank(config))

    def _run_blank(self, config: ImageConfig) -> None:
        px = config.image_px
        try:
            self(torch.zeros(1, 3, px, px))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"image_px: {config.name} does not take {px} px: {reason}") from None

    @classmethod
    def from_settings(cls, config: ImageConfig) -> TransformersBackbone:
        """With the weights of the folder or hub id, or random ones of its architecture.

        Of a model of images and text the image half is taken.

        Raises:
            UserError: it cannot be reached or does not take images.
        """
        name = config.name
        settings = hub.load_config(name)
        from transformers import AutoModel

        if config.pretrained:
            network = hub.load_model(AutoModel, name, settings)
        else:
            network = AutoModel.from_config(settings, dtype=torch.float32)
        network = image_half(network)
        if "pixel_values" not in inspect.signature(network.forward).parameters:
            raise UserError(f"model {name!r}: {settings.model_type} takes no images")
        backbone = cls(network, config)
        processor = hub.processor_settings(name)
        backbone.mean = tuple(processor.get("image_mean") or cls.mean)
        backbone.std = tuple(processor.get("image_std") or cls.std)
        backbone.licence = hub.licence_of(name)
        return backbone

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any] | None, config: ImageConfig
    ) -> TransformersBackbone:
        """With random weights, from the configuration that :meth:`describe` gave.

        Raises:
            UserError: transformers is missing, or the configuration is.
        """
        if description is None:
            raise UserError(
                f"backbone {config.name!r} is no built-in one and none of an installed package, "
                "and its architecture was not saved"
            )
        hub.require_transformers(f"backbone {config.name!r}")
        from transformers import AutoConfig, AutoModel

        settings = dict(description)
        network = AutoModel.from_config(
            AutoConfig.for_model(settings.pop("model_type"), **settings)
        )
        return cls(image_half(network), config)

    @classmethod
    def weights_identity(cls, config: ImageConfig, digest_of: Callable[[Path], str]) -> str:
        """The folder's content, or the commit of the hub id."""
        return hub.identity(config.name, digest_of)

    def describe(self) -> dict[str, Any]:
        """The network's configuration."""
        network: Any = self.network
        return json.loads(network.config.to_json_string(use_diff=False))

    def blocks(self) -> nn.ModuleList:
        """The transformer's layers, or the blocks of all stages of a hierarchical network."""
        return nn.ModuleList(repeated_blocks(self.network))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, px, px) → (B, D) and (B, P, D')."""
        return embedding_and_tokens(self.network, pixels, self.prefix_tokens, self.call_settings)


def embedding_and_tokens(
    network: nn.Module, pixels: Tensor, prefix: int, settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """The frame embedding (B, D) and the spatial tokens (B, P, D') of a transformers network.

    Args:
        network: takes ``pixel_values``.
        pixels: (B, 3, px, px) normalised.
        prefix: number of tokens before the patches, of :func:`prefix_tokens`.
        settings: further arguments of the network, of :func:`call_settings`.
    """
    out = network(pixel_values=pixels, **settings)
    hidden = out.last_hidden_state
    if hidden.ndim == 4:
        tokens = hidden.flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens
    tokens = hidden[:, prefix:]
    if prefix:
        return torch.cat([hidden[:, 0], tokens.mean(1)], -1), tokens
    # SigLIP has no [CLS]: its attention pooling plays that part.
    pooled = getattr(out, "pooler_output", None)
    mean = tokens.mean(1)
    return mean if pooled is None else torch.cat([pooled, mean], -1), tokens


def image_half(network: Any) -> Any:
    """The image network of a model of images and text; any other as it is."""
    return getattr(network, "vision_model", network)


def prefix_tokens(network: Any) -> int:
    """Number of tokens before the patches: 1 for [CLS], more with register tokens."""
    config = network.config
    registers = getattr(config, "num_register_tokens", 0) or 0
    names = ("cls_token", "class_embedding")
    has_class = any(name.rsplit(".", 1)[-1] in names for name, _ in network.named_parameters())
    return (1 if has_class else 0) + registers


def call_settings(network: nn.Module) -> dict[str, Any]:
    """Arguments that let a network take images of other than its native size."""
    takes = inspect.signature(network.forward).parameters
    return {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
