"""Vision models of the transformers library: DINO, ViT, SigLIP, CLIP, or a convolutional one.

Frame embedding of DynaFLIP (arXiv 2605.30350): a vision transformer's [CLS] ⊕ the mean of its
patch tokens; for a convolutional network the mean of its spatial tokens.
Shapes: B images, D embedding width, P spatial tokens of width D'.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynaflip.encoders import hub
from dynaflip.encoders.backbones.base import Backbone, finer_maps
from dynaflip.encoders.backbones.block_order import freeze_first_blocks, repeated_blocks
from dynaflip.encoders.backbones.native_images import normalisation
from dynaflip.encoders.backbones.vision_outputs import (
    call_settings,
    embedding_and_tokens,
    image_half,
    prefix_tokens,
    tokens_and_stages,
)
from dynaflip.encoders.config import CLS_MEAN, ImageConfig
from dynaflip.errors import UserError

_POOLING = "dynaflip_pooling"  # key of a description
# Weights that the frame embedding does not read; whoever pools by the pooler must ask for it.
_UNREAD = ("pooler.", "mask_token", "num_batches_tracked", "position_ids")


class TransformersBackbone(Backbone):
    """A vision model by folder or hub id, rebuilt from its saved configuration.

    Attributes:
        pooling: how its tokens become the embedding, one of
            :data:`dynaflip.encoders.config.IMAGE_POOLINGS`.
        unfilled: names of weights that the model's folder does not hold, so that they are random.
    """

    def __init__(
        self, network: nn.Module, config: ImageConfig | None = None, pooling: str = CLS_MEAN
    ) -> None:
        """``config`` says how many blocks to freeze, for images of which size; None = none."""
        super().__init__()
        self.network = network
        self.pooling = pooling
        self.unfilled: tuple[str, ...] = ()
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
        if hasattr(settings, "mask_ratio"):
            settings.mask_ratio = 0.0  # MAE hides patches at random in use, too
        from transformers import AutoModel

        if config.pretrained:
            network, unfilled = hub.load_model_and_unfilled(AutoModel, name, settings)
        else:
            network, unfilled = AutoModel.from_config(settings, dtype=torch.float32), []
        network = image_half(network)
        if "pixel_values" not in inspect.signature(network.forward).parameters:
            raise UserError(f"model {name!r}: {settings.model_type} takes no images")
        backbone = cls(network, config)
        backbone.unfilled = _of_image_half(unfilled, network)
        _check_filled(name, backbone.unfilled)
        processor = hub.processor_settings(name)
        backbone.mean, backbone.std = normalisation(processor, cls.mean, cls.std)
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
        pooling = settings.pop(_POOLING, CLS_MEAN)
        network = AutoModel.from_config(
            AutoConfig.for_model(settings.pop("model_type"), **settings)
        )
        return cls(image_half(network), config, pooling)

    @classmethod
    def weights_identity(cls, config: ImageConfig, digest_of: Callable[[Path], str]) -> str:
        """The folder's content, or the commit of the hub id."""
        return hub.identity(config.name, digest_of)

    def describe(self) -> dict[str, Any]:
        """The network's configuration, and the pooling where it is not [CLS] ⊕ mean."""
        network: Any = self.network
        described = json.loads(network.config.to_json_string(use_diff=False))
        return described if self.pooling == CLS_MEAN else {**described, _POOLING: self.pooling}

    def blocks(self) -> nn.ModuleList:
        """The transformer's layers, or the blocks of all stages of a hierarchical network."""
        return nn.ModuleList(repeated_blocks(self.network))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, px, px) → (B, D) and (B, P, D')."""
        return embedding_and_tokens(
            self.network, pixels, self.prefix_tokens, self.call_settings, self.pooling
        )

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        """The spatial tokens as a map, and those of a hierarchical network's earlier stages."""
        tokens, stages = tokens_and_stages(
            self.network, pixels, self.prefix_tokens, self.call_settings
        )
        last = self.as_map(tokens)
        return [last, *finer_maps(stages, last)]


def _of_image_half(unfilled: Sequence[str], network: nn.Module) -> tuple[str, ...]:
    """The unfilled weights of a model that belong to its image half, by name."""
    own = {name for name, _ in [*network.named_parameters(), *network.named_buffers()]}
    bare = (name.removeprefix("vision_model.") for name in unfilled)
    return tuple(name for name in bare if name in own)


def _check_filled(name: str, unfilled: Sequence[str]) -> None:
    """Refuse a folder that lacks weights which an embedding depends on.

    Raises:
        UserError: the network would compute with random weights.
    """
    needed = [one for one in unfilled if not any(word in one for word in _UNREAD)]
    if needed:
        raise UserError(
            f"model {name!r}: its files lack {len(needed)} weights of its network "
            f"({needed[0]}, ...), which would be random; give a folder that holds them all"
        )
