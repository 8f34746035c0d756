"""Ends a job whose recordings lie in a bucket that lets it in no more."""

from __future__ import annotations

import time
from collections.abc import Iterable

from dynaflip.errors import RefusedError, StoreError
from dynaflip.platform.s3 import S3Path, check_bucket

_BETWEEN_S = 10.0  # that the bucket is asked


class StoreWatch:
    """Asks the sources' buckets when a clip was refused for the network.

    An object may be refused alone, and an outage may pass. Credentials that ran out reject all
    clips that are left: the job ends with that, and not with a set that lacks them.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        """``sources``: folders and ``s3://`` prefixes that clips are read from."""
        self._roots = [S3Path.parse(path) for path in sources if path.startswith("s3://")]
        self._asked_s = -_BETWEEN_S

    def see(self, stage: str) -> None:
        """Take note of a finished clip: the stage of its rejection, or empty.

        Raises:
            RefusedError: a bucket refuses these credentials.
        """
        if stage != "network" or time.monotonic() - self._asked_s < _BETWEEN_S:
            return
        self._asked_s = time.monotonic()
        for root in self._roots:
            try:
                check_bucket(root, "source.path")
            except RefusedError as error:
                raise RefusedError(f"{error}; then run the same command again to go on") from None
            except StoreError:  # it does not answer now
                pass
