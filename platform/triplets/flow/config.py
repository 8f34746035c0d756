"""Settings of the flow: 2D tracking, back-projection, camera motion, static points, surfaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dynaflip.checks import above, at_least, one_of, share, within
from dynaflip.platform.triplets.flow import tracker_point
from dynaflip.plugins import check_name


@dataclass(frozen=True)
class TrackConfig:
    """2D tracking of the grid's points through a window."""

    tracker: str = "lk"
    """lk: pyramidal Lucas-Kanade; dis: dense inverse search, both with a forward-backward check.
    torchscript:FILE or class:MODULE:NAME: a learned tracker. One of 3D (dimensions = 3) finds depth
    and the camera's motion itself: `depth` is then only what it is given."""

    short_side_px: int = 224
    """Short side of the tracked images; smaller recordings stay as they are."""

    lk_window_px: int = 15
    """Side of Lucas-Kanade's window around a point."""

    use_depth: bool = True
    """Track in inverse depth as well as in grey, where depth is known."""

    lk_levels: int = 3
    """Pyramid levels above the image itself."""

    max_backward_error_px: float = 1.0
    """A point is lost where tracking one frame forward and back misses it by more."""

    min_frame_gap_s: float = 0.024
    """Shortest mean time between tracked frames; faster video is thinned (0: every frame).
    At 80 fps 0.024 s costs half of every frame, and drifts less."""

    def __post_init__(self) -> None:
        point = tracker_point(self.tracker)
        check_name(point, "tracker", self.tracker, with_argument=("torchscript",))
        at_least(self, 32, "short_side_px")
        if self.lk_window_px < 5 or self.lk_window_px % 2 == 0:
            raise ValueError(f"lk_window_px must be odd and at least 5, not {self.lk_window_px}")
        within(self, 0, 8, "lk_levels")
        above(self, 0, "max_backward_error_px")
        at_least(self, 0, "min_frame_gap_s")


@dataclass(frozen=True)
class LiftingConfig:
    """Back-projection of 2D tracks by depth to 3D flow in the camera frame of frame t."""

    search_px: int = 1
    """Search radius for a track's depth, so that a track half a pixel off an edge does not fall
    onto the background."""

    max_depth_jump: float = 0.04
    """Largest change of depth between two frames, as a share of it; a larger one is a track that
    slipped over an edge, and the point is lost."""

    max_invalid_share: float = 0.3
    """A clip is rejected when a frame has a larger share of pixels without depth."""

    measured_within: float = 0.5
    """A flow step counts as measured where a tracked frame lies within this share of a step of
    the longest window (`flow_window_s` / 7; 0.5 is 36 ms of 0.5 s). Other steps are interpolated:
    they are marked (column flow_measured) and carry no loss."""

    def __post_init__(self) -> None:
        at_least(self, 0, "search_px", "measured_within")
        above(self, 0, "max_depth_jump")
        share(self, "max_invalid_share")


@dataclass(frozen=True)
class CameraConfig:
    """Compensation of the camera's motion."""

    motion: str = "auto"
    """auto: the recorded pose (where depth is in metres, too), else a fit: in 3D where there is
    depth, else of the background in the image. recorded, fitted or none: only that; clips
    without it are rejected."""

    on_failure: str = "reject"
    """reject: leave out windows whose camera cannot be fitted. uncompensated: keep them as if the
    camera were static (column camera_motion: failed)."""

    min_inlier_share: float = 0.4
    """A fit fails where a smaller share of the points agrees. In the image the rim counts as much
    as the whole, and either needs half of it."""

    inlier_px: float = 1.0
    """Largest miss of an inlier in the image."""

    inlier_depth_share: float = 0.01
    """Largest miss of an inlier in depth, as a share of it."""

    trials: int = 100
    """RANSAC trials (triples of points) for each frame."""

    def __post_init__(self) -> None:
        one_of(self, ("auto", "recorded", "fitted", "none"), "motion")
        one_of(self, ("reject", "uncompensated"), "on_failure")
        share(self, "min_inlier_share")
        above(self, 0, "inlier_px", "inlier_depth_share", "trials")


@dataclass(frozen=True)
class StaticPointsConfig:
    """Test for static points, which a tracker may drag along with what passes in front."""

    RENAMED: ClassVar[dict[str, str]] = {"min_still_gain": "min_static_gain"}

    enabled: bool = True
    """Test whether a point is static before its track is used; off: the tracker alone decides."""

    patch_radius_px: int = 1
    """Radius of the compared patch: 1 is 3 × 3 pixels."""

    max_colour_difference: float = 10.0
    """Largest mean colour difference (of 255) between equal patches."""

    without_depth: float = 0.5
    """Factor on max_colour_difference where there is no depth, so that colour decides alone."""

    max_depth_difference: float = 0.007
    """Largest depth difference of a static point, as a share of its depth."""

    min_static_gain: float = 0.1
    """A tracked point counts as static after all where the static scene fits better by this
    much (misfits are in [0, 2])."""

    def __post_init__(self) -> None:
        at_least(self, 0, "patch_radius_px", "max_colour_difference", "without_depth")
        at_least(self, 0, "max_depth_difference", "min_static_gain")


@dataclass(frozen=True)
class DraggedPointsConfig:
    """Test for points that are dragged along beside a moving object (see dragged_points.py).

    Defaults were tuned on 24 simulated windows at 224 px.
    """

    enabled: bool = True
    """Drop points that seem to move while what looks like them around them rests."""

    radius_px: int = 24
    """Radius of the surroundings in the tracked image."""

    colour_difference: float = 15.0
    """Surroundings look like the point where their mean colour difference (of 255) is smaller."""

    min_moving_share: float = 0.75
    """A point is dropped where a smaller share of its look-alike surroundings moves."""

    corner: float = 60.0
    """Stronger corners are kept whatever their surroundings do: smaller eigenvalue of the mean
    outer product of slopes over 5 × 5 pixels, in squared grey levels per pixel."""

    def __post_init__(self) -> None:
        at_least(self, 1, "radius_px")
        at_least(self, 0, "colour_difference", "corner")
        share(self, "min_moving_share")


@dataclass(frozen=True)
class AlignmentConfig:
    """RGB-D alignment of the surface patch around each point with later frames (needs depth).

    Defaults were tuned on 24 simulated clips at 224 px (see LOG.md).
    """

    enabled: bool = True
    """Align the surface around each point with later frames; off: the tracker's points, corrected
    by their neighbours."""

    radius_px: int = 20
    """Radius of a patch in the tracked image."""

    stride_px: int = 4
    """Distance between the samples of a patch."""

    samples: int = 48
    """Most samples of a patch that are compared."""

    min_samples: int = 12
    """A patch with fewer samples is left to the tracker."""

    depth_share: float = 0.08
    """Samples belong to a patch when their depth differs by no more than this share."""

    grey_scale: float = 30.0
    """Brightness difference (of 255) whose weight is one half."""

    depth_scale_share: float = 0.0015
    """Depth difference, as a share of depth, whose weight is one half."""

    damping: float = 0.5
    """Levenberg-Marquardt damping: least gain, in squared scales, of a step of a hundredth of
    the distance."""

    coarse_iterations: int = 1
    """Iterations on blurred images, for each frame."""

    fine_iterations: int = 2
    """Iterations on sharp images, for each frame."""

    neighbours: int = 8
    """Neighbours whose motion each patch tries as its own."""

    max_misfit: float = 0.5
    """A patch is lost in frames with a larger misfit: 0 fits everywhere, 1 nowhere."""

    def __post_init__(self) -> None:
        at_least(self, 1, "radius_px", "stride_px", "samples", "min_samples", "fine_iterations")
        at_least(self, 0, "coarse_iterations", "neighbours", "damping")
        above(self, 0, "grey_scale", "depth_scale_share", "depth_share")
        within(self, 0, 1, "max_misfit", ends="(]")


@dataclass(frozen=True)
class RigidSmoothingConfig:
    """Rigid smoothing: neighbours on one surface correct each other."""

    enabled: bool = True
    """Correct points by their neighbours on one surface; off: every point as it was tracked."""

    depth_share: float = 0.05
    """Neighbours are on one surface when their depth differs by no more than this share."""

    fit_cells: int = 3
    """Reach, in grid cells, of the neighbours that a rigid motion is fitted to."""

    vote_cells: int = 2
    """Reach, in grid cells, of the neighbours that vote on whether a point moves."""

    min_moving_share: float = 0.35
    """A moving point is lost where a smaller share of its neighbours moves."""

    max_moving_share: float = 0.5
    """A static point is lost where a larger share of its neighbours moves."""

    def __post_init__(self) -> None:
        at_least(self, 1, "fit_cells", "vote_cells")
        share(self, "depth_share", "min_moving_share", "max_moving_share")
