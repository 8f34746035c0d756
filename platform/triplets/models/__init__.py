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

    ``scale`` says what its numbers are:

    * ``metric``: metres. Frames come in batches that mix windows and clips;
    * ``inverse``: inverse depth of any one scale, in such batches, too. Each window's is turned
      into depth with the median of its first frame at 1;
    * ``relative``: depth of one unknown scale for each call, which is one window.

    A model that is metric, and needs a window's frames together and in order, such as one for
    videos, has ``by_window = True``. A static method ``check(argument)``, where there is one,
    raises UserError before work begins; a method ``use_precision(name)`` is called with float32,
    float16 or bfloat16 before the first frame.
    """

    scale: str

    def __call__(self, frames: Frames, /) -> Floats:
        """(B, H, W, 3) uint8 RGB frames of one size to (B, H, W) float32; infinite is far away,
        NaN unknown. A frame's depth must not depend on the others of its batch, but where the
        frames are those of one window."""


class Captioner(Protocol):
    """A captioning model. Made without arguments, or with ARGUMENT for ``NAME:ARGUMENT``.

    A static method ``check(argument)``, where there is one, raises UserError before work begins.
    A method ``describe_all(images, prompts) -> list[str]``, where there is one, is given several
    clips at once.
    """

    def describe(self, image: Frames, prompt: str, /) -> str:
        """A caption in one line.

        Args:
            image: (H, W, 3) uint8 RGB: the clip's first, middle and last frame side by side.
            prompt: ``source.captioner_prompt``; a model that cannot chat ignores it.
        """
