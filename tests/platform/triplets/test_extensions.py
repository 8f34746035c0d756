"""A source, a tracker, a depth model and a captioner from outside the tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from triplet_recordings import moving_square, settings, write_video

from dynaflip.errors import UserError
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.triplets import flow, models, pipeline, sources
from dynaflip.platform.triplets.clips import Source
from dynaflip.platform.triplets.config import FilterConfig, PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.flow.config import TrackConfig
from dynaflip.platform.triplets.models.loading import check_models, digests_of_models
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.sources.formats import open_source
from dynaflip.platform.triplets.stage_graph import ModelShards
from dynaflip.platform.triplets.work_folder import WorkFolder
from dynaflip.plugins import extension_points

ROOT = Path(__file__).resolve().parents[3]
OUTSIDE = '''
from pathlib import Path

import numpy as np

from dynaflip.platform.triplets.clips import Clip, content_hash


class Arrays:
    """Recordings as NumPy arrays: NAME.npy is (N, H, W, 3) at 30 frames a second."""

    format = "arrays"
    looks_for = "*.npy"

    def __init__(self, config):
        self.root, self.name = Path(config.path), config.name or "arrays"

    @classmethod
    def detect(cls, root, names):
        return any(name.endswith(".npy") for name in names)

    def list_clips(self):
        return [
            Clip(
                clip_id=content_hash(path.name),
                recording_id=content_hash("recording", path.name),
                source=self.name,
                path=path.name,
                camera="main",
                captions=(path.stem,),
                caption_group=path.stem,
                task=path.stem,
                embodiment="robot",
                licence="CC0",
            )
            for path in sorted(self.root.glob("*.npy"))
        ]

    def open(self, clip):
        return Recorded(np.load(self.root / clip.path), clip)


class Recorded:
    def __init__(self, frames, clip):
        self.frames, self.clip = frames, clip

    def times_s(self):
        return np.arange(len(self.frames)) / 30

    def read_frames(self, indices, short_side_px):
        return self.frames[indices]

    def read_depth_m(self, indices):
        return None

    def cameras(self, indices):
        return None

    def simulator_state(self, indices):
        return None

    def caption_at(self, index, draw):
        return self.clip.captions[0]


class Right:
    """Everything goes right by a pixel a frame."""

    def __call__(self, frames, points_px):
        steps = np.arange(len(frames), dtype=np.float32)[:, None, None] * [1, 0]
        return points_px + steps, np.ones((len(frames), len(points_px)), bool)


class Nearer:
    """The camera goes ahead by a tenth of the distance, and a bit of the scene goes aside."""

    dimensions = 3
    scale = "metric"

    def __call__(self, window):
        from dynaflip.platform.triplets.flow.tracker_3d import WindowTracks3D

        count, height, width = window.frames.shape[:3]
        x, y = ((window.points_px - [width / 2, height / 2]) / width).T
        share = np.linspace(0, 1, count)[:, None, None]
        aside = np.where(x > 0.25, 0.2, 0.0)[:, None] * [1, 0, 0]
        ahead = np.array([0, 0, 0.2])
        points = 2 * np.stack([x, y, np.ones_like(x)], -1) + share * (aside - ahead)
        intrinsics = np.tile([width, width, width / 2, height / 2], (count, 1))
        return WindowTracks3D(points, np.ones((count, len(x)), bool), None, intrinsics)


class Ramp:
    """Further at the top."""

    scale = "metric"

    def __call__(self, frames):
        rows = np.linspace(2, 1, frames.shape[1], dtype=np.float32)[:, None]
        return np.broadcast_to(rows, frames.shape[:3]).copy()


class Sizes:
    """Says how large the image is."""

    def describe(self, image, prompt):
        return f"{prompt} {image.shape[1]} by {image.shape[0]}"
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with another's module, and an installed package that declares it."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "arrays_of_others.py").write_text(OUTSIDE)
    about = folder / "arrays_of_others-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: arrays-of-others\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[dynaflip.source]\narrays = arrays_of_others:Arrays\n"
        "[dynaflip.tracker]\nright = arrays_of_others:Right\n"
        "[dynaflip.tracker_3d]\nnearer = arrays_of_others:Nearer\n"
        "[dynaflip.depth_model]\nramp = arrays_of_others:Ramp\n"
        "[dynaflip.captioner]\nsizes = arrays_of_others:Sizes\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for point in extension_points().values():
        for name in [n for n in point._loaded if n not in point.table]:
            del point._loaded[name]
    sys.modules.pop("arrays_of_others", None)


def arrays(folder: Path, count: int = 2) -> Path:
    """A folder of the outsider's format, which holds a video too."""
    folder.mkdir()
    for n in range(count):
        np.save(folder / f"push{n}.npy", moving_square(40, step_px=0.8 + 0.1 * n))
    write_video(folder / "beside.mp4", moving_square(8))
    return folder


@pytest.fixture
def with_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are made by the models' actor, one after the other, without Ray."""

    def run(
        shards: dict,
        config: PreprocessConfig,
        work: WorkFolder,
        source: Source,
        models: dict[str, str],
        *_: object,
    ) -> Iterator[dict]:
        make = ModelShards(config, str(work.path), source, models)
        for name, clips in shards.items():
            row = {"name": name, "clips": [clip.to_json() for clip in clips]}
            yield from json.loads(make(row)["summaries"])

    monkeypatch.setattr(pipeline, "run_stages", run)


def rows_of(folder: Path, *columns: str) -> list[dict]:
    return pq.read_table(folder / "triplets", columns=list(columns)).to_pylist()


@pytest.mark.parametrize("given", ["", "arrays", "class:arrays_of_others:Arrays"])
def test_a_source_is_detected_or_named(outside: Path, tmp_path: Path, given: str) -> None:
    source = open_source(SourceConfig(path=str(arrays(tmp_path / "data")), format=given))
    assert source.format == "arrays"
    assert [clip.captions for clip in source.list_clips()] == [("push0",), ("push1",)]


def test_a_class_of_another_kind_is_refused(outside: Path, tmp_path: Path) -> None:
    sizes = "class:arrays_of_others:Sizes"
    with pytest.raises(UserError, match=r"depth: .*Sizes is no depth model: .* no method __call__"):
        check_models(settings(tmp_path, depth=sizes))
    with pytest.raises(UserError, match=r"track\.tracker: .*Sizes is no tracker: .* __call__"):
        check_models(settings(tmp_path, track=TrackConfig(tracker=sizes)))
    with pytest.raises(UserError, match="str is no source: it has no name and no list_clips and"):
        open_source(SourceConfig(path=str(tmp_path), format="class:builtins:str"))


def test_errors_list_every_format(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("nothing to see")
    with pytest.raises(UserError, match=r"meta/info\.json, \*\.tfrecord, .*, \*\.npy, video files"):
        open_source(SourceConfig(path=str(tmp_path / "data")))
    with pytest.raises(UserError, match=r"source\.format: there is no source 'array'; did"):
        load_config(PreprocessConfig, None, {"source.format": "array"})
    with pytest.raises(UserError, match="read as arrays, which brings its own captions"):
        open_source(SourceConfig(path=str(arrays(tmp_path / "more")), captions="captions.csv"))


@pytest.mark.parametrize("given", ["right", "class:arrays_of_others:Right"])
def test_a_tracker_and_its_name_in_the_triplets(
    outside: Path, video_folder: Callable[..., Path], tmp_path: Path, with_models: None, given: str
) -> None:
    config = settings(
        video_folder(1), track=TrackConfig(tracker=given), filter=FilterConfig(min_moving_share=0)
    )
    check_models(config)
    made = preprocess(config, str(tmp_path / "out"))
    assert made.counts["kept"] == 1, made.counts
    assert {row["flow_source"] for row in rows_of(made.folder, "flow_source")} == {given}
    before = digests_of_models(config)
    code = outside / "arrays_of_others.py"
    code.write_text(code.read_text() + "\n# another version\n")
    assert list(before) == [given]
    assert digests_of_models(config) != before, "other code makes other triplets"


@pytest.mark.parametrize("given", ["nearer", "class:arrays_of_others:Nearer"])
def test_a_3d_tracker_and_its_name_in_the_triplets(
    outside: Path, video_folder: Callable[..., Path], tmp_path: Path, with_models: None, given: str
) -> None:
    source = SourceConfig(path=str(video_folder(1)))
    config = PreprocessConfig(source=source, track=TrackConfig(tracker=given), draws_per_clip=1)
    check_models(config)
    assert list(digests_of_models(config)) == [given]
    made = preprocess(config, str(tmp_path / "out"))
    assert made.counts["kept"] == 1, pq.read_table(made.folder / "rejected.parquet").to_pylist()
    rows = rows_of(made.folder, "flow_source", "depth_kind", "camera_motion")
    assert {tuple(row.values()) for row in rows} == {(given, "tracker", "fit")}


@pytest.mark.parametrize("given", ["ramp", "class:arrays_of_others:Ramp"])
def test_a_depth_model_and_its_name_in_the_triplets(
    outside: Path, video_folder: Callable[..., Path], tmp_path: Path, with_models: None, given: str
) -> None:
    keep = FilterConfig(min_moving_share=0, min_visible_share=0)
    made = preprocess(settings(video_folder(1), depth=given, filter=keep), str(tmp_path / "out"))
    rows = rows_of(made.folder, "depth_kind", "depth_scale", "median_depth_m")
    assert {(row["depth_kind"], row["depth_scale"]) for row in rows} == {(given, "metric")}
    assert rows[0]["median_depth_m"] == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize("given", ["sizes", "class:arrays_of_others:Sizes"])
def test_a_captioner_and_its_name_in_the_triplets(
    outside: Path, video_folder: Callable[..., Path], tmp_path: Path, with_models: None, given: str
) -> None:
    folder = video_folder(1)
    (folder / "captions.csv").unlink()
    source = SourceConfig(path=str(folder), captioner=given, captioner_prompt="It is")
    config = PreprocessConfig(source=source, depth="plane", draws_per_clip=1)
    made = preprocess(config, str(tmp_path / "out"))
    captions = {
        (r["caption"], r["caption_kind"]) for r in rows_of(made.folder, "caption", "caption_kind")
    }
    assert captions == {("It is 480 by 120", given)}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("track.tracker", "known: lk, dis, torchscript"),
        ("depth", "known: model, or class:MODULE:NAME, or auto or plane"),
    ],
)
def test_unknown_names_list_what_there_is(setting: str, words: str) -> None:
    with pytest.raises(UserError, match=f"{setting}: there is no .* 'unheard-of'.*{words}"):
        load_config(PreprocessConfig, None, {setting: "unheard-of"})
    with pytest.raises(UserError, match=r"track\.tracker: torchscript needs an argument"):
        load_config(PreprocessConfig, None, {"track.tracker": "torchscript:"})
    with pytest.raises(UserError, match=r"track\.tracker: lk takes no argument"):
        load_config(PreprocessConfig, None, {"track.tracker": "lk:3"})


def test_names_from_files_resolve_to_built_in_and_installed_ones_only(outside: Path) -> None:
    for point in (sources.SOURCES, flow.TRACKERS, models.DEPTH_MODELS, models.CAPTIONERS):
        with pytest.raises(UserError, match="was read from a file"):
            point.resolve("class:arrays_of_others:Arrays", trusted=False)
    assert sources.SOURCES.resolve("arrays", trusted=False).format == "arrays"


@pytest.mark.ray
@pytest.mark.integration
def test_a_source_from_outside_through_the_whole_job(outside: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "DYNAFLIP_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(outside), *os.environ.get("PYTHONPATH", "").split(":")]),
    }
    words = ["--source", str(arrays(tmp_path / "data")), "--output", str(tmp_path / "out")]
    words += ["--source.format", "class:arrays_of_others:Arrays", "--depth", "plane"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "preprocess.py"), *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert {row["caption"] for row in rows_of(tmp_path / "out", "caption")} == {"push0", "push1"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sources"]["arrays"]["format"] == "arrays"
