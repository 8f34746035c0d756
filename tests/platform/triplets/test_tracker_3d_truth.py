"""A 3D tracker that knows the simulator's truth gives the simulator's flow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkout import REPOSITORY
from simulated_tracker import Simulated

from dynaflip.platform.triplets.build import clip_table
from dynaflip.platform.triplets.config import FilterConfig, PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.flow.config import TrackConfig

TRACKER = "class:simulated_tracker:TrueTracker"
KEEP = FilterConfig(min_moving_share=0)
EXACT = PreprocessConfig(
    depth="plane", flow_source="simulator", draws_per_clip=1, image_px=64, filter=KEEP
)
TRACKED = PreprocessConfig(
    track=TrackConfig(tracker=TRACKER), draws_per_clip=1, image_px=64, filter=KEEP
)


def exact_table() -> pa.Table:
    source = Simulated(SourceConfig())
    return clip_table(source.list_clips()[0], source.open(source.list_clips()[0]), EXACT)


def assert_same_flow(tracked: pa.Table, exact: pa.Table) -> None:
    """The same windows with the same flow, to a hundredth of a millimetre and of a pixel."""
    assert tracked["triplet_id"].to_pylist() == exact["triplet_id"].to_pylist()
    arrays = {
        name: [table[name].combine_chunks().to_numpy_ndarray() for table in (tracked, exact)]
        for name in ("flow_visible", "flow_origin_m", "flow_displacement_m", "tracks_px")
    }
    seen = arrays["flow_visible"][1].astype(bool)
    np.testing.assert_array_equal(*arrays["flow_visible"])
    assert seen.mean() > 0.5
    moved_m, exact_m = arrays["flow_displacement_m"]
    assert np.linalg.norm(exact_m[seen], axis=-1).max() > 0.005, "something moves"
    np.testing.assert_allclose(moved_m[seen], exact_m[seen], atol=1e-5)
    np.testing.assert_allclose(*arrays["flow_origin_m"], atol=1e-5)
    tracked_px, exact_px = arrays["tracks_px"]
    np.testing.assert_allclose(tracked_px[seen], exact_px[seen], atol=0.01)


@pytest.mark.sim
def test_true_tracks_give_the_simulators_flow() -> None:
    source = Simulated(SourceConfig())
    clip = source.list_clips()[0]
    table = clip_table(clip, source.open(clip), TRACKED)
    assert_same_flow(table, exact_table())
    assert set(table["camera_motion"].to_pylist()) == {"pose"}
    assert set(table["depth_scale"].to_pylist()) == {"metric"}
    assert set(table["focal_kind"].to_pylist()) == {"estimated"}


def job(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``jobs/preprocess.py`` on the simulated source, beside this folder's modules."""
    paths = [Path(__file__).parent, REPOSITORY / "tests", REPOSITORY]
    environment = {
        **os.environ,
        "DYNAFLIP_HOME": str(folder / "home"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    (folder / "data").mkdir()
    given = ["--source", str(folder / "data"), "--output", str(folder / "out")]
    given += ["--source.format", "class:simulated_tracker:Simulated", "--draws_per_clip", "1"]
    given += ["--image_px", "64", "--filter.min_moving_share", "0"]
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / "preprocess.py"), *given, *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.integration
def test_a_3d_tracker_through_the_whole_job(tmp_path: Path) -> None:
    done = job(tmp_path, "--track.tracker", TRACKER)
    assert done.returncode == 0, done.stdout + done.stderr
    made = pq.read_table(tmp_path / "out" / "triplets")
    exact = exact_table()
    ids = made["triplet_id"].to_pylist()
    order = [ids.index(name) for name in exact["triplet_id"].to_pylist()]
    assert_same_flow(made.take(order), exact)
    assert set(made["flow_source"].to_pylist()) == {TRACKER}


@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.integration
def test_a_wrong_adapter_ends_the_job_early(tmp_path: Path) -> None:
    name = "class:simulated_tracker:InMillimetres"
    done = job(tmp_path, "--track.tracker", name, "--source.max_clips", "20")
    assert done.returncode == 2, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert f"the first 8 clips were all rejected because of {name}" in said[0]
    assert "in metres, but their median depth is" in said[0]
    assert "Traceback" not in done.stderr
    assert "submit failed" not in done.stderr, "Ray's work is stopped before the end"
    assert not (tmp_path / "out").exists()
