"""Clips, which are cheap to list, and recordings, which are read.

A clip is one camera of one recording (an episode, a source video or a segment of
it). Listing clips reads no image; a :class:`Recording` decodes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


# Rejections for temporary reasons, not for the clip's content: the store did not answer, or
# memory, disk or the machine failed. The next run tries these clips again.
TEMPORARY_STAGES = frozenset({"network", "machine"})
_OUT_OF_RESOURCES = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
)


class ClipRejected(Exception):
    """A clip that cannot become triplets: a row of ``rejected.parquet``, not a failed job."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage = stage  # list | network | machine | decode | caption | sample | depth | …
        self.reason = reason


class WindowRejected(ClipRejected):
    """A window that makes no triplet; its clip is rejected only if no window is left."""


class UnknownDepthUnit(ClipRejected):
    """Recorded depth that nobody can turn into metres; a depth model does without it."""


def out_of_resources(error: Exception) -> bool:
    """True where memory, disk or file handles ran out: the machine's failure, not the clip's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES


@dataclass(frozen=True)
class Clip:
    """One camera of one recording, without its images."""

    clip_id: str  # content hash
    recording_id: str  # content hash, shared by all cameras and segments of a recording
    source: str
    path: str  # video, relative to the source's root; for messages too
    camera: str
    captions: tuple[str, ...]  # one phrasing or several; several tasks: see LeRobot's reader
    caption_group: str  # equal = same meaning
    task: str
    embodiment: str
    licence: str
    caption_kind: str = "source"  # source | template | model:NAME
    factors: str = "{}"  # perturbation values, JSON
    episode_index: int | None = None
    # LeRobot's are in the file's own time, those of a captions table from the video's beginning.
    start_s: float = 0.0
    end_s: float | None = None  # None: the file's end
    content: str = ""  # fingerprint of every file that is read
    extra: str = ""  # what the source needs to open the clip, such as lerobot.episode.Episode
    problem: tuple[str, str] | None = None  # (stage, reason) found while listing
    depth: str = ""  # its source's own settings, where it has any: see SourceConfig
    flow_window_s: float = 0.0
    captioner_prompt: str = ""  # what the captioner of its `caption_kind` is asked

    def to_json(self) -> str:
        """All of it as text; equal for equal clips."""
        return json.dumps(vars(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Clip:
        """The clip that :meth:`to_json` wrote down."""
        values = json.loads(text)
        values["captions"] = tuple(values["captions"])
        values["problem"] = values["problem"] and tuple(values["problem"])
        return cls(**values)

    def digest(self) -> str:
        """Changes when anything that triplets are made from does."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class Cameras:
    """Cameras that frames were taken with.

    Args:
        intrinsics_px: (N, 4) fx, fy, cx, cy of the recorded image; pixel centres at +0.5.
        frame_px: (width, height) that the intrinsics belong to.
        poses: (N, 4, 4) camera to world in metres, OpenCV axes, or None: assumed still.
        assumed: whether the focal length is a guess (column ``focal_kind``).
    """

    intrinsics_px: Doubles
    frame_px: tuple[int, int]
    poses: Doubles | None
    assumed: bool


class Recording(Protocol):
    """A clip that can be read. Every method may raise :class:`ClipRejected`."""

    def times_s(self) -> Doubles:
        """(N,) time of every frame, ascending, 0 at the clip's first frame."""

    def read_frames(self, indices: list[int], short_side_px: int) -> Frames:
        """(len(indices), H, W, 3) RGB of frames by ascending index, aspect kept, never enlarged."""

    def read_depth_m(self, indices: list[int]) -> Floats | None:
        """(len(indices), H, W) z-depth in metres; None: not recorded.

        NaN where there is none, infinity beyond the range of the sensor (the sky).
        """

    def cameras(self, indices: list[int]) -> Cameras | None:
        """Intrinsics and poses of frames, or None where nothing is recorded."""

    def simulator_state(self, indices: list[int]) -> Doubles | None:
        """(len(indices), Q) state of a simulation, or None: no simulation, or not recorded."""

    def caption_at(self, index: int, draw: int) -> str:
        """The caption of a frame; phrasings take turns over draws."""


class Source(Protocol):
    """A set of recordings, made with its settings (SourceConfig); picklable, and cheap to pickle.

    Its class may have more, which makes its format detectable:

    * ``detect(root, names) -> bool``, a class method: whether files of a folder are of the format.
      Without it the format is read only where ``source.format`` names it.
    * ``looks_for``: what it detects, for the error where no format recognises a folder.
    * ``takes_captions = True``: captions are read from ``source.captions``.
    """

    format: str  # lerobot, folder, …
    name: str  # SourceConfig.name, or the folder's own

    def list_clips(self) -> Iterable[Clip]:
        """All clips, problems included; raises UserError where the source itself is wrong.

        Work on the first begins while others are listed, so a generator starts sooner than a list,
        and takes no memory for all of them. Another call lists the same clips in the same order.
        """

    def open(self, clip: Clip) -> Recording:
        """Get ready to read a clip of this source."""


def content_hash(*parts: str) -> str:
    """128-bit hash of texts."""
    # Names on disk need not be UTF-8: what is not is part of the id as well.
    return hashlib.sha256("\x1f".join(parts).encode(errors="surrogatepass")).hexdigest()[:32]


def printable(text: str) -> str:
    """Text that any table can hold: names on disk need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def holds_a_word(caption: str) -> bool:
    """True where a caption says something: it has a letter or a digit."""
    return re.search(r"\w", caption) is not None


def captions_digest(captions: Iterable[str]) -> str:
    """Digest of a set of captions, whatever their order."""
    return digest_of_sorted(sorted(captions))


def digest_of_sorted(captions: Iterable[str]) -> str:
    """The same of captions that come sorted."""
    digest = hashlib.sha256()
    for caption in captions:
        text = caption.encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()[:32]


def normalise_caption(caption: str) -> str:
    """Caption without case, punctuation and extra blanks: the group of captions without task."""
    return " ".join(re.sub(r"[^\w\s]", " ", caption.casefold()).split())
