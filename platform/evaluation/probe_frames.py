"""The labelled frames that probes are fitted on and tested on, for the suite and for sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynaflip.errors import UserError
from dynaflip.eval.labelled_frames import LabelledFrames
from dynaflip.platform.evaluation.config import TUNING_SPLIT
from dynaflip.platform.evaluation.probe_config import ViewsConfig
from dynaflip.platform.evaluation.recordings import Recordings, check_recorded_in, read_frames
from dynaflip.platform.evaluation.rendered_views import plan_views, render_views

TRAIN = "train"  # condition of the frames that probes are fitted on


@dataclass(frozen=True)
class ProbeFrames:
    """Frames of the same tasks, of recordings and of rendered views."""

    tasks: list[str]
    train: LabelledFrames  # unperturbed training recordings
    views: LabelledFrames  # layouts that no training has seen, under every condition
    single_factors: tuple[str, ...]  # conditions of the views with one factor perturbed


def make_probe_frames(
    recordings: Recordings, views: ViewsConfig, frames_per_episode: int, setting: str
) -> ProbeFrames:
    """Read the training recordings, and render the views of the tuning split.

    Args:
        recordings: of a data set with simulator labels.
        views: which views to render; its tasks are those that are scored.
        frames_per_episode: of each training recording.
        setting: dotted name of ``views`` in the caller's settings, for errors.

    Raises:
        UserError: a task has too few recordings to fit a probe on, they are of another environment
            than the views, or the simulator cannot render.
    """
    check_recorded_in(str(recordings.source.root), views.environment, "data")
    tasks = _tasks(recordings, views.tasks, setting)
    clips = [clip for clip in recordings.train if clip.task in tasks]
    train = read_frames(recordings, clips, frames_per_episode, TRAIN)
    plans = plan_views(views, tasks, recordings.camera, recordings.size_px, TUNING_SPLIT)
    return ProbeFrames(tasks, train, render_views(plans), plans[tasks[0]][0].single_factors())


def _tasks(recordings: Recordings, wanted: Sequence[str], setting: str) -> list[str]:
    """Tasks to score: those asked for, or all that a probe can be fitted on."""
    known = recordings.tasks()
    unknown = [task for task in wanted if task not in known]
    if unknown or not known:
        raise UserError(
            f"{setting}.tasks: {recordings.source.root} has not two unperturbed training "
            f"recordings of {', '.join(unknown) or 'any task'}, which a probe needs; it has them "
            f"of {', '.join(known) or 'none, so collect more'}"
        )
    return list(wanted) or known
