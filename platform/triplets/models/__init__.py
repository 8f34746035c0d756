"""Models of the user's own in preprocessing: depth and captions, loaded once in each Ray actor.

``depth`` and ``source.captioner`` are names of the tables below with their argument
(``model:FOLDER-OR-HUB-ID``), names of entry points of installed packages in the groups
``dynaflip.depth_model`` and ``dynaflip.captioner``, or ``class:MODULE:NAME``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dynaflip.plugins import ExtensionPoint

if TYPE_CHECKING:
    from dynaflip.platform.triplets.clips import Floats, Frames

_HERE = "dynaflip.platform.triplets.models"
DEPTH_MODELS = ExtensionPoint(
    "depth_model",
    {"model": f"{_HERE}.depth:TransformersDepth"},  # model:FOLDER-OR-HUB-ID
    contract=f"{_HERE}.DepthModel",
)
CAPTIONERS = ExtensionPoint(
    "captioner",
    {"model": f"{_HERE}.captioner:TransformersCaptioner"},  # model:FOLDER-OR-HUB-ID
    contract=f"{_HERE}.Captioner",
)


class DepthModel(Protocol):
    """A monocular depth model. Made without arguments, or with ARGUMENT for ``NAME:ARGUMENT``.

    ``scale`` is ``metric`` (metres) or ``relative`` (any scale, one for the whole window). A
    static method ``check(argument)``, where there is one, raises UserError before work begins.
    """

    scale: str

    def __call__(self, frames: Frames, /) -> Floats:
        """(N, H, W, 3) uint8 RGB images of a window to (N, H, W) float32 z-depth."""


class Captioner(Protocol):
    """A captioning model. Made without arguments, or with ARGUMENT for ``NAME:ARGUMENT``.

    A static method ``check(argument)``, where there is one, raises UserError before work begins.
    """

    def describe(self, image: Frames, prompt: str, /) -> str:
        """A caption in one line.

        Args:
            image: (H, W, 3) uint8 RGB: the clip's first, middle and last frame side by side.
            prompt: ``source.captioner_prompt``; a model that cannot chat ignores it.
        """
