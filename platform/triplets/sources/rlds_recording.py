"""Reading of one RLDS episode through one camera: see :mod:`.rlds`, which lists them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dynaflip.platform.s3_errors import NetworkError
from dynaflip.platform.triplets.clips import (
    Cameras,
    Clip,
    ClipRejected,
    Doubles,
    Floats,
    Frames,
)
from dynaflip.platform.triplets.sources import tfrecord
from dynaflip.platform.triplets.sources.encoded_images import read_images
from dynaflip.platform.triplets.sources.locations import Location
from dynaflip.platform.triplets.sources.rlds_steps import instructions_of_step, step_images
from dynaflip.platform.triplets.sources.tfrecord import DamagedRecord, Record, Values


@dataclass(frozen=True)
class StoredEpisode:
    """Place of a clip's record, the feature that is its camera, and its steps a second."""

    file: str  # relative to the source's root
    record: Record
    feature: str
    fps: float

    def to_json(self) -> str:
        """The text that a clip carries in its field ``extra``."""
        record = self.record
        values = [self.file, record.offset, record.size, record.checksum, self.feature, self.fps]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> StoredEpisode:
        """The episode that :meth:`to_json` wrote down."""
        file, offset, size, checksum, feature, fps = json.loads(text)
        return cls(file, Record(offset, size, checksum), feature, fps)


class RLDSRecording:
    """One episode through one camera; its record is read once, and checked."""

    def __init__(self, root: Location, clip: Clip) -> None:
        self.clip = clip
        self.stored = StoredEpisode.from_json(clip.extra)
        self.path = root / self.stored.file
        self._features: dict[str, Values] = {}

    @property
    def features(self) -> dict[str, Values]:
        """Everything in the record."""
        if not self._features:
            try:
                with self.path.open("rb") as file:
                    data = tfrecord.read_record(file, self.stored.record)
                self._features = tfrecord.read_example(data)
            except DamagedRecord as error:
                raise ClipRejected("decode", str(error)) from None
            except NetworkError as error:
                raise ClipRejected("network", str(error)) from None
            except OSError as error:
                raise ClipRejected("decode", f"cannot be read: {error.strerror or error}") from None
        return self._features

    @cached_property
    def images(self) -> list[bytes]:
        """Encoded images, one a step."""
        return step_images(self.features, self.stored.feature)

    def times_s(self) -> Doubles:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        return np.arange(len(self.images)) / self.stored.fps

    def read_frames(self, indices: list[int], short_side_px: int) -> Frames:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        return read_images(indices, self.images.__getitem__, short_side_px, "step")

    def read_depth_m(self, indices: list[int]) -> Floats | None:
        """None: the format has no unit of depth."""
        return None

    def cameras(self, indices: list[int]) -> Cameras | None:
        """None: not part of the format."""
        return None

    def simulator_state(self, indices: list[int]) -> Doubles | None:
        """None: not part of the format."""
        return None

    def caption_at(self, index: int, draw: int) -> str:
        """The instruction of the step; phrasings take turns over draws."""
        of_step = instructions_of_step(self.features, index, len(self.images))
        captions = of_step or list(self.clip.captions)
        return captions[draw % len(captions)]
