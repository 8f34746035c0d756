"""A clip on its way through the stages, and what becomes of it where a stage fails."""

from __future__ import annotations

import faulthandler
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dynaflip.platform.triplets.attempt_notes import Notes
from dynaflip.platform.triplets.batches import BatchSize
from dynaflip.platform.triplets.clip_reader import ClipReader
from dynaflip.platform.triplets.clips import Clip, ClipRejected, Frames, out_of_resources, printable
from dynaflip.platform.triplets.place import Place

_STARTED = "started"
_FAULT = "Fatal Python error"  # what faulthandler writes
_MAX_FAULTS = 2
MAX_STARTS = 8


@dataclass
class ClipInWork:
    """A clip and what the stages found so far; it can be pickled.

    Args:
        listed: the clip as it was listed.
        clip: with its caption, where a captioner made one.
        reader: frames, depth, cameras and captions; its depth model is the answers of one, later.
        shown: (H, W, 3) image that a captioner is shown.
        tracker: answers of a tracker of whole windows.
        rejection: the stage that rejected it, and the reason.
    """

    listed: Clip
    clip: Clip = field(init=False)
    reader: ClipReader | None = None
    shown: Frames | None = None
    tracker: Any = None
    rejection: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        self.clip = self.listed

    def reject(self, error: Exception) -> None:
        """Reject it for an error; it holds nothing any more."""
        rejection = rejection_for(error)
        self.rejection = rejection.stage, printable(rejection.reason)
        self.reader = self.shown = self.tracker = None


class ModelStage(Protocol):
    """A stage that asks a model about clips; errors of single clips reject these."""

    batch: BatchSize

    def __call__(self, items: Sequence[ClipInWork], /) -> None:
        """Give the clips the model's answers."""


def rejection_for(error: Exception) -> ClipRejected:
    """The rejection that an error stands for.

    One clip must not stop the job, whatever it holds. Nothing is hidden: it is rejected with the
    line of the error, and counts towards max_rejected_share.
    """
    if isinstance(error, ClipRejected):
        return error
    at = traceback.extract_tb(error.__traceback__)[-1]
    line = f"{Path(at.filename).name}:{at.lineno}"
    reason = f"{type(error).__name__} at {line}: {error}".splitlines()[0]
    return ClipRejected("machine" if out_of_resources(error) else "unexpected", reason)


@contextmanager
def rejecting(item: ClipInWork) -> Iterator[None]:
    """An error inside rejects the clip."""
    try:
        yield
    except Exception as error:  # of any kind: see rejection_for
        item.reject(error)


@contextmanager
def noted(item: ClipInWork, attempts: Place) -> Iterator[None]:
    """Note that a clip is in work; reject it if workers died of it before.

    A crash inside a decoder leaves its trace in the note and is the clip's fault. A worker
    that was killed leaves none (out of memory, or the machine was stopped), and the clip gets
    more attempts.
    """
    notes = Notes(attempts, item.listed.clip_id)
    known = notes.read()
    starts, faults = known.count(_STARTED), known.count(_FAULT)
    if faults >= _MAX_FAULTS or starts >= MAX_STARTS:
        if faults >= _MAX_FAULTS:
            stage, died = "crash", f"{faults} times of a fault in native code"
        else:
            stage, died = "machine", f"{starts} times, killed from outside"
        item.reject(ClipRejected(stage, f"the worker process died on this clip {died}"))
        yield
        return
    traced = faulthandler.is_enabled()
    with notes.begun(known + f"{_STARTED}\n") as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            if traced and sys.__stderr__ is not None:
                faulthandler.enable(sys.__stderr__)
    notes.remove()


def all_noted(items: Sequence[ClipInWork], attempts: Place, stage: ModelStage) -> None:
    """Run a model's stage over the clips of a shard, together.

    Where a worker died before, they are run one by one, so that the clip is found that it dies of.
    """
    alive = [item for item in items if item.rejection is None]
    suspect = any(Notes(attempts, item.listed.clip_id).read() for item in alive)
    for group in [[item] for item in alive] if suspect else [alive]:
        with ExitStack() as stack:
            for item in group:
                stack.enter_context(noted(item, attempts))
            ask_about(group, stage)


def ask_about(items: Sequence[ClipInWork], stage: ModelStage) -> None:
    """Run a model's stage over clips, without those that are rejected.

    An error that the stage itself lays to no clip rejects those that it comes with alone.
    """
    alive = [item for item in items if item.rejection is None]
    if len(alive) == 1:
        with rejecting(alive[0]):
            stage(alive)
        return
    try:
        stage(alive)
    except Exception:  # of any kind: see rejection_for
        for item in alive:
            ask_about([item], stage)
