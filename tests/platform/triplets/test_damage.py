"""Damaged input of every kind: each clip ends in the triplets or is rejected with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import polars as pl
import pytest
from triplet_recordings import moving_square, write_video

from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.pipeline import preprocess

GOOD = moving_square(40)
CAPTION = "push the square"


def coded(path: Path, frames: np.ndarray, codec: str = "libx264", pixels: str = "yuv420p", **kw):
    """Write frames with any codec; ``ticks`` are presentation times in 1/100 s."""
    ticks = kw.pop("ticks", None)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=kw.get("rate", 100 if ticks else 30))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if ticks:
                image.pts = ticks[number]
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def base(folder: Path, name: str = "x.mp4", number: int = 0) -> Path:
    return write_video(folder / name, moving_square(40, step_px=0.6 + 0.02 * number))


def flipped(share: float, count: int, seed: int) -> Callable[[Path, int], str]:
    """Flip bytes from a place of the file on."""

    def damage(folder: Path, number: int) -> str:
        path = base(folder, f"flip{number}.mp4", number)
        data = bytearray(path.read_bytes())
        rng = np.random.default_rng(seed)
        begin = int(share * len(data))
        for at in rng.integers(begin, min(len(data), begin + 4000), count):
            data[at] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        return path.name

    return damage


def cut(share: float) -> Callable[[Path, int], str]:
    def damage(folder: Path, number: int) -> str:
        path = base(folder, f"cut{number}.mp4", number)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return path.name

    return damage


def raw(name: str, data: bytes) -> Callable[[Path, int], str]:
    def damage(folder: Path, number: int) -> str:
        (folder / name).write_bytes(data)
        return name

    return damage


def renamed(name: str) -> Callable[[Path, int], str]:
    """A good file under another container's ending, or under a strange name."""

    def damage(folder: Path, number: int) -> str:
        base(folder, "tmp.mp4", number).rename(folder / name)
        return name

    return damage


def shaped(height: int, width: int, codec: str, pixels: str, frames: int = 30):
    def damage(folder: Path, number: int) -> str:
        rng = np.random.default_rng(number)
        images = rng.integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
        name = f"shape{number}.mkv"
        coded(folder / name, images, codec, pixels)
        return name

    return damage


def timed(ticks: list[int]) -> Callable[[Path, int], str]:
    def damage(folder: Path, number: int) -> str:
        name = f"time{number}.mkv"
        coded(folder / name, moving_square(len(ticks), step_px=1 + number / 100), ticks=ticks)
        return name

    return damage


def box_value(box: bytes, offset: int, value: bytes) -> Callable[[Path, int], str]:
    """Overwrite a field of the MP4 box of that name."""

    def damage(folder: Path, number: int) -> str:
        path = base(folder, f"box{number}.mp4", number)
        data = bytearray(path.read_bytes())
        at = data.index(box) + 4 + offset
        data[at : at + len(value)] = value
        path.write_bytes(data)
        return path.name

    return damage


def depth(values: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path, int], str]:
    """A good video with damaged depth beside it; the caption's row names it."""

    def damage(folder: Path, number: int) -> str:
        path = base(folder, f"depth{number}.mp4", number)
        np.save(folder / f"depth{number}.npy", values(np.full((40, 120, 160), 2.0, np.float32)))
        return f"{path.name},{CAPTION},depth{number}.npy"

    return damage


def depth_bytes(data: bytes) -> Callable[[Path, int], str]:
    def damage(folder: Path, number: int) -> str:
        path = base(folder, f"depth{number}.mp4", number)
        (folder / f"depth{number}.npy").write_bytes(data)
        return f"{path.name},{CAPTION},depth{number}.npy"

    return damage


def captioned(line: str, make: bool = True) -> Callable[[Path, int], str]:
    def damage(folder: Path, number: int) -> str:
        if make:
            base(folder, f"cap{number}.mp4", number)
        return line.format(file=f"cap{number}.mp4")

    return damage


def half_nan(a: np.ndarray) -> np.ndarray:
    a[:, :, ::2] = np.nan
    return a


def linked(target: str) -> Callable[[Path, int], str]:
    def damage(folder: Path, number: int) -> str:
        name = f"link{number}.mp4"
        os.symlink(target.format(name=name), folder / name)
        return name

    return damage


def looped_folder(folder: Path, number: int) -> str:
    (folder / "loop").mkdir()
    base(folder / "loop", "inner.mp4", number)
    os.symlink("..", folder / "loop" / "again")
    return "loop/inner.mp4"


def image(folder: Path, number: int) -> str:
    cv2.imwrite(str(folder / "p.png"), GOOD[0])
    (folder / "p.png").rename(folder / "image.mp4")
    return "image.mp4"


KINDS: dict[str, Callable[[Path, int], str]] = {
    "good": lambda folder, number: base(folder, "good.mp4", number).name,
    "header flipped": flipped(0.0, 40, 1),
    "first bytes flipped": flipped(0.01, 5, 2),
    "a third in flipped": flipped(0.3, 60, 3),
    "middle flipped": flipped(0.5, 200, 4),
    "end flipped": flipped(0.9, 40, 5),
    "index flipped": flipped(0.96, 30, 6),
    "cut at a tenth": cut(0.1),
    "cut at half": cut(0.5),
    "cut near the end": cut(0.97),
    "one byte": raw("one.mp4", b"\0"),
    "zero bytes": raw("zero.mp4", b""),
    "text": raw("text.mp4", b"this is no video\n" * 100),
    "zeros": raw("zeros.mkv", bytes(100_000)),
    "noise": raw("noise.avi", np.random.default_rng(0).bytes(100_000)),
    "html": raw("html.webm", b"<html><body>404</body></html>"),
    "ebml head only": raw("head.mkv", b"\x1a\x45\xdf\xa3\x01\x00\x00\x00\x00\x00\x00\x1f"),
    "riff head only": raw("head.avi", b"RIFF\xff\xff\xff\xffAVI LIST"),
    "mp4 as avi": renamed("wrong.avi"),
    "mp4 as gif": renamed("wrong.gif"),
    "an image": image,
    "spaces in a name": renamed("a  b .mp4"),
    "a percent sign": renamed("100%d.mp4"),
    "a colon": renamed("file:x.mp4"),
    "letters of many scripts": renamed("видео-動画.mp4"),
    "1 x 1": shaped(1, 1, "ffv1", "bgr0"),
    "2 x 2": shaped(2, 2, "ffv1", "bgr0"),
    "odd size": shaped(61, 83, "ffv1", "bgr0"),
    "very wide": shaped(8, 900, "ffv1", "bgr0"),
    "8K": shaped(4320, 7680, "mpeg4", "yuv420p", frames=1),
    "one frame": shaped(64, 64, "ffv1", "bgr0", frames=1),
    "four frames": shaped(64, 64, "ffv1", "bgr0", frames=4),
    "variable rate": timed([0, 3, 7, 30, 31, 33, 60, 61, 66, 90, 95, 99, 130, 150, 170, 180]),
    "a gap of minutes": timed([*range(0, 60, 3), *range(60_000, 60_060, 3)]),
    "8K in the header": box_value(b"avc1", 24, bytes([30, 0, 16, 224])),
    "zero time scale": box_value(b"mdhd", 12, bytes(4)),
    "zero frames a second": box_value(b"stts", 12, bytes(4)),
    "endless duration": box_value(b"mdhd", 16, b"\xff\xff\xff\xff"),
    "rotated by 90": box_value(
        b"tkhd", 40, bytes.fromhex("00000000 00010000 00000000 ffff0000 00000000")
    ),
    "NaN depth": depth(lambda a: a * np.nan),
    "negative depth": depth(lambda a: -a),
    "half NaN depth": depth(half_nan),
    "short depth": depth(lambda a: a[:-1]),
    "flat depth": depth(lambda a: a[0]),
    "text as depth": depth(lambda a: np.full((40, 2, 2), "x")),
    "pickled depth": depth(lambda a: np.full((40, 1, 1), 1.0).astype(object)),
    "depth of noise": depth_bytes(b"\x93NUMPY\x01\x00" + bytes(50)),
    "no caption": captioned("{file},"),
    "a caption not UTF-8": captioned("{file},pousser le carr\udce9"),
    "a very long caption": captioned("{file}," + "push " * 20_000),
    "no such file": captioned("ghost.mp4,haunt", make=False),
    "path traversal": captioned("../../../etc/passwd,read", make=False),
    "absolute path": captioned("/etc/passwd,read", make=False),
    "depth outside": captioned("{file},push,../../etc/passwd"),
    "link to itself": linked("{name}"),
    "link to nothing": linked("/nowhere/at/all.mp4"),
    "folders in a loop": looped_folder,
}


def build(folder: Path, kinds: list[str]) -> dict[str, str]:
    """Write the kinds into a folder; kind by path as it appears in tables."""
    folder.mkdir()
    lines, paths = ["file,caption,depth"], {}
    for number, kind in enumerate(kinds):
        line = KINDS[kind](folder, number)
        lines.append(line if "," in line else f'"{line}",{CAPTION}')
        paths[line.partition(",")[0]] = kind
    name = os.fsdecode(b"na\xffme.mp4")
    os.rename(base(folder, "plain.mp4", len(kinds)), folder / name)
    lines.append(f"{name},{CAPTION}")
    paths["na\\udcffme.mp4"] = "a name not UTF-8"
    (folder / "captions.csv").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    return paths


def check(folder: Path, out: Path, paths: dict[str, str], depth: str) -> dict[str, str]:
    """Preprocess, and account for every path; stage by kind, "" for what was kept."""
    config = PreprocessConfig(
        source=SourceConfig(path=str(folder)),
        depth=depth,
        draws_per_clip=1,
        max_rejected_share=1.0,
        example_images=0,
    )
    outcome = preprocess(config, str(out))
    rejected = pl.read_parquet(outcome.folder / "rejected.parquet")
    counts = outcome.counts
    assert counts["read"] == counts["kept"] + counts["rejected"] == len(paths)
    assert counts["rejected"] == len(rejected)
    assert (rejected["reason"].str.len_chars() > 3).all()
    kept = 0
    if counts["triplets"]:
        rows = pl.read_parquet(outcome.folder / "triplets" / "*.parquet")
        kept = rows["clip_id"].n_unique()
        assert len(rows) == counts["triplets"]
    assert kept == counts["kept"]
    stages = dict(zip(rejected["path"], rejected["stage"], strict=True))
    reasons = dict(zip(rejected["path"], rejected["reason"], strict=True))
    for path, kind in paths.items():
        print(f"{kind:<26}{stages.get(path, 'kept'):<12}{reasons.get(path, '')[:90]}")
    assert set(stages) <= set(paths)
    return {kind: stages.get(path, "") for path, kind in paths.items()}


@pytest.mark.fuzz
@pytest.mark.ray
def test_every_kind_of_damage_is_accounted_for(tmp_path: Path, ray_cluster: None) -> None:
    paths = build(tmp_path / "videos", list(KINDS))
    assert len(paths) > 50
    stages = check(tmp_path / "videos", tmp_path / "out", paths, "plane")
    for kind in ("good", "mp4 as avi", "letters of many scripts", "a name not UTF-8"):
        assert stages[kind] == "", kind
    for kind in ("zero bytes", "text", "noise", "cut at half", "path traversal", "1 x 1"):
        assert stages[kind], kind
    assert "unexpected" not in stages.values()
    assert "crash" not in stages.values()


@pytest.mark.ray
def test_a_few_kinds_of_damage_and_bad_depth(tmp_path: Path, ray_cluster: None) -> None:
    kinds = ["NaN depth", "negative depth", "pickled depth", "depth outside", "link to itself"]
    paths = build(tmp_path / "videos", ["half NaN depth", *kinds])
    stages = check(tmp_path / "videos", tmp_path / "out", paths, "auto")
    assert all(stages[kind] == "depth" for kind in kinds[:-1])
    assert stages["link to itself"] == "list"
