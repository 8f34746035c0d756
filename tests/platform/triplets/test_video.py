"""The video reader: frames by time, whatever the file's structure."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from triplet_recordings import numbered, write_late_video, write_video

from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.sources import video


def levels(frames: np.ndarray) -> np.ndarray:
    return (frames.mean(axis=(1, 2, 3)) - 20) / 4


def test_b_frames_come_in_the_order_of_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "b.mp4", numbered(50))
    timeline = video.read_timeline(path)
    assert len(timeline.pts) == 50
    np.testing.assert_allclose(np.diff(timeline.times_s()), 1 / 30, atol=1e-4)
    indices = [0, 3, 4, 25, 26, 48, 49]
    np.testing.assert_allclose(
        levels(video.read_frames(path, timeline, indices, 96)), indices, atol=0.5
    )


def test_a_seek_gives_the_same_frames_as_decoding_all(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", numbered(58), options={"g": "10"})
    timeline = video.read_timeline(path)
    whole = video.read_frames(path, timeline, list(range(58)), 96)
    for index in (0, 9, 10, 37, 57):
        np.testing.assert_array_equal(
            video.read_frames(path, timeline, [index], 96)[0], whole[index]
        )


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    path = tmp_path / "vfr.mkv"
    ticks = [0, 10, 45, 50, 120, 125, 300]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=100)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for tick, frame in zip(ticks, numbered(len(ticks)), strict=True):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts = tick
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    timeline = video.read_timeline(path)
    np.testing.assert_allclose(timeline.times_s(), np.array(ticks) / 100, atol=2e-3)
    np.testing.assert_allclose(
        levels(video.read_frames(path, timeline, [2, 5], 96)), [2, 5], atol=1
    )


def test_images_are_reduced_but_not_enlarged(tmp_path: Path) -> None:
    path = write_video(tmp_path / "size.mp4", numbered(6, 96, 128))
    timeline = video.read_timeline(path)
    assert video.read_frames(path, timeline, [0], 48).shape == (1, 48, 64, 3)
    assert video.read_frames(path, timeline, [0], 480).shape == (1, 96, 128, 3)


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_rotation_is_undone(tmp_path: Path, degrees: int) -> None:
    plain = np.zeros((6, 96, 128, 3), np.uint8)
    plain[:, :48, :64] = (250, 20, 20)  # red at the top left, as stored
    plain[:, :48, 64:] = (20, 250, 20)
    path = write_video(tmp_path / "plain.mp4", plain)
    turned = tmp_path / "turned.mp4"
    with av.open(str(path)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    shown = video.read_frames(turned, video.read_timeline(turned), [0], 96)[0]
    expected = np.rot90(plain[0], degrees // 90)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 12


def test_a_segment_of_a_file_is_read_by_its_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "many.mp4", numbered(55))
    timeline = video.read_timeline(path, 20 / 30, 35 / 30)
    assert len(timeline.pts) == 15
    frames = video.read_frames(path, timeline, [0, 7, 14], 96)
    np.testing.assert_allclose(levels(frames), [20, 27, 34], atol=0.5)


def encoded(path: Path, codec: str, frames: np.ndarray, **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"g": "12", **options}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mpg", "mpeg1video", {"bf": "2"}),
        ("a.mpg", "mpeg2video", {"bf": "2"}),
        ("a.ts", "mpeg2video", {"bf": "2"}),
        ("a.avi", "libx264", {"bf": "3"}),
        ("a.avi", "mpeg4", {}),
    ],
)
def test_every_frame_is_found_where_seeking_does_not_work(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = encoded(tmp_path / name, codec, numbered(50), **options)
    timeline = video.read_timeline(path)
    assert len(timeline.pts) == 50
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for index in range(50):
        shown = video.read_frames(path, timeline, [index], 96)[0]
        assert np.abs(shown.astype(int) - whole[index]).mean() < 0.5, index
    piece = video.read_timeline(path, 20 / 30, 35 / 30, from_beginning=True)
    shown = video.read_frames(path, piece, [0, len(piece.pts) - 1], 96)
    np.testing.assert_allclose(levels(shown), [20, 34], atol=1.5)


def test_times_from_the_beginning_ignore_the_files_start_time(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    write_late_video(path)
    for timeline in (
        video.read_timeline(path, 20 / 30, 35 / 30, from_beginning=True),
        video.read_timeline(path, 170 / 30, 185 / 30),
    ):
        shown = video.read_frames(path, timeline, [0, 14], 96)
        np.testing.assert_allclose(levels(shown), [20, 34], atol=0.5)


def test_frames_that_an_edit_list_hides_are_not_missed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "edited.mp4", numbered(58), options={"bf": "0"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # after version, flags and count: the duration shown
    shown = int.from_bytes(data[at : at + 4], "big") * 40 // 58
    data[at : at + 4] = shown.to_bytes(4, "big")
    path.write_bytes(data)
    timeline = video.read_timeline(path)
    assert len(timeline.pts) == 40
    np.testing.assert_allclose(
        levels(video.read_frames(path, timeline, [0, 39], 96)), [0, 39], atol=0.5
    )


def damaged(path: Path, kind: str) -> Path:
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "audio only":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=44100)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
            sound.sample_rate = 44100
            container.mux(stream.encode(sound))
            container.mux(stream.encode())
    return path


def moving_noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (30, 96, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["zero bytes", "noise", "audio only"])
def test_files_without_video_are_reported(tmp_path: Path, kind: str) -> None:
    path = damaged(tmp_path / "bad.mp4", kind)
    with pytest.raises(ClipRejected) as caught:
        video.read_timeline(path)
    assert caught.value.stage == "decode"
    assert {"zero bytes": "zero", "audio only": "no video stream"}.get(kind, "not a") in (
        caught.value.reason
    )


@pytest.mark.parametrize("layout", ["index at the end", "index at the beginning", "mkv"])
def test_a_truncated_video_is_rejected(tmp_path: Path, layout: str) -> None:
    path = tmp_path / ("cut.mkv" if layout == "mkv" else "cut.mp4")
    with av.open(
        str(path), "w", options={"movflags": "faststart"} if "beginning" in layout else {}
    ) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for frame in np.repeat(moving_noise(), 3, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ClipRejected) as caught:
        video.read_timeline(path)
    assert caught.value.stage == "decode"
