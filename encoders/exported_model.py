"""The model that transformers loads from an exported folder: the image encoder.

:func:`dynaflip.encoders.export.save_transformers` copies these definitions, with the backbone's,
into the folder, so that ``AutoModel.from_pretrained(folder, trust_remote_code=True)`` needs
nothing of this package. Nothing else imports this module: it needs transformers.
Shapes: B images, px the side of the square image, D embedding width, P tokens of width D'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dynaflip.encoders.backbones.base import Backbone
from dynaflip.encoders.backbones.vision_outputs import (
    call_settings,
    embedding_and_tokens,
    image_half,
    prefix_tokens,
)
from dynaflip.encoders.config import ImageConfig
from dynaflip.encoders.preprocessing import channels_first, check_range, to_pixels


class DynaFLIPConfig(PretrainedConfig):
    """``dynaflip``: image settings, the backbone's description, preprocessing and token grid."""

    model_type = "dynaflip"

    def __init__(self, dynaflip: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dynaflip = dynaflip or {}


class DynaFLIPPreTrainedModel(PreTrainedModel):
    """An image encoder: RGB images to embeddings (B, D) and spatial tokens (B, P, D')."""

    main_input_name = "pixel_values"

    @property
    def token_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the tokens, P = rows × columns, from the top left."""
        grid = self.config.dynaflip["token_grid"]
        return None if grid is None else (grid[0], grid[1])

    def train(self, mode: bool = True) -> DynaFLIPPreTrainedModel:
        """Set the mode; BatchNorm keeps its statistics unless the setting frees them."""
        super().train(mode)
        if not self.config.dynaflip["train_batchnorm"]:
            for module in self.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, px, px) → embedding (B, D) and tokens (B, P, D')."""
        raise NotImplementedError

    def forward(
        self, pixel_values: Tensor, return_dict: bool | None = None, **_: Any
    ) -> BaseModelOutputWithPooling | tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, px, px) → tokens as ``last_hidden_state``, embedding as
        ``pooler_output``."""
        embedding, tokens = self.features(pixel_values.to(self.dtype))
        if return_dict is False:
            return tokens, embedding
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=embedding)

    def preprocess(self, images: Any) -> Tensor:
        """Check, resize and normalise as in pretraining: images → (B, 3, px, px) float32.

        Args:
            images: (B, H, W, 3) or (B, 3, H, W), uint8 or float in [0, 1], any size.
        """
        images = channels_first(images)
        check_range(images)
        settings = self.config.dynaflip
        images = images.to(self.device)
        return to_pixels(images, settings["image_px"], settings["mean"], settings["std"])

    def encode(self, images: Any) -> Tensor:
        """Embeddings (B, D) of images as of :meth:`preprocess`."""
        return self.features(self.preprocess(images).to(self.dtype))[0]

    def tokens(self, images: Any) -> Tensor:
        """Spatial tokens (B, P, D') of images as of :meth:`preprocess`."""
        return self.features(self.preprocess(images).to(self.dtype))[1]


class DynaFLIPModel(DynaFLIPPreTrainedModel):
    """The encoder around a backbone whose source stands in this file."""

    config_class = DynaFLIPConfig
    base_model_prefix = "backbone"
    backbone_class: type[Backbone]

    def __init__(self, config: DynaFLIPConfig) -> None:
        super().__init__(config)
        settings = config.dynaflip
        self.backbone = self.backbone_class.from_description(
            settings["architecture"], ImageConfig(**settings["image"])
        )
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """The backbone has its weights from the folder."""

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, px, px) → embedding (B, D) and tokens (B, P, D')."""
        return self.backbone(pixels)


class DynaFLIPVisionModel(DynaFLIPPreTrainedModel):
    """The encoder around a vision model of transformers; the folder's weights are that model's."""

    base_model_prefix = "network"

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.network = image_half(AutoModel.from_config(config, dtype=torch.float32))
        self.prefix_tokens = prefix_tokens(self.network)
        self.call_settings = call_settings(self.network)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """The network has its weights from the folder."""

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, px, px) → embedding (B, D) and tokens (B, P, D')."""
        return embedding_and_tokens(self.network, pixels, self.prefix_tokens, self.call_settings)
