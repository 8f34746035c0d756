"""The stages that ask models about clips: captions, depth, tracks of whole windows.

Each puts the model's answers into the clips; a clip about which a model fails is rejected alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from dynaflip.platform.triplets.batches import BatchSize
from dynaflip.platform.triplets.build import grid_for_2d, grid_for_3d
from dynaflip.platform.triplets.clip_in_work import ClipInWork, rejecting, rejection_for
from dynaflip.platform.triplets.clip_reader import ClipReader
from dynaflip.platform.triplets.clips import ClipRejected, Frames, out_of_resources
from dynaflip.platform.triplets.filters import check_images
from dynaflip.platform.triplets.flow.tracker_3d import WindowToTrack, track_3d
from dynaflip.platform.triplets.models import DepthModel
from dynaflip.platform.triplets.models.answers import KnownDepth, KnownTracks, content_key
from dynaflip.platform.triplets.models.captioner import (
    LoadedCaptioner,
    caption_clips,
    needs_caption,
)
from dynaflip.platform.triplets.models.depth import answer_of, works_by_window
from dynaflip.platform.triplets.user_models import asked

# Depth maps of the clips before, because a film may be listed as many clips: 500 of 224 × 398.
_KEPT_BYTES = 180 << 20

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class CaptionStage:
    """Captions of the clips that came without.

    Args:
        captioners: by the ``caption_kind`` of the clips that they are for.
        batch: clips that are asked about at once.
    """

    def __init__(self, captioners: Mapping[str, LoadedCaptioner], batch: int = 1) -> None:
        self.captioners, self.batch = captioners, BatchSize(batch)

    def __call__(self, items: Sequence[ClipInWork]) -> None:
        """Give each clip its caption."""
        for kind, captioner in self.captioners.items():
            waiting = [i for i in items if needs_caption(i.clip) and i.clip.caption_kind == kind]

            def ask(some: list[ClipInWork], captioner: LoadedCaptioner = captioner) -> list[Any]:
                shown = [item.shown for item in some if item.shown is not None]
                assert len(shown) == len(some)
                return caption_clips([item.clip for item in some], shown, captioner)

            for item, clip in zip(waiting, in_batches(ask, waiting, self.batch), strict=True):
                item.shown = None
                with rejecting(item):
                    item.clip = _given(clip)


class DepthStage:
    """Depth of the frames that are tracked, each distinct one once.

    Args:
        models: of all ``depth: model:…`` settings, by these.
        batch: frames that are asked about at once.
    """

    def __init__(self, models: Mapping[str, DepthModel], batch: int = 1) -> None:
        self.models, self.batch = models, BatchSize(batch)
        self._known: dict[str, OrderedDict[bytes, Any]] = {name: OrderedDict() for name in models}

    def __call__(self, items: Sequence[ClipInWork]) -> None:
        """Give each clip's reader the depth of its windows."""
        for name, model in self.models.items():
            scale: Any = getattr(model, "scale", None)  # None is refused where it is read
            readers = [i.reader for i in items if i.reader and i.reader.config.depth == name]
            asked_for = [_frames_of(reader, works_by_window(model)) for reader in readers]
            known = self._answers(name, {k: f for one in asked_for for k, f in one.items()})
            for reader, questions in zip(readers, asked_for, strict=True):
                answers = {key: known[key] for key in questions}
                reader.depth_model = KnownDepth(scale, works_by_window(model), answers)

    def _answers(self, name: str, questions: dict[bytes, Frames]) -> dict[bytes, Any]:
        """The answers to questions by their keys; recent ones are not asked again."""
        model, kept = self.models[name], self._known[name]
        answers = {key: kept[key] for key in questions if key in kept}
        by_shape: dict[tuple[int, ...], list[bytes]] = {}
        for key in questions.keys() - answers.keys():
            by_shape.setdefault(questions[key].shape, []).append(key)
        for keys in by_shape.values():
            keys.sort()
            if works_by_window(model):
                found = in_batches(
                    lambda some: [answer_of(model, some[0])],
                    [questions[k] for k in keys],
                    BatchSize(1),
                )
            else:
                found = in_batches(
                    lambda some: list(answer_of(model, np.stack(some))),
                    [questions[k] for k in keys],
                    self.batch,
                )
            answers |= dict(zip(keys, found, strict=True))
        for key, answer in answers.items():
            if not isinstance(answer, ClipRejected):  # which may pass, as when memory ran out
                kept[key] = answer
                kept.move_to_end(key)
        held = sum(answer.nbytes for answer in kept.values())
        while held > _KEPT_BYTES:
            held -= kept.popitem(last=False)[1].nbytes
        return answers


class TrackStage:
    """Tracks of all windows, by a tracker of whole windows.

    Args:
        tracker: the tracker.
        name: as in ``track.tracker``.
    """

    def __init__(self, tracker: Any, name: str) -> None:
        self.tracker, self.name = tracker, name
        self.batch = BatchSize(0)  # all windows of a clip
        self.dimensions = getattr(tracker, "dimensions", 2)

    def __call__(self, items: Sequence[ClipInWork]) -> None:
        """Give each clip the tracks of its windows."""
        for item in items:
            with rejecting(item):
                if item.reader is not None:
                    answers = self._answers(item.reader)
                    scale = getattr(self.tracker, "scale", "")
                    item.tracker = KnownTracks(self.dimensions, scale, answers)

    def _answers(self, reader: ClipReader) -> dict[bytes, Any]:
        windows = []
        for indices in reader.windows.values():
            frames = reader.tracked_frames(indices)
            try:
                check_images(frames, reader.config.filter)
                if self.dimensions == 3:
                    points_px = grid_for_3d(reader, indices, frames).reshape(-1, 2)
                    windows.append(reader.to_track(indices, frames, points_px)[0])
                else:
                    points_px = grid_for_2d(reader, indices, frames).reshape(-1, 2)
                    windows.append(WindowToTrack(frames, points_px, reader.times_s[indices]))
            except ClipRejected:
                continue  # as it will be again, where the window's triplet is made
        keys = [content_key(w.frames, w.points_px) for w in windows]
        return dict(zip(keys, in_batches(self._ask, windows, self.batch), strict=True))

    def _ask(self, windows: list[WindowToTrack]) -> list[Any]:
        if self.dimensions == 3:
            return list(track_3d(self.tracker, self.name, windows))
        return [
            asked("track", self.name, partial(self.tracker, w.frames, w.points_px)) for w in windows
        ]


def in_batches(
    ask: Callable[[list[Question]], list[Answer]], questions: Sequence[Question], batch: BatchSize
) -> list[Answer | ClipRejected]:
    """Ask a model in batches: half as many at a time, from then on, where memory runs out.

    Args:
        ask: answers some questions, in their order.
        questions: all of them.
        batch: the most at once; it is made smaller.

    Returns:
        One answer a question, or why there is none: after an error in a batch its questions are
        asked one by one, so that only those fail that do alone.
    """
    answers: list[Answer | ClipRejected] = []
    while waiting := len(questions) - len(answers):
        some = list(questions[len(answers) : len(answers) + batch.of(waiting)])
        try:
            answers += ask(some)
        except Exception as error:  # of any kind: see rejection_for
            if len(some) == 1:
                answers.append(rejection_for(error))
            elif out_of_resources(error):
                batch.halve(len(some), error)
            else:
                alone = in_batches(ask, some, BatchSize(1))
                answers += alone
    return answers


def _frames_of(reader: ClipReader, by_window: bool) -> dict[bytes, Frames]:
    """The distinct frames (H, W, 3) of a clip's windows, or its windows (N, H, W, 3), by key."""
    if by_window:
        windows = [reader.tracked_frames(indices) for indices in reader.windows.values()]
        return {content_key(frames): frames for frames in windows}
    indices = sorted({index for window in reader.windows.values() for index in window})
    return {content_key(frame): frame for frame in reader.tracked_frames(indices)}


def _given(answer: Answer | ClipRejected) -> Answer:
    """The answer; raises the rejection where there is none."""
    if isinstance(answer, ClipRejected):
        raise answer
    return answer
