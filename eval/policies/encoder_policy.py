"""A frozen encoder and a fitted head, acting together; and what an encoder must hold to.

Legend of shapes: B episodes, H, W image size, D feature width, T steps, A action width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dynaflip.errors import UserError
from dynaflip.eval.policies.base import Head, join
from dynaflip.eval.rollout import Observation


class EncoderPolicy:
    """Images → features → actions.

    Args:
        encoder: :class:`dynaflip.encoders.image.ImageEncoder`, or anything that maps
            (B, H, W, 3) uint8 to (B, D).
        head: fitted on features of this very encoder.
        use_proprioception: whether the head was given proprioception.
        context: (C,) of the task's words, where the head serves several tasks.
    """

    def __init__(
        self,
        encoder: Any,
        head: Head,
        *,
        use_proprioception: bool,
        context: np.ndarray | None = None,
    ) -> None:
        self.encoder, self.head = encoder, head
        self.use_proprioception, self.context = use_proprioception, context
        self._first: tuple[np.ndarray, np.ndarray] | None = None

    def act(self, observation: Observation) -> np.ndarray:
        """(B, T, A) in [-1, 1]."""
        features = features_of(self.encoder, observation.images)
        if self._first is None:
            self._first = observation.images[:1].copy(), features[:1]
        context = None
        if self.context is not None:
            context = np.tile(self.context, (len(features), 1))
        proprioception = observation.proprioception if self.use_proprioception else None
        return self.head.plan(torch.from_numpy(join(features, proprioception, context))).numpy()

    def check_features(self) -> None:
        """The first image again, after all that has happened in the simulator since.

        Raises:
            UserError: its features are others now, so the encoder knows more than the image.
        """
        if self._first is not None:
            image, features = self._first
            _same(features, features_of(self.encoder, image))


@torch.no_grad()
def features_of(encoder: Any, images: np.ndarray) -> np.ndarray:
    """Features of images (B, H, W, 3) uint8: (B, D) float32.

    Raises:
        UserError: the encoder does not take the images, or gives something else.
    """
    try:
        features = encoder(torch.from_numpy(np.ascontiguousarray(images)))
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"encoder: it fails on images of shape {images.shape} ({reason})") from None
    features = features.float().cpu().numpy()
    if features.ndim != 2 or len(features) != len(images):
        raise UserError(
            f"encoder: for images of shape {images.shape} it gives features of shape "
            f"{features.shape}, not ({len(images)}, D)"
        )
    if not np.isfinite(features).all():
        raise UserError(f"encoder: features of images of shape {images.shape} are not finite")
    return features


def check_encoder(encoder: Any, images: np.ndarray) -> None:
    """Refuse an encoder whose features of an image are not a function of that image.

    Args:
        encoder: as of :class:`EncoderPolicy`.
        images: (B, H, W, 3) uint8, B at least 2.

    Raises:
        UserError: it fails on them, or an image's features depend on the others of its
            batch or on when it is asked.
    """
    together = features_of(encoder, images)
    _same(together[:1], features_of(encoder, images[:1]))
    _same(together, features_of(encoder, images))


def _same(before: np.ndarray, after: np.ndarray) -> None:
    # A batch of another size is summed in another order; a leak is far above that.
    if not np.allclose(before, after, rtol=1e-3, atol=1e-3 * np.abs(before).max()):
        raise UserError(
            "encoder: the same image gave other features at another moment or in another "
            "batch; an encoder may read its image alone"
        )
