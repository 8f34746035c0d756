"""Triplets whose images are smaller than the network's."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from dynaflip.errors import UserError
from dynaflip.platform.cli import config_parser, parse_config
from dynaflip.platform.config_loader import to_dict
from dynaflip.platform.training.data.image_size import check_image_size
from dynaflip.platform.training.data.index import TripletIndex, read_index
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from tests.synthetic_triplets import write_triplets


def index_of(folder: Path, config: PreprocessConfig, **counts: Any) -> TripletIndex:
    write_triplets(folder, clips=4)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | {"settings": to_dict(config), "counts": counts}
    path.write_text(json.dumps(manifest))
    return read_index(str(folder))


def test_images_stored_too_small_are_refused_with_the_command_that_repairs_it(
    tmp_path: Path,
) -> None:
    source = SourceConfig(path="/my videos", cameras=("top", "wrist"), fps=10.0)
    made = PreprocessConfig(source=source, depth="plane", align_depth=False)
    index = index_of(tmp_path / "set", made)
    assert check_image_size(index, 160) == []
    with pytest.raises(UserError, match=r"model\.image\.image_px: 224, but .* 160 pixels") as error:
        check_image_size(index, 224)
    command = next(line for line in str(error.value).splitlines() if "preprocess.py" in line)
    python, job, *words = shlex.split(command)
    assert (python, job) == ("python", "jobs/preprocess.py")
    parser = config_parser("", PreprocessConfig)
    parser.add_argument("--source")
    parser.add_argument("--output")
    args, again = parse_config(parser, PreprocessConfig, words, {"source": "source.path"})
    assert args.output == index.folder
    assert to_dict(again) == {**to_dict(made), "image_px": 224}


def test_recordings_smaller_than_asked_are_named(tmp_path: Path) -> None:
    sides_px = {"ego": {"96": 1, "210": 1, "224": 2}, "sim": {"224": 9}}
    made = PreprocessConfig(source=SourceConfig(path="v"), image_px=224)
    index = index_of(tmp_path / "set", made, short_sides_px=sides_px)
    (line,) = check_image_size(index, 224)
    assert line.startswith("source ego: 50% of the recordings are smaller than the 224 pixels")
    assert "as small as 96" in line
    (line,) = check_image_size(index, 200)
    assert line.startswith("source ego: 25%")
    assert check_image_size(index, 96) == []


def test_a_folder_that_does_not_say_how_it_was_made_is_taken(tmp_path: Path) -> None:
    index = read_index(str(write_triplets(tmp_path / "set", clips=4)))
    assert check_image_size(index, 512) == []
