"""Settings of preprocessing: from recordings to image-language-3D-flow triplets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from dynaflip.checks import above, at_least, one_of, share, within
from dynaflip.platform.triplets.flow.config import (
    AlignmentConfig,
    CameraConfig,
    DraggedPointsConfig,
    LiftingConfig,
    RigidSmoothingConfig,
    StaticPointsConfig,
    TrackConfig,
)
from dynaflip.platform.triplets.models import CAPTIONERS, DEPTH_MODELS
from dynaflip.platform.triplets.sources import SOURCES
from dynaflip.platform.triplets.stage_config import StagesConfig
from dynaflip.plugins import check_name, split_argument

# Depth without a model: recorded, or everything at 1 m.
WITHOUT_MODEL = ("auto", "plane")


@dataclass(frozen=True)
class SourceConfig:
    """One source of recordings. Its format is detected from the files."""

    path: str = ""
    """Folder or s3:// prefix: LeRobot v3.0 or v2.1, RLDS (*.tfrecord), Something-Something V2,
    Ego4D-style narrations, or videos with captions.csv, .jsonl or .parquet; or a single file."""

    format: str = ""
    """Format of the recordings, by the name of a source extension; empty detects it."""

    name: str = ""
    """Name of the source in the triplets; empty: the folder's own name."""

    weight: float = 1.0
    """How often pretraining draws from this source, relative to the others of a mix."""

    cameras: tuple[str, ...] = ()
    """Cameras to read, by name; empty reads all."""

    embodiment: str = ""
    """robot, human or unknown, for recordings that do not state it."""

    licence: str = ""
    """Licence of recordings that do not state it."""

    captions: str = ""
    """Captions file of a folder of videos, if it lies elsewhere: .csv, .jsonl or .parquet."""

    caption_template: str = ""
    """Caption of videos without one; may hold {name} and {folder} of the file, and {source}."""

    captioner: str = ""
    """Captioner of clips without caption: FOLDER-OR-HUB-ID (or model:FOLDER-OR-HUB-ID) of a
    transformers image-text-to-text model, or class:MODULE:NAME. A hub id may be ID@REVISION."""

    captioner_prompt: str = "Say in one short sentence what is done from left to right."
    """Prompt for captioners that can chat."""

    fps: float = 0.0
    """Steps per second of RLDS data sets, which do not store it; 0: that of known public sets."""

    narration_s: float = 2.0
    """Length of the clip around a narrated moment, in seconds (Ego4D)."""

    max_clips: int = 0
    """Most clips to read, for trials; 0 reads all."""

    depth: str = ""
    """Overrides the global `depth` for this source."""

    flow_window_s: float = 0.0
    """Overrides the global `flow_window_s` for this source; 0 does not."""

    def __post_init__(self) -> None:
        at_least(self, 0, "max_clips", "flow_window_s")
        if self.format:
            check_name(SOURCES, "format", self.format)
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

    def captioner_name(self) -> str:
        """The captioner's full name: a folder or hub id alone means ``model:`` of it."""
        known = CAPTIONERS.knows(split_argument(self.captioner)[0])
        return self.captioner if known else f"model:{self.captioner}"


@dataclass(frozen=True)
class FilterConfig:
    """Windows to leave out, counted by reason. 0 (max_cut_score: 1) leaves none out."""

    min_moving_share: float = 0.005
    """Least share of the grid's points that move and are visible to the end."""

    min_visible_share: float = 0.1
    """Least share of the grid's points that are visible to the end."""

    max_cut_score: float = 0.12
    """Shot cut: largest change of brightness between tracked frames, less the median change."""

    min_sharpness: float = 8.0
    """Least mean squared Laplacian of the first and last image (blur lowers it)."""

    def __post_init__(self) -> None:
        share(self, "min_moving_share", "min_visible_share", "max_cut_score")
        at_least(self, 0, "min_sharpness")


@dataclass(frozen=True)
class PreprocessConfig:
    """Settings of ``jobs/preprocess.py``."""

    RENAMED: ClassVar[dict[str, str]] = {
        "example_pictures": "example_images",
        "lift": "lifting",
        "pieces": "rigid_smoothing",
        "register": "rgbd_alignment",
        "still": "static_points",
    }

    source: SourceConfig = field(default_factory=SourceConfig)
    sources: tuple[SourceConfig, ...] = ()
    """Several sources in one set, each with its own settings; `source` stays empty then."""

    depth: str = "auto"
    """auto: recorded depth, or the clip is rejected (a 3D tracker does without). plane: everything
    at 1 m, relative scale. model:FOLDER-OR-HUB-ID: a transformers depth model (a hub id may be
    ID@REVISION). class:MODULE:NAME: your own."""

    align_depth: bool = True
    """Scale and shift a model's relative depth to metres where a window's first frame has recorded
    depth (column depth_scale: aligned)."""

    depth_precision: str = "auto"
    """Precision that depth models compute in: float32, float16, bfloat16, or auto: float16 on GPUs
    and float32 on CPUs. A model of your own has it where it has `use_precision`."""

    flow_source: str = "tracked"
    """tracked: from images. simulator: exact flow of a simulated recording, for upper-bound
    experiments only."""

    flow_window_s: float = 0.5
    """Longest flow window, in seconds. A window is shorter where the next of the drawn frames (see
    `draws_per_clip`) comes earlier."""

    min_window_s: float = 0.1
    """Shorter transitions are skipped: too little moves in them."""

    draws_per_clip: int = 3
    """How often five frames are drawn from a clip, or from each segment of a long one, as R3M does
    it; each draw gives four transitions, from a frame to the next."""

    segment_s: float = 20.0
    """Length from which a clip gives more windows, in seconds: one of at least twice this length is
    divided into equal segments, none shorter, and each is drawn from like a clip of its own. 0
    draws from every clip as a whole."""

    max_segments: int = 5
    """Most segments of a clip, so that no video outweighs all others, and fits in memory; a longer
    one has longer segments."""

    image_pair: str = "window"
    """Second image of a pair. window: at t + flow window. r3m: the next of the drawn
    frames."""

    image_px: int = 160
    """Short side of the stored images, at least `model.image.image_px` of the pretrainings that
    read them; smaller recordings stay as they are."""

    jpeg_quality: int = 92
    """Quality of the stored JPEG images."""

    grid: str = "uniform"
    """uniform: an even grid of key points, as in the paper. motion: denser where things move."""

    grid_focus: float = 0.7
    """Share of a motion grid's lines that is drawn to motion."""

    heldout_share: float = 0.2
    """Share of recordings held out from pretraining, by hash."""

    join_near_duplicates: bool = False
    """Put recordings whose clips are near copies of each other on one side of the split, among
    20,000 clips at most. Needs the whole set to be made; recordings that are added later do not
    move others, and are only reported."""

    seed: int = 0
    """Seed of the draw of frames, together with each clip's content."""

    max_rejected_share: float = 0.5
    """The job fails when more than this share of the clips is rejected."""

    clips_per_shard: int = 4
    """Most clips of a shard, which is the work of one Ray task."""

    part_mb: float = 256
    """Size of the Parquet files that the triplets are compacted to when all clips are done, in
    MB (2^20 bytes). Files of an earlier run keep their size while all their clips are wanted."""

    example_images: int = 12
    """Flow-overlay examples in pictures/examples.png."""

    stages: StagesConfig = field(default_factory=StagesConfig)
    """Resources of the stages that run models."""

    track: TrackConfig = field(default_factory=TrackConfig)
    """2D tracking."""

    lifting: LiftingConfig = field(default_factory=LiftingConfig)
    """Back-projection of tracks to 3D."""

    camera: CameraConfig = field(default_factory=CameraConfig)
    """Compensation of the camera's motion."""

    static_points: StaticPointsConfig = field(default_factory=StaticPointsConfig)
    """Test for static points."""

    dragged_points: DraggedPointsConfig = field(default_factory=DraggedPointsConfig)
    """Test for points that something drags along."""

    rgbd_alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    """RGB-D alignment of surface patches."""

    rigid_smoothing: RigidSmoothingConfig = field(default_factory=RigidSmoothingConfig)
    """Rigid smoothing by neighbours."""

    filter: FilterConfig = field(default_factory=FilterConfig)
    """Filters of windows."""

    def __post_init__(self) -> None:
        if self.sources and self.source != SourceConfig():
            raise ValueError("sources and source exclude each other: give one of them")
        if any(not source.path for source in self.sources):
            raise ValueError("sources: every source needs a path")
        if self.sources and not any(source.weight for source in self.sources):
            raise ValueError("sources: at least one weight must be above 0")
        _check_depth(self.depth)
        one_of(self, ("auto", "float32", "float16", "bfloat16"), "depth_precision")
        one_of(self, ("tracked", "simulator"), "flow_source")
        one_of(self, ("window", "r3m"), "image_pair")
        windows_s = [self.flow_window_s, *(source.flow_window_s for source in self.all_sources())]
        shortest_s = min(filter(None, windows_s), default=0.0)
        if not 0 < self.min_window_s <= shortest_s:
            raise ValueError(
                f"min_window_s must be above 0 and at most flow_window_s "
                f"({shortest_s}), not {self.min_window_s}"
            )
        at_least(self, 1, "draws_per_clip", "max_segments", "clips_per_shard")
        at_least(self, 0, "segment_s")
        usual = type(self).__dataclass_fields__["max_segments"].default
        if not self.segment_s and self.max_segments != usual:
            raise ValueError("max_segments has no effect with segment_s 0, which divides no clip")
        one_of(self, ("uniform", "motion"), "grid")
        within(self, 0, 1, "grid_focus", "heldout_share", ends="[)")
        at_least(self, 16, "image_px")
        within(self, 1, 100, "jpeg_quality")
        share(self, "max_rejected_share")
        above(self, 0, "part_mb")
        at_least(self, 0, "example_images")

    def all_sources(self) -> tuple[SourceConfig, ...]:
        """The sources of the set, one or several."""
        return self.sources or (self.source,)

    def depth_models(self) -> set[str]:
        """The depth models that some source asks for, such as ``model:NAME``."""
        wanted = {source.depth or self.depth for source in self.all_sources()}
        return wanted.difference(WITHOUT_MODEL)

    def captioners(self) -> set[str]:
        """The captioners that some source asks for, such as ``model:NAME``."""
        return {source.captioner_name() for source in self.all_sources() if source.captioner}


def _check_depth(depth: str) -> None:
    if depth not in WITHOUT_MODEL:
        try:
            check_name(DEPTH_MODELS, "depth", depth, with_argument=("model",))
        except ValueError as error:
            raise ValueError(f"{error}, or {' or '.join(WITHOUT_MODEL)}") from None
