"""`preprocess inspect` on a folder that the pipeline made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_triplets import write_triplets

from dynaflip.errors import UserError
from dynaflip.jobs.preprocess import main
from dynaflip.platform.training.data.gallery import read_clips
from dynaflip.platform.training.data.index import read_index
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.merge import merge_folders
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.report.data_card import write_card
from dynaflip.platform.triplets.report.inspection import inspect_folder, inspection_lines
from dynaflip.platform.triplets.schema import REJECTED_SCHEMA, TRAINING_COLUMNS


@pytest.mark.ray
def test_a_folder_is_counted_and_its_card_stands_alone(
    video_folder: Callable[..., Path], tmp_path: Path, ray_cluster: None, home: Path, capsys
) -> None:
    videos = video_folder(4)
    (videos / "broken.mp4").write_bytes(b"nothing")
    captions = videos / "captions.csv"
    captions.write_text(captions.read_text().rstrip() + "\nbroken.mp4,nothing is here\n")
    config = PreprocessConfig(
        source=SourceConfig(path=str(videos)), depth="plane", draws_per_clip=1, grid="motion"
    )
    outcome = preprocess(config, str(tmp_path / "out"))
    assert main(["inspect", str(tmp_path / "out"), "--examples", "3"]) == 0
    printed = capsys.readouterr().out
    assert f"clips read 5, kept {outcome.counts['kept']}, rejected 1" in printed
    found = inspect_folder(str(tmp_path / "out"))
    assert found.counts()["triplets"].sum() == outcome.counts["triplets"]
    assert found.ways()["focal_kind"].to_list() == ["assumed"]
    assert outcome.counts["assumed_focal"] == outcome.counts["triplets"]
    assert found.ways()["grid"].to_list() == ["motion"]
    assert found.reasons()["clips"].sum() == 1
    trusted = (found.rows["visible_share"] * 400).round().sum()
    assert int(found.motion.sum()) == int(trusted)
    card = (tmp_path / "out" / "data_card.html").read_text()
    assert card.count("<img ") == 3 * 3  # two frames and the trails of each: there is no depth
    assert not re.search(r"(src|href)=['\"](?!data:)", card)

    from dynaflip.platform.tracking.store import client

    store = client()
    experiment = store.get_experiment_by_name("triplets")
    assert experiment is not None
    (run,) = store.search_runs([experiment.experiment_id])
    (logged,) = run.inputs.dataset_inputs
    assert logged.dataset.digest == outcome.digest[:32]
    assert "data_card.html" in [item.path for item in store.list_artifacts(run.info.run_id)]


# Columns that came after the first version 2 of the schema.
LATER = ["focal_kind", "flow_measured", "clip_thumbnails"]


def test_brackets_in_a_path_and_an_older_folder_are_read(tmp_path: Path) -> None:
    folder = write_triplets(tmp_path / "set [1]")
    rejected = pa.Table.from_pylist([], schema=REJECTED_SCHEMA)
    pq.write_table(rejected, folder / "rejected.parquet")
    found = inspect_folder(str(folder))
    assert found.ways()["focal_kind"].to_list() == ["recorded"]
    for path in (folder / "triplets").iterdir():
        older_rows = pq.read_table(path).drop_columns(LATER)
        pq.write_table(older_rows, path, row_group_size=4)  # a clip
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = {"read": 12, "kept": 12, "rejected": 0, "triplets": 48, "sources": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"counts": counts}))
    older = inspect_folder(str(folder))
    assert older.ways()["focal_kind"].to_list() == ["unknown"]
    assert older.rows.drop("focal_kind").equals(found.rows.drop("focal_kind"))
    assert older.copies is None, "nothing is known of copies, and nothing is said"
    assert inspection_lines(older)
    assert write_card(older, 3).stat().st_size > 0
    index = read_index(str(folder))  # as training reads it
    (clips,) = read_clips(index.train, np.arange(1))
    assert set(clips.column_names) == set(TRAINING_COLUMNS) - set(LATER)
    with pytest.raises(UserError, match=r"made by earlier code.* jobs/preprocess.py again"):
        merge_folders([str(folder), str(write_triplets(tmp_path / "other"))], str(tmp_path / "c"))


def test_captions_that_differ_in_case_alone_are_duplicates(tmp_path: Path) -> None:
    from dynaflip.platform.triplets.report.inspection import Inspection

    rows = pl.DataFrame(
        {
            "clip_id": ["a", "a", "b", "c"],
            "caption": ["Open it.", "Open it.", "open it", "close the lid"],
            "caption_group": ["open it", "open it", "open it", "close the lid"],
        }
    )
    said = Inspection(tmp_path, {}, rows, pl.DataFrame(), np.zeros(1)).captions()
    assert (said["distinct"], said["distinct_normalised"], said["groups"]) == (3, 2, 2)
    assert said["duplicates"] == pytest.approx(2 / 3)
    assert said["words_mean"] == pytest.approx((2 + 2 + 3) / 3)
