"""A frozen encoder and a fitted head, acting together; and what an encoder must hold to.

Legend of shapes: B episodes, H, W image size, D feature width, V values of all tokens of an image,
T steps, A action width, P width of proprioception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from dynaflip.errors import UserError
from dynaflip.eval.policies.base import Head, join
from dynaflip.eval.policies.readouts.base import Reader
from dynaflip.eval.policies.readouts.grid import TokenGrid, flatten, grids_of
from dynaflip.eval.rollout import Observation


class EncoderPolicy:
    """Images → features (or tokens, read by a fitted read-out) → actions.

    Args:
        encoder: :class:`dynaflip.encoders.image.ImageEncoder`, or anything that maps
            (B, H, W, 3) uint8 to (B, D). One that has ``ask(images, scales)`` is sent images with
            it, and gives features, or ``scales`` feature maps, when what it returns is called.
        head: fitted on features of this very encoder.
        reader: the read-out that was fitted with the head, where it reads tokens.
        use_proprioception: whether the head was given proprioception.
        context: (C,) of the task's words, where the head serves several tasks.
        cameras: how many it sees; their features, or tokens, stand side by side.
    """

    def __init__(
        self,
        encoder: Any,
        head: Head,
        *,
        use_proprioception: bool,
        context: np.ndarray | None = None,
        reader: Reader | None = None,
        cameras: int = 1,
    ) -> None:
        self.encoder, self.head, self.reader = encoder, head, reader
        self.cameras = cameras
        self.use_proprioception, self.context = use_proprioception, context
        self._first: tuple[np.ndarray, np.ndarray] | None = None

    def act(self, observation: Observation) -> np.ndarray:
        """(B, T, A) in [-1, 1]."""
        return self.ask(observation)()

    def ask(self, observation: Observation) -> Callable[[], np.ndarray]:
        """Begin to act: the answer is a function that gives (B, T, A) in [-1, 1].

        Images are on their way to an encoder that lives elsewhere until it is called.
        """
        seen = self._begin([observation.images])
        return lambda: self._act_on(observation, seen())

    def _act_on(self, observation: Observation, seen: np.ndarray) -> np.ndarray:
        if self._first is None:
            self._first = observation.images[:1].copy(), seen[:1]
        return self.plan(seen, observation.proprioception)

    def see(self, views: Sequence[np.ndarray]) -> np.ndarray:
        """The frozen encoder's features of all cameras: (B, D), or (B, V) for a read-out.

        Args:
            views: (B, H, W, 3) uint8 of each camera; cameras may differ in size.
        """
        return self._begin(views)()

    def _begin(self, views: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """Begin what :meth:`see` does: the answer is a function that gives it."""
        assert len(views) == self.cameras, "each camera has its own part of what the head reads"
        if self.reader is None:
            parts = [begin_features(self.encoder, one) for one in views]
            return lambda: np.concatenate([part() for part in parts], 1)
        scales = len(self.reader.grids) // self.cameras
        seen = begin_tokens_of_views(self.encoder, views, scales)
        return lambda: self._checked(*seen())

    def _checked(self, seen: np.ndarray, grids: tuple[TokenGrid, ...]) -> np.ndarray:
        assert self.reader is not None
        if grids != self.reader.grids:
            raise UserError(
                f"encoder: its tokens have the grids {_words(grids)}, and the read-out was fitted "
                f"on {_words(self.reader.grids)}"
            )
        return seen

    def plan(
        self,
        seen: np.ndarray,
        proprioception: np.ndarray | None,
        context: np.ndarray | None = None,
    ) -> np.ndarray:
        """The next actions, (B, T, A) in [-1, 1].

        Args:
            seen: of :meth:`see`.
            proprioception: (B, P) float32; not read where the policy was fitted without.
            context: (B, C) of each row's task in words, instead of the policy's own.
        """
        features = seen if self.reader is None else self._read(seen)
        if context is None and self.context is not None:
            context = np.tile(self.context, (len(features), 1))
        state = proprioception if self.use_proprioception else None
        return self.head.plan(torch.from_numpy(join(features, state, context))).numpy()

    def check_features(self) -> None:
        """The first image again, after all that has happened in the simulator since.

        Raises:
            UserError: its features are others now, so the encoder knows more than the image.
        """
        if self._first is not None:
            image, seen = self._first
            _same(seen, self.see([image]))

    @torch.no_grad()
    def tokens(self, images: np.ndarray) -> list[torch.Tensor]:
        """The read-out's tokens of one camera (B, H, W, 3) uint8: (B, T, channels) a scale.

        Only where there is one.
        """
        assert self.reader is not None, "pooled features have no tokens"
        return self.reader.tokens(torch.from_numpy(self.see([images])))

    @torch.no_grad()
    def _read(self, seen: np.ndarray) -> np.ndarray:
        assert self.reader is not None
        return self.reader(torch.from_numpy(seen)).numpy()


def features_of(encoder: Any, images: np.ndarray) -> np.ndarray:
    """Features of images (B, H, W, 3) uint8: (B, D) float32.

    Raises:
        UserError: the encoder does not take the images, or gives something else.
    """
    return begin_features(encoder, images)()


def begin_features(encoder: Any, images: np.ndarray) -> Callable[[], np.ndarray]:
    """Begin what :func:`features_of` does: the answer is a function that gives it."""
    features = _begin(encoder, images, None)
    return lambda: _checked_features(images, features())


def _checked_features(images: np.ndarray, given: Any) -> np.ndarray:
    features: np.ndarray = given.float().cpu().numpy()
    if features.ndim != 2 or len(features) != len(images):
        raise UserError(
            f"encoder: for images of shape {images.shape} it gives features of shape "
            f"{features.shape}, not ({len(images)}, D)"
        )
    if not np.isfinite(features).all():
        raise UserError(f"encoder: features of images of shape {images.shape} are not finite")
    return features


def tokens_of(
    encoder: Any, images: np.ndarray, scales: int
) -> tuple[np.ndarray, tuple[TokenGrid, ...]]:
    """Tokens of images (B, H, W, 3) uint8: (B, V) float32, and the grid of each scale.

    Args:
        encoder: :class:`dynaflip.encoders.image.ImageEncoder`.
        images: (B, H, W, 3) uint8.
        scales: how many feature maps are asked for; an encoder that has fewer gives all it has.

    Raises:
        UserError: the encoder does not take the images, or its tokens have no grid.
    """
    return begin_tokens(encoder, images, scales)()


def begin_tokens(
    encoder: Any, images: np.ndarray, scales: int
) -> Callable[[], tuple[np.ndarray, tuple[TokenGrid, ...]]]:
    """Begin what :func:`tokens_of` does: the answer is a function that gives it."""
    if not hasattr(encoder, "feature_maps"):
        raise UserError("readout: this encoder has no feature_maps; set readout to pooled")
    maps = _begin(encoder, images, scales)
    return lambda: _checked_tokens(images, maps())


def _checked_tokens(
    images: np.ndarray, maps: Sequence[torch.Tensor]
) -> tuple[np.ndarray, tuple[TokenGrid, ...]]:
    tokens = flatten([one.float().cpu() for one in maps]).numpy()
    if not np.isfinite(tokens).all():
        raise UserError(f"encoder: tokens of images of shape {images.shape} are not finite")
    return tokens, grids_of(maps)


def _begin(encoder: Any, images: np.ndarray, scales: int | None) -> Callable[[], Any]:
    """Have an encoder begin with images: the answer gives its features, or its feature maps."""
    batch = torch.from_numpy(np.ascontiguousarray(images))
    if hasattr(encoder, "ask"):
        answer = encoder.ask(batch, scales)
    elif scales is None:
        answer = partial(encoder, batch)
    else:
        answer = partial(encoder.feature_maps, batch, scales)
    return lambda: _answered(answer, images)


def tokens_of_views(
    encoder: Any, views: Sequence[np.ndarray], scales: int
) -> tuple[np.ndarray, tuple[TokenGrid, ...]]:
    """Tokens of several cameras' images side by side, as further scales; see :func:`tokens_of`."""
    return begin_tokens_of_views(encoder, views, scales)()


def begin_tokens_of_views(
    encoder: Any, views: Sequence[np.ndarray], scales: int
) -> Callable[[], tuple[np.ndarray, tuple[TokenGrid, ...]]]:
    """Begin what :func:`tokens_of_views` does: the answer is a function that gives it."""
    begun = [begin_tokens(encoder, images, scales) for images in views]

    def answer() -> tuple[np.ndarray, tuple[TokenGrid, ...]]:
        found = [one() for one in begun]
        grids = tuple(grid for _, own in found for grid in own)
        return np.concatenate([tokens for tokens, _ in found], 1), grids

    return answer


@torch.no_grad()
def _answered(answer: Callable[[], Any], images: np.ndarray) -> Any:
    """An encoder's answer.

    Raises:
        UserError: it fails.
    """
    try:
        return answer()
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"encoder: it fails on images of shape {images.shape} ({reason})") from None


def apart(images: np.ndarray) -> np.ndarray:
    """Four images (4, H, W, 3) of (N, H, W, 3), spread out: neighbours in a video hardly differ."""
    return images[:: max(1, len(images) // 4)][:4]


def check_encoder(encoder: Any, images: np.ndarray, scales: int | None = None) -> None:
    """Refuse an encoder whose features of an image are not a function of that image.

    Args:
        encoder: as of :class:`EncoderPolicy`.
        images: (B, H, W, 3) uint8, B at least 2.
        scales: check that many scales of its tokens, instead of its features.

    Raises:
        UserError: it fails on them, or an image's features depend on the others of its
            batch or on when it is asked.
    """

    def see(some: np.ndarray) -> np.ndarray:
        return features_of(encoder, some) if scales is None else tokens_of(encoder, some, scales)[0]

    together = see(images)
    _same(together[:1], see(images[:1]))
    _same(together, see(images))


def _same(before: np.ndarray, after: np.ndarray) -> None:
    # A batch of another size is summed in another order; a leak is far above that.
    if not np.allclose(before, after, rtol=1e-3, atol=1e-3 * np.abs(before).max()):
        raise UserError(
            "encoder: the same image gave other features at another moment or in another "
            "batch; an encoder may read its image alone"
        )


def _words(grids: tuple[TokenGrid, ...]) -> str:
    return ", ".join(f"{rows}x{columns}x{channels}" for rows, columns, channels in grids)
