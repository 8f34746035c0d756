"""The labelled frames that every trial of a sweep is scored on, in one file.

A ``.npz`` without pickles: ``images`` (N, H, W, 3) uint8, ``hand_m`` and ``object_m`` (N, 3)
metres in the world frame, ``joints_rad`` (N, J) radians, and as text (N,) ``task``,
``episode`` and ``condition``. Frames of condition ``train`` fit the probes; those of ``none``
are unperturbed test frames; every other condition is one perturbation. A user's own images
can be given in the same form.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.labelled_frames import LabelledFrames, concatenate
from dynaflip.files import new_file
from dynaflip.platform.evaluation.probe_frames import TRAIN, make_probe_frames
from dynaflip.platform.evaluation.recordings import labels_missing, open_recordings
from dynaflip.platform.paths import default_data, input_path
from dynaflip.platform.sweep.config import ScoreConfig
from dynaflip.platform.triplets.schema import read_manifest

_FIELDS = tuple(field.name for field in fields(LabelledFrames))


def make_frames(config: ScoreConfig, triplets: str) -> LabelledFrames:
    """Training and test frames of a protocol.

    Args:
        config: the protocol.
        triplets: folder whose manifest says which recordings are held out.

    Raises:
        UserError: no labelled data, or the simulator cannot render here.
    """
    if config.frames is not None:
        return read_frames(Path(input_path(config.frames, Path())))
    data = input_path(config.data, default_data())
    missing = labels_missing(data)
    if missing is not None:
        raise UserError(f"sweep.score.data: {missing}; trials are scored on labelled frames")
    manifest = read_manifest(triplets)
    frames = make_probe_frames(
        open_recordings(data, manifest),
        config.views,
        config.frames_per_episode,
        "sweep.score.views",
    )
    test = frames.views.where(frames.views.condition != ALL_FACTORS)
    return concatenate([frames.train, test])


def write_frames(frames: LabelledFrames, path: Path) -> None:
    """Write a file of labelled frames; a file already there is replaced whole."""
    with new_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **{name: getattr(frames, name) for name in _FIELDS})


def read_frames(path: Path) -> LabelledFrames:
    """Read a file of labelled frames.

    Raises:
        UserError: it is missing, damaged, or lacks what a score needs.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            frames = LabelledFrames(*(file[name] for name in _FIELDS))
    except FileNotFoundError:
        raise UserError(f"sweep.score.frames: there is no file {path}") from None
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"sweep.score.frames: {path} holds no labelled frames ({reason})") from None
    conditions = set(frames.condition.tolist())
    for needed in (TRAIN, UNPERTURBED):
        if needed not in conditions:
            raise UserError(f"sweep.score.frames: {path} has no frames of condition {needed!r}")
    if conditions <= {TRAIN, UNPERTURBED}:
        raise UserError(f"sweep.score.frames: {path} has no perturbed frames")
    return frames


def digest_of(frames: LabelledFrames) -> str:
    """Equal for equal frames: scores of equal digests are comparable."""
    found = hashlib.sha256()
    for name in _FIELDS:
        found.update(np.ascontiguousarray(getattr(frames, name)).tobytes())
    return found.hexdigest()[:16]
