"""RLDS records of less usual make: one frame a step, or a reason that says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from odd_lerobot import number
from odd_rlds import (
    FILES,
    IMAGE,
    KINDS,
    STEPS,
    example,
    features_json,
    phrased,
    records,
    sound,
    stacked,
    write,
)

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.sources.formats import Mix, open_sources


def mix_of(root: Path, **values) -> Mix:
    return open_sources(PreprocessConfig(source=SourceConfig(path=str(root), fps=5, **values)))


def read(mix: Mix) -> list[str]:
    """Read the only clip to its end; its caption at each step."""
    (clip,) = list(mix.list_clips())
    recording = mix.open(clip)
    np.testing.assert_allclose(recording.times_s(), np.arange(STEPS) / 5)
    frames = recording.read_frames([0, 5, STEPS - 1], 32)
    assert [number(frame) for frame in frames] == [0, 5, STEPS - 1]
    assert clip.camera == "image"
    return [recording.caption_at(step, step) for step in range(STEPS)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_read_or_rejected_with_its_reason(kind: str, tmp_path: Path) -> None:
    make, said = KINDS[kind]
    mix = mix_of(write(tmp_path, records(example(make()))))
    if said:
        with pytest.raises(ClipRejected, match=said):
            read(mix)
    else:
        assert "open it" in read(mix)


def test_each_step_has_its_own_ragged_phrasings(tmp_path: Path) -> None:
    captions = read(mix_of(write(tmp_path, records(example(phrased([1, 2, 3] * 4))))))
    assert captions[0] == "open it"
    assert [caption.split()[-1] for caption in captions[1:]] == list(map(str, range(1, STEPS)))


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_holds_no_records_says_what_it_is(kind: str, tmp_path: Path) -> None:
    make, said = FILES[kind]
    mix = mix_of(write(tmp_path, make(records(example(sound())))))
    with pytest.raises(ClipRejected, match=said):
        read(mix)


@pytest.mark.parametrize("ragged", [False, True])
def test_features_json_and_the_records_are_read_together(tmp_path: Path, ragged: bool) -> None:
    root = write(tmp_path, records(example(stacked((2, 1, 0), ragged=ragged))))
    (root / "features.json").write_text(features_json(-1 if ragged else 3))
    assert set(read(mix_of(root))) == {"open it"}


def test_what_lies_beside_records_is_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "bridge-train.tfrecord-00000-of-00003"
    root = write(tmp_path, records(example(sound())), name)
    for ending in (".idx", ".index", ".md5", ".json", ".part"):
        (root / f"{name}{ending}").write_text("0 1234\n")
    read(mix_of(root))
    out = capsys.readouterr().out
    assert "1 of 3 shards of bridge-train.tfrecord are there" in out
    assert f"{name}.part is an unfinished download" in out


def test_a_folder_of_indexes_alone_is_refused(tmp_path: Path) -> None:
    write(tmp_path, b"0 1\n", "bridge-train.tfrecord-00000-of-00001.idx")
    with pytest.raises(UserError, match=r"looked for .*\*\.tfrecord.*found 1 \.idx"):
        mix_of(tmp_path)


def test_a_broken_features_json_is_one_line(tmp_path: Path) -> None:
    root = write(tmp_path, records(example(sound())))
    for text, said in (
        ("{", "cannot be read as JSON"),
        ("[]", "not a JSON object"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ):
        (root / "features.json").write_text(text)
        with pytest.raises(UserError, match=said):
            list(mix_of(root).list_clips())


def test_deep_images_of_features_json_are_no_camera(tmp_path: Path) -> None:
    root = write(tmp_path, records(example(sound())))
    (root / "features.json").write_text(features_json().replace("uint8", "uint16"))
    (clip,) = list(mix_of(root).list_clips())
    assert clip.camera == "image"  # nothing is left of features.json: the first bytes decide
    assert IMAGE in clip.extra
