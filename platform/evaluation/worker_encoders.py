"""The encoders of an evaluation's worker: a few that stay loaded, or those of encoder actors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynaflip.platform.evaluation.encoders_under_test import Encoder, load

if TYPE_CHECKING:
    from dynaflip.platform.evaluation.encoder_service import EncoderActors

CACHED_ENCODERS = 4


class WorkerEncoders:
    """Encoders by digest; :data:`CACHED_ENCODERS` of them stay loaded."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def here(self, encoder: Encoder) -> Any:
        """One that this worker computes with."""
        if encoder.digest not in self._loaded:
            if len(self._loaded) >= CACHED_ENCODERS:
                self._loaded.pop(next(iter(self._loaded)))
            self._loaded[encoder.digest] = load(encoder)
        return self._loaded[encoder.digest]

    def of(self, encoder: Encoder, there: EncoderActors | None, trained: str | None = None) -> Any:
        """One that encodes here, or in encoder actors.

        Args:
            encoder: which.
            there: the actors; None: this worker computes.
            trained: digest of the policy that it was trained with, if it was.
        """
        if there is None:
            return self.here(encoder)
        from dynaflip.platform.evaluation.encoder_actor import EncoderSource
        from dynaflip.platform.evaluation.encoder_service import RemoteEncoder

        return RemoteEncoder(there, EncoderSource(encoder, trained))
