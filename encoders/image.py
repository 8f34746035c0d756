"""The image encoder: one RGB image → one vector, and spatial tokens.

Shapes: B images, H×W pixels of an image as given, px the side of the square that the backbone
sees, D embedding width, P spatial tokens of width D'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynaflip.encoders import preprocessing
from dynaflip.encoders.backbones import backbone_class
from dynaflip.encoders.backbones.base import Backbone
from dynaflip.encoders.config import ImageConfig
from dynaflip.errors import UserError


class ImageEncoder(nn.Module):
    """Images to embeddings and spatial tokens; resizing and normalising happen inside.

    Attributes:
        config: the settings it was built with.
        dim: D, width of an embedding.
        token_dim: D', width of a spatial token.
        preprocessing: ``image_px``, ``mean``, ``std``: what happens to an image first.
        architecture: what the backbone is rebuilt from beside the settings, or None.
        info: where the weights come from: config, git commit, data digest, metrics.
    """

    pixel_mean: Tensor  # (3,) float32
    pixel_std: Tensor  # (3,) float32

    def __init__(
        self,
        config: ImageConfig,
        backbone: Backbone,
        dim: int,
        token_dim: int,
        preprocessing: Mapping[str, Any],
        token_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.dim = dim
        self.token_dim = token_dim
        self.preprocessing = dict(preprocessing)
        self.architecture = backbone.describe()
        self.info: dict[str, Any] = {}
        self._token_grid = token_grid
        self._place_constants(torch.device("cpu"))
        # Torch's stubs do not know this overload.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the spatial tokens, P = rows × columns, from the top left.

        The same for every image, because all are resized to one square: a token covers an equal
        share of the image's height and width, of any shape.

        Raises:
            UserError: the backbone's tokens have no grid.
        """
        if self._token_grid is None:
            raise UserError(
                f"backbone {self.config.name}: its tokens are no square grid; it must give "
                "token_grid (rows, columns)"
            )
        return self._token_grid

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
        """Spatial features of images: (B, P, D'), row by row of :attr:`token_grid`.

        ``encoder.tokens(images).unflatten(1, encoder.token_grid)`` is (B, rows, columns, D').
        Arguments as of :meth:`forward`.
        """
        return self.features(self._checked(images))[1]

    def token_map(self, images: Any) -> Tensor:
        """Spatial features as a feature map: (B, D', rows, columns). As :meth:`forward`.

        Raises:
            UserError: as :meth:`forward`, and where the tokens have no grid.
        """
        grid = self.token_grid
        return self.tokens(images).transpose(1, 2).unflatten(2, grid)

    def feature_maps(self, images: Any, scales: int | None = None) -> list[Tensor]:
        """Feature maps of several scales, the coarsest first, which is :meth:`token_map`.

        Args:
            images: as of :meth:`forward`.
            scales: how many at most; None = all that the backbone has.

        Returns:
            (B, C, rows, columns) each.

        Raises:
            UserError: as :meth:`token_map`.
        """
        pixels = self._checked(images).to(next(self.parameters()).dtype)
        return self.backbone.feature_maps(pixels)[:scales]

    def preprocess(self, images: Any) -> Tensor:
        """Check, resize and normalise: images → (B, 3, px, px) float32."""
        pre = self.preprocessing
        images = preprocessing.channels_first(images)
        return preprocessing.to_pixels(images, pre["image_px"], self.pixel_mean, self.pixel_std)

    def _place_constants(self, device: torch.device) -> None:
        """Keep mean and std of the channels on a device, so that no call copies them to it."""
        for name in ("mean", "std"):
            value = torch.tensor(self.preprocessing[name], dtype=torch.float32, device=device)
            self.register_buffer(f"pixel_{name}", value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImageEncoder:
        """Apply to all tensors; mean and std stay float32 where weights become half precision."""
        super()._apply(fn, recurse)
        self._place_constants(self.pixel_mean.device)
        return self

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, px, px) → embedding (B, D) and tokens (B, P, D').

        In the weights' own precision, so that ``encoder.half()`` just works.
        """
        return self.backbone(pixels.to(next(self.parameters()).dtype))

    def train(self, mode: bool = True) -> ImageEncoder:
        """Set the mode; BatchNorm keeps its statistics unless the setting frees them."""
        super().train(mode)
        if not self.config.train_batchnorm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def recompute_activations(self) -> None:
        """Keep no activations inside the blocks: the backward pass computes them again.

        Raises:
            UserError: the backbone names no blocks.
        """
        blocks = self.backbone.blocks()
        if not len(blocks):
            raise UserError(
                f"train.activation_checkpointing: backbone {self.config.name} names no blocks to "
                "recompute; set it to false"
            )
        for block in blocks:
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
            gradients = torch.autograd.grad(embedding.sum(), trained, allow_unused=True)
        self.train(training)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def _checked(self, images: Any) -> Tensor:
        images = preprocessing.channels_first(images)
        preprocessing.check_range(images)
        device = next(self.parameters()).device
        return self.preprocess(images.to(device))


def build_image_encoder(config: ImageConfig) -> ImageEncoder:
    """A new image encoder: with pretrained weights, or with random ones.

    Raises:
        UserError: the model cannot be reached or does not fit the settings.
    """
    backbone = backbone_class(config.name).from_settings(config)
    if config.frozen_blocks and all(p.requires_grad for p in backbone.parameters()):
        raise UserError(f"frozen_blocks: backbone {config.name} freezes no blocks; set it to 0")
    preprocessing = {"image_px": config.image_px, "mean": backbone.mean, "std": backbone.std}
    encoder = encoder_around(backbone, config, preprocessing)
    if not config.pretrained:
        _calibrate_batchnorm(encoder)
    return encoder.train(True)


def rebuild_image_encoder(
    config: ImageConfig,
    architecture: Mapping[str, Any] | None,
    preprocessing: Mapping[str, Any],
    backbone: str | None = None,
) -> ImageEncoder:
    """An image encoder with random weights, to be filled from a checkpoint; reaches no hub.

    Args:
        config: the saved settings. Whoever wrote them may not choose which code runs: their name
            stands for a built-in backbone or one of an installed package.
        architecture: saved with them, of the backbone's ``describe``.
        preprocessing: saved with them.
        backbone: a name from the user's own settings, instead of the saved one.

    Raises:
        UserError: the backbone is unknown, or its package is missing.
    """
    cls = backbone_class(backbone or config.name, trusted=backbone is not None)
    backbone_module = cls.from_description(architecture, config)
    return encoder_around(backbone_module, config, preprocessing).train(True)


def encoder_around(
    backbone: Backbone, config: ImageConfig, preprocessing: Mapping[str, Any]
) -> ImageEncoder:
    """The encoder around a backbone, its widths measured with a blank image.

    Args:
        backbone: with its weights.
        config: its settings.
        preprocessing: ``image_px``, ``mean`` and ``std``.

    Raises:
        UserError: the backbone does not take images of this size.
    """
    backbone.eval()
    blank = torch.zeros(1, 3, preprocessing["image_px"], preprocessing["image_px"])
    try:
        with torch.no_grad():
            embedding, tokens = backbone(blank)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"image_px: {config.name} does not take {config.image_px} px: {reason}"
        ) from None
    grid = backbone.token_grid(tokens.shape[1])
    dim, token_dim = embedding.shape[1], tokens.shape[2]
    return ImageEncoder(config, backbone, dim, token_dim, preprocessing, grid)


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
