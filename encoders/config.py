"""Settings of the networks. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynaflip.checks import above, at_least, one_of, share

EFFICIENTNET_LITE0 = "efficientnet-lite0"
MINILM = "minilm"
POOLINGS = ("auto", "mean", "eos", "cls")
# How an image's tokens become one vector; CLS_MEAN is DynaFLIP's own (arXiv 2605.30350).
CLS_MEAN = "cls+mean"
CLS = "cls"
MEAN = "mean"
POOLER = "pooler"
IMAGE_POOLINGS = (CLS_MEAN, CLS, MEAN, POOLER)
FLOW_INPUTS = ("positions", "displacements", "both")


@dataclass(frozen=True)
class ImageConfig:
    """The image encoder. The paper's is DINOv2-Base at 224 px, fully trained."""

    name: str = EFFICIENTNET_LITE0
    """``efficientnet-lite0`` (its ImageNet weights ship in a package), a backbone of an installed
    package, ``class:MODULE:NAME``, or the folder or hub id of any transformers vision model, e.g.
    facebook/dinov2-base, or facebook/dinov2-base@REVISION. A run records the commit of a hub id."""

    pretrained: bool = True
    """Start from the pretrained weights; False starts from random ones."""

    image_px: int = 112
    """Side of the square image that the network sees, in pixels."""

    train_batchnorm: bool = False
    """Use the batch's own statistics in BatchNorm and update the running ones. Off: batches are
    small, and the same function is then trained as is used."""

    frozen_blocks: int = 0
    """First blocks that are not trained, with all that an image passes before the next one (the
    stem or patch embedding). Residual or transformer blocks, counted from the input through all
    stages. Freezing early blocks saves most of a CNN's training time."""

    def __post_init__(self) -> None:
        at_least(self, 0, "frozen_blocks")
        at_least(self, 16, "image_px")
        if not self.name:
            raise ValueError("name: give a model")


@dataclass(frozen=True)
class LanguageConfig:
    """The frozen language encoder. The paper's is T5-Base with end-of-sequence pooling."""

    name: str = MINILM
    """``minilm`` (all-MiniLM-L6-v2, ships in a package), or the folder or hub id (or ID@REVISION)
    of a transformers text model: T5, CLIP text, BERT."""

    max_tokens: int = 77
    """Longest caption in tokens; the rest is cut off."""

    pooling: str = "auto"
    """How tokens become one vector: ``mean``, ``eos`` (the last token), ``cls`` (the first), or
    ``auto``: eos for T5 and CLIP, mean for others."""

    def __post_init__(self) -> None:
        at_least(self, 2, "max_tokens")
        one_of(self, POOLINGS, "pooling")


@dataclass(frozen=True)
class FlowConfig:
    """The flow encoder: a CNN over the grid of each step, a transformer over the steps."""

    steps: int = 7
    """Steps K of the flow; the triplet format has 7 (as the paper)."""

    grid: int = 20
    """Key points along a side of the flow's grid; the triplet format has 20 (as the paper)."""

    width: int = 192
    """Width of the transformer's tokens."""

    layers: int = 4
    """Layers of the transformer over the K steps (paper: 4)."""

    heads: int = 4
    """Attention heads of the transformer; they divide the width."""

    channels: int = 32
    """Channels of the CNN's first layer; they double to at most the width."""

    cnn_layers: int = 4
    """Layers of the CNN over the grid of a step (paper: 4)."""

    inputs: str = "both"
    """What the CNN sees of each point beside its visibility, in units of the frame's median depth:
    its ``positions`` (paper), its ``displacements`` from frame t, or ``both``. Displacements are
    positions less their start: no more information, but a far easier start of training."""

    displacement_gain: float = 10.0
    """Displacements are multiplied by this, because they are small beside the positions."""

    condition: bool = True
    """Prepend the frame's embedding, under stop-gradient, as condition token (paper: yes)."""

    condition_dropout: float = 0.0
    """Share of training examples whose condition token is withheld. The token names the scene, so
    image and flow can be matched by recognising the clip; without it only motion is left. Ours;
    the paper has 0."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "grid", "width", "layers", "heads", "channels", "cnn_layers")
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        one_of(self, FLOW_INPUTS, "inputs")
        share(self, "condition_dropout")
        above(self, 0, "displacement_gain")


@dataclass(frozen=True)
class ModelConfig:
    """The three towers and their heads."""

    image: ImageConfig = field(default_factory=ImageConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    embedding_dim: int = 256
    """Width of the shared space of z_image, z_language and z_flow."""

    hidden_dim: int = 512
    """Hidden width of the fuse network, the language adapter and the flow prediction head."""

    flow_head_language: bool = False
    """Let the flow prediction see the caption too. The paper predicts from the frame alone."""

    def __post_init__(self) -> None:
        at_least(self, 2, "embedding_dim", "hidden_dim")
