"""Words for the codes in the triplets' columns and in rejections, for people who read a card."""

from __future__ import annotations

from typing import Any

_DEPTH_SCALES = {
    "metric": "in metres",
    "relative": "relative (no metres: shares of the scene's depth)",
    "aligned": "relative depth of a model, brought to metres by recorded depth",
}
_CAMERA_MOTIONS = {
    "pose": "removed by the recorded camera pose",
    "tracker": "removed by the camera poses that the 3D tracker found",
    "fit": "removed by a fit to the background in 3D",
    "image": "removed in the image, by a fit to the background",
    "image+parallax": "removed in the image, but for near and far moving differently",
    "static": "none: the camera stood still, by a test",
    "none": "not removed, and not known whether the camera moved",
    "failed": "not removed: no fit was found",
}
_FOCAL_KINDS = {
    "recorded": "recorded",
    "estimated": "estimated by the 3D tracker",
    "assumed": "assumed (field of view of 53°)",
    "unknown": "not said",
}
_GRIDS = {"uniform": "even", "motion": "denser where things move"}
_TRACKERS = {
    "lk": "optical flow at points (Lucas-Kanade)",
    "dis": "dense optical flow (DIS)",
    "simulator": "exact flow of the simulator",
}
_STAGES = {
    "list": "listing the source",
    "network": "network (tried again by the next run)",
    "machine": "this machine (tried again by the next run)",
    "decode": "reading the video",
    "caption": "caption",
    "sample": "choosing windows",
    "depth": "depth",
    "track": "2D tracking",
    "tracker": "the 3D tracker",
    "flow": "exact flow of the simulator",
    "camera": "camera motion",
    "filter": "filters",
    "perturbation": "split of the evaluation",
    "crash": "crash of a decoder",
    "unexpected": "unexpected error",
}
_REASONS = {
    "no motion (": "no trusted point moves: nothing does, or what moves was lost (",
}


def depth_words(kind: str, scale: str) -> str:
    """Where depth is from (column ``depth_kind``), and in which unit (``depth_scale``)."""
    if kind == "plane":
        return "no depth: everything at one metre"
    tracker, _, model = kind.partition("+")
    if tracker == "tracker":
        origin = "found by the 3D tracker"
        origin += f" from that of {model.partition(':')[2] or model}" if model else ""
    else:
        origin = kind if kind == "recorded" else f"estimated by {kind.partition(':')[2] or kind}"
    return f"{origin}, {_DEPTH_SCALES.get(scale, scale)}"


def camera_words(motion: str, inlier_share: float | None = None) -> str:
    """How the camera's motion was treated, and how many points agree with a fit."""
    words = _CAMERA_MOTIONS.get(motion, motion)
    return words if inlier_share is None else f"{words} ({inlier_share:.0%} of the points agree)"


def camera_is_removed(motion: str) -> bool:
    """True where flow is free of the camera's motion (column ``camera_motion``)."""
    return motion not in ("none", "failed")


def focal_words(kind: str) -> str:
    """Where the focal length is from (column ``focal_kind``)."""
    return _FOCAL_KINDS.get(kind, kind)


def grid_words(kind: str) -> str:
    """Where the points lie (column ``grid``)."""
    return _GRIDS.get(kind, kind)


def flow_words(source: str) -> str:
    """How points were followed (column ``flow_source``)."""
    tracker, *more = source.split("+")
    words = [_TRACKERS.get(tracker, tracker)]
    words += ["surfaces aligned in depth" if one == "aligned" else one for one in more]
    return ", ".join(words)


def stage_words(stage: str) -> str:
    """Where in the work a clip or window was rejected."""
    return _STAGES.get(stage, stage)


def reason_words(reason: str) -> str:
    """A reason of rejection, where it says less than a reader needs."""
    for short, long in _REASONS.items():
        reason = reason.replace(short, long)
    return reason


def window_words(row: dict[str, Any]) -> str:
    """When a triplet's window is, in the clip."""
    return f"{row['t_s']:.2f} s to {row['t_s'] + row['window_s']:.2f} s of the clip"
