"""What a vision network of transformers takes and gives: pixels in, an embedding and tokens out.

Shapes: B images, px the side of the square image, N tokens as the network gives them, P of them
spatial, D' their width, D embedding width, p side of a patch in pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynaflip.encoders.config import CLS, CLS_MEAN, MEAN, POOLER

# What each family's training made its image descriptor. DINO's is DynaFLIP's own frame embedding,
# so that an encoder pretrained from DINOv2 differs from DINOv2 in its weights alone.
FAMILY_POOLING = {
    "dinov2": CLS_MEAN,
    "dinov2_with_registers": CLS_MEAN,
    "dinov3_vit": CLS_MEAN,
    "dinov3_convnext": POOLER,  # the normalised mean
    "clip": POOLER,  # the normalised [CLS]
    "clip_vision_model": POOLER,
    "siglip": POOLER,  # attention pooling
    "siglip_vision_model": POOLER,
    "siglip2": POOLER,
    "siglip2_vision_model": POOLER,
    "vit": CLS,
    "deit": CLS,
}


def default_pooling(model_type: str, *, has_class_token: bool) -> str:
    """The pooling of a family; of one that is not listed [CLS] ⊕ mean, or the mean without [CLS].

    Args:
        model_type: of the network's configuration.
        has_class_token: whether the network has a [CLS] token.
    """
    return FAMILY_POOLING.get(model_type, CLS_MEAN if has_class_token else MEAN)


def embedding_and_tokens(
    network: nn.Module,
    pixels: Tensor,
    prefix: int,
    settings: Mapping[str, Any],
    pooling: str = CLS_MEAN,
) -> tuple[Tensor, Tensor]:
    """The embedding (B, D) and the spatial tokens (B, P, D') of a transformers network.

    Args:
        network: takes ``pixel_values``.
        pixels: (B, 3, px, px) normalised.
        prefix: number of tokens before the patches, of :func:`prefix_tokens`.
        settings: further arguments of the network, of :func:`call_settings`.
        pooling: one of :data:`dynaflip.encoders.config.IMAGE_POOLINGS`. ``cls+mean`` is
            [CLS] ⊕ mean of the patches; where there is no [CLS], what the network pools itself
            (SigLIP's attention) stands in its place, and a convolutional network gives the mean.

    Raises:
        ValueError: the network has nothing of the kind, or px is no multiple of its patch.
    """
    out = network(**network_inputs(network, pixels), **settings)
    hidden = out.last_hidden_state
    pooled = getattr(out, "pooler_output", None)
    tokens = spatial_tokens(hidden, prefix)
    if pooling == MEAN:
        return tokens.mean(1), tokens
    if pooling == POOLER:
        if pooled is None:
            raise ValueError("pooling pooler: this network pools nothing itself; choose another")
        return pooled.flatten(1), tokens
    if pooling == CLS:
        if not prefix:
            raise ValueError("pooling cls: this network has no [CLS] token; choose another")
        return hidden[:, 0], tokens
    if prefix:
        return torch.cat([hidden[:, 0], tokens.mean(1)], -1), tokens
    if hidden.ndim == 4 or pooled is None:
        return tokens.mean(1), tokens
    return torch.cat([pooled, tokens.mean(1)], -1), tokens


def spatial_tokens(hidden: Tensor, prefix: int) -> Tensor:
    """The last hidden state (B, N, D') or (B, D', rows, columns) → (B, P, D')."""
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden[:, prefix:]


def tokens_and_stages(
    network: nn.Module, pixels: Tensor, prefix: int, settings: Mapping[str, Any]
) -> tuple[Tensor, list[Tensor]]:
    """The spatial tokens, and the feature maps of a hierarchical network's stages in their order.

    Arguments as of :func:`embedding_and_tokens`. A plain vision transformer has no such maps.
    """
    out = network(**network_inputs(network, pixels), **settings, output_hidden_states=True)
    maps = getattr(out, "reshaped_hidden_states", None) or out.hidden_states or ()
    stages = [one for one in maps if one.ndim == 4]
    return spatial_tokens(out.last_hidden_state, prefix), stages


def network_inputs(network: Any, pixels: Tensor) -> dict[str, Tensor]:
    """The arguments of a network for images (B, 3, px, px): the images, or their patches.

    SigLIP2's variant of any aspect ratio takes patches (B, P, p·p·3), row by row, with a mask of
    those that are none and the grid's shape. MAE orders its patches by noise (B, P): here they
    keep their order.
    """
    takes, config = inspect.signature(network.forward).parameters, network.config
    if "noise" in takes and getattr(config, "mask_ratio", None) is not None:
        patches = (pixels.shape[2] // config.patch_size) * (pixels.shape[3] // config.patch_size)
        order = torch.arange(patches, dtype=pixels.dtype, device=pixels.device)
        return {"pixel_values": pixels, "noise": order.expand(len(pixels), -1)}
    if "spatial_shapes" not in takes:
        return {"pixel_values": pixels}
    patch_px, (count, channels, px, _) = config.patch_size, pixels.shape
    if px % patch_px:
        raise ValueError(f"{px} px is no multiple of its patch of {patch_px} px")
    side = px // patch_px
    patches = pixels.reshape(count, channels, side, patch_px, side, patch_px)
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(count, side * side, -1)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(
            count, side * side, dtype=torch.int64, device=pixels.device
        ),
        "spatial_shapes": torch.full((count, 2), side, dtype=torch.int64, device=pixels.device),
    }


def image_half(network: Any) -> Any:
    """The image network of a model of images and text; any other as it is."""
    return getattr(network, "vision_model", network)


def prefix_tokens(network: Any) -> int:
    """Number of tokens before the patches: 1 for [CLS], more with register tokens."""
    config = network.config
    if config.model_type == "dinov3_convnext":
        return 1  # the normalised mean of the others, which it puts in front of them
    registers = getattr(config, "num_register_tokens", 0) or 0
    names = ("cls_token", "class_embedding")
    has_class = any(name.rsplit(".", 1)[-1] in names for name, _ in network.named_parameters())
    return (1 if has_class else 0) + registers


def call_settings(network: nn.Module) -> dict[str, Any]:
    """Arguments that let a network take images of other than its native size."""
    takes = inspect.signature(network.forward).parameters
    return {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
