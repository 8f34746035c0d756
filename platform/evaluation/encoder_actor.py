"""The Ray actor that encodes images for many workers, in full passes.

Legend of shapes: B images of a request, H, W their size, D feature width, S feature maps.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.encoder_config import CPU, FLOAT32, GPU, EncoderActorConfig
from dynaflip.platform.evaluation.encoders_under_test import Encoder, load

if TYPE_CHECKING:
    from dynaflip.platform.evaluation.encoder_passes import FixedPasses

_LOADED = 8  # encoders that stay on the device; policies may each have trained one
_CHECKED_IMAGES = 8  # in float32 on a CPU too


class EncoderSource(NamedTuple):
    """An encoder on disk, or the one that was trained with a policy."""

    encoder: Encoder
    policy: str | None = None  # digest of the fitted policy


class Usage(NamedTuple):
    """An actor's work since it was asked before."""

    busy: float  # share of the time in which it computed
    images: int
    passes: int
    batch: int  # images a pass, of the encoder that was used last


class _Request(NamedTuple):
    source: EncoderSource
    scales: int | None
    images: np.ndarray  # (B, H, W, 3) uint8
    answer: asyncio.Future

    @property
    def kind(self) -> tuple:
        """Requests of one kind go through the encoder together."""
        return self.source, self.scales, self.images.shape[1:]


class EncoderActor:
    """Encodes what is queued, whoever asked for it, a full pass at a time.

    Args:
        device: ``gpu`` or ``cpu``, as of the settings.
        config: precision, batch and how long a pass waits.
    """

    def __init__(self, device: str, config: EncoderActorConfig) -> None:
        self._device, self._config = device, config
        self._encoders: dict[EncoderSource, FixedPasses] = {}
        self._checked: set[EncoderSource] = set()
        self._queue: list[_Request] = []
        self._thread = ThreadPoolExecutor(1)  # one pass at a time; meanwhile requests arrive
        self._pump: asyncio.Task | None = None
        self._since, self._used = time.monotonic(), Usage(0.0, 0, 0, config.batch)

    async def ready(self) -> None:
        """Answer once the device is there.

        Raises:
            UserError: it is not.
        """
        import socket

        import torch

        if self._device == GPU and not torch.cuda.is_available():
            raise UserError(
                f"encoder_actor.device: Ray has a GPU on {socket.gethostname()}, and torch "
                f"{torch.__version__} there finds none; install its CUDA build, or set device none"
            )

    async def encode(
        self, source: EncoderSource, images: np.ndarray, scales: int | None
    ) -> list[np.ndarray]:
        """Encode images (B, H, W, 3) uint8.

        Returns:
            The features, one array (B, D); or with ``scales`` that many feature maps at most,
            S arrays (B, C, rows, columns). All float32.

        Raises:
            UserError: the encoder fails on them, or its features are others on this device.
        """
        loop = asyncio.get_running_loop()
        request = _Request(source, scales, images, loop.create_future())
        self._queue.append(request)
        if self._pump is None:
            self._pump = loop.create_task(self._answer_all())
        answer: list[np.ndarray] = await request.answer
        return answer

    async def usage(self) -> Usage:
        """Its work since the last call."""
        now = time.monotonic()
        busy = min(1.0, self._used.busy / max(now - self._since, 1e-9))
        used = self._used._replace(busy=busy)
        self._since, self._used = now, Usage(0.0, 0, 0, used.batch)
        return used

    async def _answer_all(self) -> None:
        """Passes one after the other, while requests for the next one arrive."""
        loop = asyncio.get_running_loop()
        while self._queue:
            if self._config.window_ms and self._queued() < self._config.batch:
                await asyncio.sleep(self._config.window_ms / 1000)
            chosen = _next_pass(self._queue, self._config.batch)
            taken = {id(request) for request in chosen}
            self._queue = [request for request in self._queue if id(request) not in taken]
            try:
                answers = await loop.run_in_executor(self._thread, self._see, chosen)
            except Exception as error:
                for request in chosen:
                    if not request.answer.done():  # its asker may have given up
                        request.answer.set_exception(error)
            else:
                for request, answer in zip(chosen, answers, strict=True):
                    if not request.answer.done():
                        request.answer.set_result(answer)
        self._pump = None

    def _queued(self) -> int:
        return sum(len(request.images) for request in self._queue)

    def _see(self, requests: Sequence[_Request]) -> list[list[np.ndarray]]:
        """Answers of requests of one kind."""
        began = time.monotonic()
        source, scales = requests[0].source, requests[0].scales
        images = np.concatenate([request.images for request in requests])
        passes = self._passes(source, images, scales)
        maps = passes.see(images, scales)
        ends = np.cumsum([len(request.images) for request in requests])[:-1]
        parts = [np.split(one, ends) for one in maps]
        used = self._used
        self._used = Usage(
            used.busy + time.monotonic() - began,
            used.images + len(images),
            used.passes + math.ceil(len(images) / passes.batch),
            passes.batch,
        )
        return [list(answer) for answer in zip(*parts, strict=True)]

    def _passes(self, source: EncoderSource, images: np.ndarray, scales: int | None) -> FixedPasses:
        """The encoder on the device; one that is new there is checked with these images."""
        if source in self._encoders:
            self._encoders[source] = self._encoders.pop(source)  # the last to be dropped now
            return self._encoders[source]
        from dynaflip.platform.evaluation.encoder_passes import (
            FixedPasses,
            check_agreement,
            compute_exactly,
        )

        compute_exactly()  # here, because an actor that Ray starts again is asked for nothing else
        config, passes = self._config, self._put(source)
        if (self._device, config.precision) != (CPU, FLOAT32) and source not in self._checked:
            # Of all that came: neighbours in a video hardly differ.
            few = images[:: max(1, len(images) // _CHECKED_IMAGES)][:_CHECKED_IMAGES]
            check_agreement(
                passes,
                FixedPasses(_load(source), CPU, FLOAT32, len(few)),
                few,
                scales,
                name=source.encoder.name,
                tolerance=config.tolerance,
            )
        self._checked.add(source)
        self._encoders[source] = passes
        return passes

    def _put(self, source: EncoderSource) -> FixedPasses:
        """An encoder on the device; those that were used longest ago make room.

        Raises:
            UserError: it does not fit alone.
        """
        import torch

        from dynaflip.platform.evaluation.encoder_passes import FixedPasses

        while len(self._encoders) >= _LOADED:
            self._encoders.pop(next(iter(self._encoders)))
        config, device = self._config, "cuda" if self._device == GPU else "cpu"
        while True:
            try:
                return FixedPasses(_load(source), device, config.precision, config.batch)
            except torch.OutOfMemoryError as error:
                if not self._encoders:
                    raise UserError(
                        f"encoder: {source.encoder.name} does not fit into the memory of {device} "
                        f"({str(error).splitlines()[0]}); encoder_actor.precision float16 halves it"
                    ) from None
                self._encoders.pop(next(iter(self._encoders)))


def _next_pass(queue: Sequence[_Request], batch: int) -> list[_Request]:
    """The oldest request, and those of its kind that fit beside it in one pass."""
    chosen, images = [queue[0]], len(queue[0].images)
    for request in queue[1:]:
        if request.kind == queue[0].kind and images + len(request.images) <= batch:
            chosen.append(request)
            images += len(request.images)
    return chosen


def _load(source: EncoderSource) -> Any:
    encoder = load(source.encoder)
    if source.policy is not None:
        from dynaflip.eval.policies.recipe import split_tensors
        from dynaflip.platform.evaluation import cache

        encoder.load_state_dict(split_tensors(cache.load_policy(source.policy)).encoder)
    return encoder.eval()
