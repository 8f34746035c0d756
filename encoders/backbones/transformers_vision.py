"""Models of the transformers library by folder or hub id, with one clear line when missing."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from dynaflip.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _unreachable(name: str, error: Exception) -> UserError:
    kind = "folder" if os.path.isdir(name) else "hub id"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"model {name!r}: this {kind} cannot be loaded ({reason}); give a folder with "
        "config.json and weights, or a hub id while online"
    )


def load_config(name: str) -> Any:
    """The configuration of a model by folder or hub id.

    Raises:
        UserError: not there, or not a transformers model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable(name, error) from None


def load_model(auto_class: Any, name: str, config: Any) -> nn.Module:
    """A pretrained model of one of transformers' Auto classes, in float32.

    Raises:
        UserError: weights missing or unreadable.
    """
    import torch
    from transformers.utils import logging

    # A bar for loading a local file is noise in a job's own progress.
    logging.disable_progress_bar()
    try:
        # Safetensors only: nothing is unpickled.
        return auto_class.from_pretrained(
            name, config=config, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unreachable(name, error) from None


def load_vision_model(
    name: str, weights: bool
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """A vision model and the mean and spread of each channel that it expects.

    Args:
        name: folder or hub id. Of a model of images and text, the image half is taken.
        weights: load the pretrained weights; False starts from random ones.

    Raises:
        UserError: it cannot be reached or does not take images.
    """
    import torch
    from transformers import AutoModel

    config = load_config(name)
    if weights:
        network = load_model(AutoModel, name, config)
    else:
        network = AutoModel.from_config(config, dtype=torch.float32)
    network = getattr(network, "vision_model", network)
    if "pixel_values" not in inspect.signature(network.forward).parameters:
        raise UserError(f"model {name!r}: {config.model_type} takes no images")
    mean, std = _normalisation(name)
    return network, mean, std


def _normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel mean and spread that a model was trained with; ImageNet's where it says nothing."""
    from transformers.utils import cached_file

    found = cached_file(
        name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False
    )
    settings: dict[str, Any] = {}
    if found is not None:
        with open(found, encoding="utf-8") as file:
            settings = json.load(file)
    mean = settings.get("image_mean") or IMAGENET_MEAN
    std = settings.get("image_std") or IMAGENET_STD
    return tuple(mean), tuple(std)


def describe(network: Any) -> dict[str, Any]:
    """The configuration of a network, as JSON, from which :func:`vision_model_from` rebuilds it."""
    return json.loads(network.config.to_json_string(use_diff=False))


def vision_model_from(architecture: Mapping[str, Any]) -> nn.Module:
    """A vision network with random weights from what :func:`describe` gave."""
    from transformers import AutoConfig, AutoModel

    settings = dict(architecture)
    network = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
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


def longest_list(network: nn.Module) -> nn.ModuleList:
    """The network's repeated blocks: its longest list of modules."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def freeze_first_blocks(network: nn.Module, count: int) -> None:
    """Do not train the patch embedding and the first ``count`` blocks.

    Raises:
        UserError: the network's blocks are not found, or are fewer.
    """
    if not count:
        return
    blocks = longest_list(network)
    if count > len(blocks):
        raise UserError(f"frozen_blocks: {count} of {len(blocks)} blocks of this model")
    for name, child in network.named_children():
        if "embed" in name:
            child.requires_grad_(False)
    for block in blocks[:count]:
        block.requires_grad_(False)
