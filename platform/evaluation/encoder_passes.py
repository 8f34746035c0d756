"""An encoder on a device, in passes of one size; and the check that its features are right.

Legend of shapes: B images, H, W their size, D feature width, S feature maps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.encoder_config import FLOAT32

# Error of float32 on one device beside another, which sums in another order.
_FLOAT32_TOLERANCE = 1e-3


class FixedPasses:
    """An encoder that sees equally many images in every pass.

    A device chooses the order of its sums by the shape of what it is given: with one shape an
    image's features are the same to the last bit in whatever company it comes.

    Args:
        encoder: :class:`dynaflip.encoders.image.ImageEncoder`; moved and cast in place.
        device: of torch.
        precision: ``float32``, ``bfloat16`` or ``float16``.
        batch: images a pass; halved for good where memory does not suffice.
    """

    def __init__(self, encoder: Any, device: str, precision: str, batch: int) -> None:
        self._encoder = encoder.to(device=device, dtype=getattr(torch, precision)).eval()
        self.device, self.precision, self.batch = device, precision, batch

    def see(self, images: np.ndarray, scales: int | None) -> list[np.ndarray]:
        """Features of images (B, H, W, 3) uint8: one array (B, D), float32.

        Args:
            images: (B, H, W, 3) uint8.
            scales: give that many feature maps at most instead, S arrays (B, C, rows, columns).

        Raises:
            UserError: the encoder fails on them, or one image is too large for the memory.
        """
        parts: list[list[np.ndarray]] = []
        start = 0
        while start < len(images):
            try:
                parts.append(self._pass(images[start : start + self.batch], scales))
            except torch.OutOfMemoryError as error:
                if self.batch == 1:
                    raise UserError(
                        f"encoder: one image of shape {images.shape[1:]} does not fit into the "
                        f"memory of {self.device} ({_first_line(error)})"
                    ) from None
                # Passes of another size give features that differ in the last bits.
                self.batch //= 2
                continue
            start += len(parts[-1][0])
        return [np.concatenate(one) for one in zip(*parts, strict=True)]

    @torch.no_grad()
    def _pass(self, images: np.ndarray, scales: int | None) -> list[np.ndarray]:
        whole = np.zeros((self.batch, *images.shape[1:]), np.uint8)
        whole[: len(images)] = images
        try:
            given = torch.from_numpy(whole).to(self.device)
            if scales is None:
                maps = [self._encoder(given)]
            else:
                maps = self._encoder.feature_maps(given, scales)
            return [one[: len(images)].float().cpu().numpy() for one in maps]
        except (UserError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"encoder: it fails on {self.batch} images of shape {images.shape[1:]} on "
                f"{self.device} in {self.precision} ({_first_line(error)})"
            ) from None


def check_agreement(
    passes: FixedPasses,
    exact: FixedPasses,
    images: np.ndarray,
    scales: int | None,
    *,
    name: str,
    tolerance: float,
) -> None:
    """Refuse an encoder whose features on a device are not those in float32 on a CPU.

    The error is measured beside what tells images apart, because that is what a head reads:
    sqrt(Σ‖(aᵢ - ā) - (bᵢ - b̄)‖² / Σ‖bᵢ - b̄‖²). Features of an encoder share a large mean, and
    demonstrations and rollouts the offset of a precision.

    Args:
        passes: the encoder as images are encoded by it.
        exact: the same encoder in float32 on the CPU, as workers would encode by themselves.
        images: (B, H, W, 3) uint8.
        scales: as of :meth:`FixedPasses.see`.
        name: the encoder's, for the error.
        tolerance: largest error in half precision; float32 must be as near as another order of
            its sums.

    Raises:
        UserError: the error is larger, or features are not finite.
    """
    half = passes.precision != FLOAT32
    allowed = tolerance if half else _FLOAT32_TOLERANCE
    maps = zip(passes.see(images, scales), exact.see(images, scales), strict=True)
    worst = max(relative_error(ours, true) for ours, true in maps)
    if worst <= allowed:
        return
    what = f"features of {name} in {passes.precision} on {passes.device} differ from those in "
    what += f"float32 on a CPU by {100 * worst:.2g} % of what tells images apart"
    if half:
        other = "float16 or float32" if passes.precision == "bfloat16" else FLOAT32
        raise UserError(
            f"encoder_actor.precision: {what}; encoder_actor.tolerance allows "
            f"{100 * allowed:.2g} %: use {other}"
        )
    raise UserError(f"encoder_actor.device: {what}: its results would be those of another encoder")


def relative_error(ours: np.ndarray, true: np.ndarray) -> float:
    """The error of features of some images beside what tells these images apart.

    Of a single image it is the error beside its vector's length; of images that hardly differ,
    beside a hundredth of it.

    Args:
        ours, true: (B, …) float32.
    """
    a, b = (one.reshape(len(one), -1).astype(np.float64) for one in (ours, true))
    apart = length = float(np.linalg.norm(b))
    if len(a) > 1:
        a, b = a - a.mean(0), b - b.mean(0)
        apart = float(np.linalg.norm(b))
    error = float(np.linalg.norm(a - b)) / max(apart, 0.01 * length, 1e-30)
    return error if np.isfinite(error) else float("inf")


def compute_exactly() -> None:
    """Have float32 computed in float32 on GPUs, and by the same sums every time."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
