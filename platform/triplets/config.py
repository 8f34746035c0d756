"""Settings of preprocessing: from recordings to image-language-3D-flow triplets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dynaflip.checks import above, at_least, one_of, share, within

TRACKER_CHOICES = "lk, dis, torchscript:FILE or class:MODULE:NAME"
DEPTH_MODEL = "model:"
DEPTH_CHOICES = "auto, plane or model:FOLDER-OR-HUB-ID"


@dataclass(frozen=True)
class SourceConfig:
    """Where recordings come from. The format is detected from what lies there."""

    path: str = ""
    """Folder or s3:// prefix: LeRobot v3.0 or v2.1, RLDS (*.tfrecord), Something-Something V2,
    Ego4D-style narrations, or videos with captions.csv, .jsonl or .parquet; or a single file."""

    name: str = ""
    """Name that triplets carry as their source; ```` takes the folder's own name."""

    weight: float = 1.0
    """How often pretraining draws from this source, relative to the others of a mix."""

    cameras: tuple[str, ...] = ()
    """Cameras to read, by name; empty reads all that are there."""

    embodiment: str = ""
    """Written into triplets whose source does not say: robot | human | unknown."""

    licence: str = ""
    """Licence of the material, where the source itself does not say."""

    captions: str = ""
    """Captions of a folder of videos, where they lie elsewhere: .csv, .jsonl or .parquet."""

    caption_template: str = ""
    """Caption of videos that have none: {name} and {folder} of the file, {source}."""

    captioner: str = ""
    """Clips that are left without caption are described by this transformers model (image-text-to-
    text, FOLDER-OR-HUB-ID); asked with the prompt, where it can chat."""

    captioner_prompt: str = "Say in one short sentence what is done from left to right."
    fps: float = 0.0
    """Steps a second of RLDS data sets, which do not say; 0 takes that of known ones."""

    narration_s: float = 2.0
    """Seconds around a narrated moment that are its clip (Ego4D)."""

    max_clips: int = 0
    """Read only the first so many clips (trials); 0 reads all."""

    depth: str = ""
    """Where this source's depth is from, if not from where `depth` says for all."""

    flow_window_s: float = 0.0
    """Longest flow window of this source; 0 = `flow_window_s` of all."""

    def __post_init__(self) -> None:
        at_least(self, 0, "max_clips", "flow_window_s")
        if self.depth:
            _check_depth(self.depth)
        within(self, 0, math.inf, "weight", ends="[)")
        within(self, 0, 10_000, "fps")
        within(self, 0, 3600, "narration_s", ends="(]")
        try:
            self.caption_template.format(name="", folder="", source="")
        except (KeyError, ValueError, IndexError):
            raise ValueError(
                f"caption_template may hold {{name}}, {{folder}} and {{source}}, "
                f"not {self.caption_template!r}"
            ) from None


@dataclass(frozen=True)
class TrackConfig:
    """Who follows the grid's points through the window, in 2D."""

    tracker: str = "lk"
    """Lk: pyramidal Lucas-Kanade; dis: dense inverse search, both with a forward-backward check.
    torchscript:FILE or class:MODULE:NAME: a learned tracker (see stages/learned_track.py)."""

    short_side_px: int = 224
    """Short side of the images that are tracked; smaller recordings stay as they are."""

    lk_window_px: int = 15
    """Side of the window around a point."""

    use_depth: bool = True
    """Track in depth as well as in grey, where depth is known."""

    lk_levels: int = 3
    """Pyramid levels above the image itself."""

    max_backward_error_px: float = 1.0
    """A point is lost where going one frame forward and back misses it by more."""

    min_frame_gap_s: float = 0.024
    """Shortest mean time between tracked frames: faster video is thinned to it (0: every frame).
    At 80 fps 0.024 s costs half of every frame, and drifts less."""

    def __post_init__(self) -> None:
        kind, _, rest = self.tracker.partition(":")
        if self.tracker not in ("lk", "dis") and not (kind in ("torchscript", "class") and rest):
            raise ValueError(f"tracker must be {TRACKER_CHOICES}, not {self.tracker!r}")
        at_least(self, 32, "short_side_px")
        if self.lk_window_px < 5 or self.lk_window_px % 2 == 0:
            raise ValueError(f"lk_window_px must be odd and at least 5, not {self.lk_window_px}")
        within(self, 0, 8, "lk_levels")
        above(self, 0, "max_backward_error_px")
        at_least(self, 0, "min_frame_gap_s")


@dataclass(frozen=True)
class LiftConfig:
    """From 2D tracks and depth to 3D flow in the camera frame of frame t."""

    search_px: int = 1
    """Radius in which a track's depth is looked for, so that a track half a pixel off an edge does
    not fall onto the background."""

    max_depth_jump: float = 0.04
    """Depth may change by this share of itself between two lifted frames; more is a track that
    slipped over an edge, and the point is lost."""

    max_invalid_share: float = 0.3
    """A clip is rejected when a frame has a larger share of pixels without depth."""

    def __post_init__(self) -> None:
        at_least(self, 0, "search_px")
        above(self, 0, "max_depth_jump")
        share(self, "max_invalid_share")


@dataclass(frozen=True)
class CameraConfig:
    """Whose motion is taken out of the flow."""

    motion: str = "auto"
    """Auto: the recorded pose (where depth is in metres, as it is), else a fit, else (without
    depth) none. recorded, fitted and none: only that; a clip without it is then rejected."""

    on_failure: str = "reject"
    """Reject: a window whose camera cannot be fitted is left out. uncompensated: it is kept as if
    the camera stood still, and says so."""

    min_inlier_share: float = 0.4
    """A fit fails where a smaller share of the points agrees."""

    inlier_px: float = 1.0
    """A point agrees when it misses by no more in the image, and in depth as a share of it."""

    inlier_depth_share: float = 0.01
    trials: int = 100
    """Triples of points that are tried for each frame."""

    def __post_init__(self) -> None:
        one_of(self, ("auto", "recorded", "fitted", "none"), "motion")
        one_of(self, ("reject", "uncompensated"), "on_failure")
        share(self, "min_inlier_share")
        above(self, 0, "inlier_px", "inlier_depth_share", "trials")


@dataclass(frozen=True)
class StillConfig:
    """Points that stand still are told from those the tracker drags along."""

    enabled: bool = True
    """False: believe the tracker alone."""

    patch_radius_px: int = 1
    """Radius of the patch that is compared: 1 is 3 × 3 pixels."""

    max_colour_difference: float = 10.0
    """Mean difference of colour (of 255) at which a patch is still the same."""

    without_depth: float = 0.5
    """Without recorded or estimated depth, colour decides alone: this share of it."""

    max_depth_difference: float = 0.007
    """Difference of depth, as a share of it, at which a point is still the same."""

    min_still_gain: float = 0.1
    """A point that was followed rests after all where standing still fits better by this (of
    2)."""

    def __post_init__(self) -> None:
        at_least(self, 0, "patch_radius_px", "max_colour_difference", "without_depth")
        at_least(self, 0, "max_depth_difference", "min_still_gain")


@dataclass(frozen=True)
class RegisterConfig:
    """The surface about a point is laid over later frames as a rigid piece (needs depth).

    Defaults were tuned on 24 simulated clips at 224 px (see LOG.md).
    """

    enabled: bool = True
    """False: believe the tracker's points, corrected by their neighbours."""

    radius_px: int = 20
    """Radius of a piece in the tracked image, …"""

    stride_px: int = 4
    """… distance of its samples, and how many of them are compared at most."""

    samples: int = 48
    min_samples: int = 12
    """A piece of fewer samples is left to the tracker."""

    depth_share: float = 0.08
    """Samples belong to a piece when their depth differs by no more than this share."""

    grey_scale: float = 30.0
    """Differences of brightness (of 255) and of depth (as a share of it) that count half."""

    depth_scale_share: float = 0.0015
    damping: float = 0.5
    """What a step of a hundredth of the distance has to gain, in squared scales."""

    coarse_iterations: int = 1
    """Iterations on blurred and on sharp images, for each frame."""

    fine_iterations: int = 2
    neighbours: int = 8
    """Neighbours whose motion a piece tries as its own."""

    max_misfit: float = 0.5
    """A piece is lost in frames that it fits worse: 0 fits everywhere, 1 nowhere."""

    def __post_init__(self) -> None:
        at_least(self, 1, "radius_px", "stride_px", "samples", "min_samples", "fine_iterations")
        at_least(self, 0, "coarse_iterations", "neighbours", "damping")
        above(self, 0, "grey_scale", "depth_scale_share", "depth_share")
        within(self, 0, 1, "max_misfit", ends="(]")


@dataclass(frozen=True)
class PiecesConfig:
    """Neighbours on one surface correct each other: things move in one piece."""

    enabled: bool = True
    """False: every point for itself."""

    depth_share: float = 0.05
    """Neighbours are on one surface when their depth differs by no more than this share."""

    fit_cells: int = 3
    """Reach, in grid cells, of the rigid motion that is fitted …"""

    vote_cells: int = 2
    """… and of the vote on who moves."""

    min_moving_share: float = 0.35
    """A point that moves is lost where a smaller share of its neighbours does …"""

    max_moving_share: float = 0.5
    """… and one that rests where a larger share moves."""

    def __post_init__(self) -> None:
        at_least(self, 1, "fit_cells", "vote_cells")
        share(self, "depth_share", "min_moving_share", "max_moving_share")


@dataclass(frozen=True)
class FilterConfig:
    """Windows that are left out, and counted by reason. 0 (for the cut: 1) keeps all."""

    min_moving_share: float = 0.005
    """Least share of the grid's points that are trusted to the end and move."""

    min_visible_share: float = 0.1
    """Least share of the grid's points that are trusted to the end."""

    max_cut_score: float = 0.12
    """A shot cut: change of brightness from one tracked frame to the next, beyond the usual."""

    min_sharpness: float = 8.0
    """Least mean squared Laplacian of the first and last image (blur lowers it)."""

    def __post_init__(self) -> None:
        share(self, "min_moving_share", "min_visible_share", "max_cut_score")
        at_least(self, 0, "min_sharpness")


@dataclass(frozen=True)
class PreprocessConfig:
    """Everything that ``jobs/preprocess.py`` can be told."""

    source: SourceConfig = field(default_factory=SourceConfig)
    sources: tuple[SourceConfig, ...] = ()
    """Several sources in one set, each with settings of its own; then `source` stays empty."""

    depth: str = "auto"
    """Auto: the recorded depth, or the clip is rejected. plane: everything at 1 m, relative scale.
    model:FOLDER-OR-HUB-ID: a transformers depth model."""

    align_depth: bool = True
    """Bring a model's relative depth to metres by scale and shift where a window's first frame has
    recorded depth (depth_scale then says aligned)."""

    flow_source: str = "tracked"
    """Tracked: from the images. simulator: the exact flow of a simulated recording, for upper-
    bound experiments only."""

    flow_window_s: float = 0.5
    """The flow is followed for the time to R3M's next frame, at most this long."""

    min_window_s: float = 0.1
    """Transitions shorter than this are skipped: nothing moves in them."""

    draws_per_clip: int = 3
    """R3M draws per clip: five frames each, hence four transitions."""

    image_pair: str = "window"
    """Second image of a pair. window: at t + flow window. r3m: R3M's next frame."""

    image_px: int = 160
    """Short side of the stored images; smaller recordings stay as they are."""

    jpeg_quality: int = 92
    """Quality of the stored JPEG images."""

    grid: str = "uniform"
    """Uniform: an even grid of key points, as in the paper. motion: lines lie closer where things
    move; grid_focus is the share of them that motion draws."""

    grid_focus: float = 0.7
    heldout_share: float = 0.2
    """Share of recordings held out from pretraining, by hash."""

    seed: int = 0
    """Enters the draw of frames, beside each clip's content."""

    max_rejected_share: float = 0.5
    """The job fails when more than this share of the clips is rejected."""

    clips_per_shard: int = 4
    """Clips a Parquet file, at most; also what one task works on."""

    example_images: int = 12
    """Flow-overlay examples in images/."""

    track: TrackConfig = field(default_factory=TrackConfig)
    lift: LiftConfig = field(default_factory=LiftConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    still: StillConfig = field(default_factory=StillConfig)
    register: RegisterConfig = field(default_factory=RegisterConfig)
    pieces: PiecesConfig = field(default_factory=PiecesConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)

    def __post_init__(self) -> None:
        if self.sources and self.source != SourceConfig():
            raise ValueError("sources and source exclude each other: give one of them")
        if any(not source.path for source in self.sources):
            raise ValueError("sources: every source needs a path")
        if self.sources and not any(source.weight for source in self.sources):
            raise ValueError("sources: at least one weight must be above 0")
        _check_depth(self.depth)
        one_of(self, ("tracked", "simulator"), "flow_source")
        one_of(self, ("window", "r3m"), "image_pair")
        windows_s = [self.flow_window_s, *(source.flow_window_s for source in self.all_sources())]
        shortest_s = min(filter(None, windows_s), default=0.0)
        if not 0 < self.min_window_s <= shortest_s:
            raise ValueError(
                f"min_window_s must be above 0 and at most flow_window_s "
                f"({shortest_s}), not {self.min_window_s}"
            )
        at_least(self, 1, "draws_per_clip", "clips_per_shard")
        one_of(self, ("uniform", "motion"), "grid")
        within(self, 0, 1, "grid_focus", "heldout_share", ends="[)")
        at_least(self, 16, "image_px")
        within(self, 1, 100, "jpeg_quality")
        share(self, "max_rejected_share")
        at_least(self, 0, "example_images")

    def all_sources(self) -> tuple[SourceConfig, ...]:
        """The sources of the set, one or several."""
        return self.sources or (self.source,)

    def depth_models(self) -> set[str]:
        """The depth models that some source asks for, as ``model:NAME``."""
        wanted = {source.depth or self.depth for source in self.all_sources()}
        return {depth for depth in wanted if depth.startswith(DEPTH_MODEL)}


def _check_depth(depth: str) -> None:
    model = depth.startswith(DEPTH_MODEL) and depth.removeprefix(DEPTH_MODEL).strip()
    if depth not in ("auto", "plane") and not model:
        raise ValueError(f"depth must be {DEPTH_CHOICES}, not {depth!r}")
