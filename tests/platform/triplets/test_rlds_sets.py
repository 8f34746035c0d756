"""Several RLDS data sets below one path: each has a rate, a licence and cameras of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import Clip
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources.rlds import RLDSSource
from dynaflip.platform.triplets.sources.rlds_recording import StoredEpisode

LICENCES = {"bridge": "CC BY 4.0", "droid": "Apache-2.0"}


def write_sets(root: Path, record: Path, *names: str) -> Path:
    for name in names:
        folder = root / name / "1.0.0"
        folder.mkdir(parents=True)
        shutil.copyfile(record, folder / "episodes-train.tfrecord-00000-of-00001")
        if name in LICENCES:
            stated = {"redistributionInfo": {"license": LICENCES[name]}}
            (folder / "dataset_info.json").write_text(json.dumps(stated))
    return root


def listed(path: Path, **values) -> list[Clip]:
    return list(RLDSSource(SourceConfig(path=str(path), **values)).list_clips())


@pytest.fixture
def record(shared_clips: Path) -> Path:
    return shared_clips / "bridge_debug.tfrecord"


def test_each_data_set_has_its_own_rate_and_licence(tmp_path: Path, record: Path) -> None:
    root = write_sets(tmp_path / "oxe", record, "bridge", "droid")
    image = {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image"}
    observation = {"featuresDict": {"features": {"image_1": image}}}
    step = {"featuresDict": {"features": {"observation": observation}}}
    steps = {"featuresDict": {"features": {"steps": {"sequence": {"feature": step}}}}}
    (root / "bridge" / "features.json").write_text(json.dumps(steps))  # above its records
    clips = listed(root)
    about = {(c.path.split("/")[0], StoredEpisode.from_json(c.extra).fps, c.licence) for c in clips}
    assert about == {("bridge", 5.0, "CC BY 4.0"), ("droid", 15.0, "Apache-2.0")}
    cameras = {(c.path.split("/")[0], c.camera) for c in clips}
    assert cameras == {("bridge", "image_1"), *(("droid", f"image_{n}") for n in range(3))}
    given = {StoredEpisode.from_json(c.extra).fps for c in listed(root, fps=7.0)}
    assert given == {7.0}


def test_a_set_without_a_known_rate_is_not_given_its_neighbours(
    tmp_path: Path, record: Path
) -> None:
    root = write_sets(tmp_path / "oxe", record, "bridge", "my_lab_20hz")
    with pytest.raises(
        UserError, match=r"source\.fps: .*my_lab_20hz/1\.0\.0/episodes.* as a source"
    ):
        listed(root)


def test_folders_above_the_source_are_ignored(tmp_path: Path, record: Path) -> None:
    path = tmp_path / "viola" / "rec" / "mine.tfrecord"
    path.parent.mkdir(parents=True)
    shutil.copyfile(record, path)
    for source in (path, path.parent):
        with pytest.raises(UserError, match=r"source\.fps"):
            listed(source)
    # The source's own folder does.
    assert StoredEpisode.from_json(listed(tmp_path / "viola")[0].extra).fps == 20.0
