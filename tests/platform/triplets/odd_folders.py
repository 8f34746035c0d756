"""Odd kinds of videos in a folder, and of the captions beside them; see test_damage.py's table."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from odd_lerobot import LFS
from triplet_recordings import moving_square

CAPTION = "push the square"
# Makes a file of a folder; the name, or the whole line of captions.csv that names it.
Make = Callable[[Path, int], str]

# Ending → container and codec, as cameras and older data sets have them.
CONTAINERS = {
    ".MTS": ("mpegts", "libx264", "yuv420p"),
    ".m2ts": ("mpegts", "libx264", "yuv420p"),
    ".ts": ("mpegts", "libx264", "yuv420p"),
    ".wmv": ("asf", "wmv2", "yuv420p"),
    ".asf": ("asf", "msmpeg4v3", "yuv420p"),
    ".flv": ("flv", "flv1", "yuv420p"),
    ".3gp": ("3gp", "mpeg4", "yuv420p"),
    ".vob": ("vob", "mpeg2video", "yuv420p"),
    ".mpg": ("mpeg", "mpeg1video", "yuv420p"),
    ".qt": ("mov", "mjpeg", "yuvj420p"),  # an ending that is read because a caption names it
}


def write_container(
    path: Path, frames: np.ndarray, container: str, codec: str, pixels: str
) -> Path:
    """Write frames to a container at 30 a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.bit_rate = 4_000_000
        if codec.startswith(("mpeg", "wmv", "flv", "msmpeg")):
            stream.codec_context.gop_size = 12
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path


def write_cover_first(path: Path, frames: np.ndarray, flagged: bool = True) -> Path:
    """A film behind a cover image, which is the first stream."""
    film = io.BytesIO()
    with av.open(film, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    film.seek(0)
    with av.open(film) as source, av.open(str(path), "w", format="matroska") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        if flagged:
            cover.disposition = av.stream.Disposition.attached_pic
        shown = out.add_stream_from_template(source.streams.video[0])
        white = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 250, np.uint8), format="rgb24")
        for packet in [*cover.encode(white.reformat(format="yuvj420p")), *cover.encode()]:
            out.mux(packet)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = shown
                out.mux(packet)
    return path


def _frames(number: int) -> np.ndarray:
    return moving_square(40, step_px=0.7 + 0.021 * number)


def _video(folder: Path, name: str, number: int) -> None:
    write_container(folder / name, _frames(number), "mp4", "libx264", "yuv420p")


def contained(ending: str) -> Make:
    """A good video in another container."""

    def make(folder: Path, number: int) -> str:
        write_container(folder / f"in{number}{ending}", _frames(number), *CONTAINERS[ending])
        return f"in{number}{ending}"

    return make


def holding(name: str, data: bytes) -> Make:
    """A file of these bytes under a video's name."""

    def make(folder: Path, number: int) -> str:
        (folder / name).write_bytes(data)
        return name

    return make


def spelt(on_disk: str, in_table: str) -> Make:
    """A good video whose caption spells its name otherwise."""

    def make(folder: Path, number: int) -> str:
        _video(folder, on_disk.format(number), number)
        return f'"{in_table.format(number, folder=folder)}",{CAPTION}'

    return make


def covered(flagged: bool) -> Make:
    """A cover image before the film."""

    def make(folder: Path, number: int) -> str:
        write_cover_first(folder / f"cover{number}.mkv", _frames(number), flagged)
        return f"cover{number}.mkv"

    return make


def lasting(start: str, end: str) -> Make:
    """A good video of 1.3 s whose caption is of this part."""

    def make(folder: Path, number: int) -> str:
        _video(folder, f"part{number}.mp4", number)
        return f"part{number}.mp4,{CAPTION},,{start},{end}"

    return make


def saying(caption: str) -> Make:
    """A good video with an odd caption."""

    def make(folder: Path, number: int) -> str:
        _video(folder, f"says{number}.mp4", number)
        return f"says{number}.mp4,{caption}"

    return make


def with_depth(values: np.ndarray) -> Make:
    """A good video with this depth in every pixel."""

    def make(folder: Path, number: int) -> str:
        _video(folder, f"deep{number}.mp4", number)
        np.save(folder / f"deep{number}.npy", np.broadcast_to(values, (40, 120, 160)))
        return f"deep{number}.mp4,{CAPTION},deep{number}.npy"

    return make


def _folder_of_images(folder: Path, number: int) -> str:
    (folder / "images").mkdir()
    for k in range(6):
        (folder / "images" / f"{k}.jpg").write_bytes(b"\xff\xd8\xff")
    return f"images,{CAPTION}"


DECOMPOSED = unicodedata.normalize("NFD", "tür{}.mp4")

# Kind → how it is made. All of them end in the triplets or with a reason.
KINDS: dict[str, Make] = {
    **{f"container {ending}": contained(ending) for ending in CONTAINERS},
    "a cover before the film": covered(True),
    "an image before the film": covered(False),
    "a Git LFS pointer": holding("lfs.mp4", LFS.encode()),
    "a git-annex pointer": holding("annex.mp4", b"/annex/objects/SHA256E-s1--0.mp4\n"),
    "a page of a login": holding("login.mp4", b"<!DOCTYPE html>" + b"<p>sign in" * 500),
    "a store's error": holding("denied.mp4", b"<?xml version='1.0'?><Error>AccessDenied</Error>"),
    "gzip": holding("packed.mp4", b"\x1f\x8b\x08" + bytes(50)),
    "zip": holding("packed.mov", b"PK\x03\x04" + bytes(50)),
    "tar": holding("packed.mkv", b"x" * 257 + b"ustar" + bytes(300)),
    "JSON": holding("error.webm", b'{"error": "quota"}'),
    "TypeScript": holding("module.ts", b"export const x = 1\n"),
    "é taken apart": spelt(DECOMPOSED, "tür{}.mp4"),
    "é in one": spelt("tür{}b.mp4", unicodedata.normalize("NFD", "tür{}b.mp4")),
    "Windows' strokes": spelt("sub/win{}.mp4", "sub\\win{}.mp4"),
    "a point before": spelt("dot{}.mp4", "./dot{}.mp4"),
    "a whole path": spelt("whole{}.mp4", "{folder}/whole{}.mp4"),
    "another case": spelt("Case{}.MP4", "case{}.mp4"),
    "no ending": spelt("short{}.mp4", "short{}"),
    "a folder of images": _folder_of_images,
    "a part beyond the end": lasting("0.2", "60"),
    "a part after the end": lasting("50", "60"),
    "a part in minutes": lasting("0:10", "0:20"),
    "a part that ends first": lasting("1.0", "0.5"),
    "a part of NaN": lasting("nan", "1"),
    "a part that begins before": lasting("-1", "1"),
    "a part rounded up": lasting("0", "2"),
    "a caption of dots": saying("..."),
    "a caption of a face": saying("🙂"),
    "a caption in Chinese": saying("把杯子放到盘子上"),
    "a caption with a comma": saying("push, then pull"),
    "depth of 8 bits": with_depth(np.uint8(200)),
    "depth in millimetres as floats": with_depth(np.float32(2000)),
    "depth in metres as integers": with_depth(np.uint16(2)),
    "depth of infinity": with_depth(np.float32(np.inf)),
    "depth of a pointer": lambda folder, number: _pointer_depth(folder, number),
    "depth of a very long name": lambda folder, number: _depth_named(folder, number, "a" * 300),
}


def _pointer_depth(folder: Path, number: int) -> str:
    _video(folder, f"deep{number}.mp4", number)
    (folder / f"deep{number}.npy").write_text(LFS)
    return f"deep{number}.mp4,{CAPTION},deep{number}.npy"


def _depth_named(folder: Path, number: int, name: str) -> str:
    _video(folder, f"deep{number}.mp4", number)
    return f"deep{number}.mp4,{CAPTION},{name}.npy"


# Kind → what its reason says where depth is read ("" where it is kept or filtered).
REASONS = {
    "a Git LFS pointer": "Git LFS pointer",
    "a git-annex pointer": "git-annex pointer",
    "a page of a login": "a web page",
    "a store's error": "XML",
    "gzip": "gzip",
    "zip": "ZIP archive",
    "tar": "tar archive",
    "JSON": "a server's error message",
    "TypeScript": "not a readable video",
    "another case": "is Case.*MP4 meant",
    "no ending": r"is short.*\.mp4 meant",
    "a folder of images": "a folder and no video",
    "a part beyond the end": "segment ends at 60 s, but the last frame is shown at 1.30 s",
    "a part after the end": "no frame in its time (50 to 60 s)",
    "a part in minutes": "start_s is not a time in seconds|end_s is not a time in seconds",
    "a part that ends first": "before its start",
    "a part of NaN": "start_s is not a time in seconds",
    "a part that begins before": "start_s is not a time in seconds",
    "a caption of dots": "holds no word",
    "a caption of a face": "holds no word",
    "a caption with a comma": "does a caption hold a comma",
}
READ = [
    *(f"container {ending}" for ending in CONTAINERS),
    *("a cover before the film", "an image before the film", "é taken apart", "é in one"),
    *("Windows' strokes", "a point before", "a whole path", "a part rounded up"),
    "a caption in Chinese",
]
DEPTH_REASONS = {
    "depth of 8 bits": "8 bits end at 255 mm",
    "depth in millimetres as floats": "the median of the recorded depth is 2000 m",
    "depth in metres as integers": "the median of the recorded depth is 0.002 m",
    "depth of infinity": "hold no depth",
    "depth of a pointer": "Git LFS pointer",
    "depth of a very long name": r"cannot read a+\.npy as \.npy",
}
