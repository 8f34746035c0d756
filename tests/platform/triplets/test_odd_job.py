"""The preprocessing job over odd sources: every clip is kept, or rejected for a stated reason."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import odd_folders
import odd_lerobot
import odd_rlds
import polars as pl
import pytest
import test_damage
from checkout import REPOSITORY
from triplet_recordings import moving_square, textured, write_video

from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.pipeline import preprocess

# Not reasons of the clip, but of the program.
_INTERNAL = ("unexpected", "crash")


def write_lerobot_kinds(root: Path, kinds: list[str]) -> list[SourceConfig]:
    """A LeRobot set a kind, each a source."""
    sources = []
    for number, kind in enumerate(kinds):
        odd = odd_lerobot.sound()
        odd_lerobot.KINDS[kind][0](odd)
        odd.videos = {
            key: [lively(len(frames), 10 * number + n) for n, frames in enumerate(several)]
            for key, several in odd.videos.items()
        }
        for n, episode in enumerate(odd.episodes):
            episode["stats/action/mean"] = [10.0 * number + n]  # episodes are told apart by these
        folder = odd.write(root / f"lerobot-{_slug(kind)}")
        sources.append(SourceConfig(path=str(folder), depth="auto" if "depth" in kind else ""))
    return sources


def lively(frames: int, seed: int) -> np.ndarray:
    """(N, 96, 144, 3): a textured square that goes right by 3 px a frame."""
    out = np.repeat(textured(96, 144, seed)[None], frames, axis=0)
    square = textured(40, 40, seed + 1000)
    for k in range(frames):
        x = 8 + 3 * k % 90
        out[k, 30:70, x : x + 40] = square
    return out


def write_rlds_kinds(root: Path, kinds: list[str], files: list[str]) -> list[SourceConfig]:
    """An RLDS set a kind, each a source."""
    sources = []
    for kind in kinds:
        data = odd_rlds.records(odd_rlds.example(odd_rlds.KINDS[kind][0]()))
        folder = odd_rlds.write(root / f"rlds-{_slug(kind)}", data)
        sources.append(SourceConfig(path=str(folder), fps=5))
    sound = odd_rlds.records(odd_rlds.example(odd_rlds.sound()))
    for kind in files:
        data = odd_rlds.FILES[kind][0](sound)
        folder = odd_rlds.write(root / f"records-{_slug(kind)}", data)
        sources.append(SourceConfig(path=str(folder), fps=5))
    return sources


def write_folder_kinds(
    folder: Path, kinds: list[str], depth: str
) -> tuple[SourceConfig, dict[str, str]]:
    """One folder of videos with a file a kind; and the kind by the names that it may go by."""
    lines = ["file,caption,depth,start_s,end_s"]
    folder.mkdir(parents=True)
    by_path: dict[str, str] = {}
    for number, kind in enumerate(kinds):
        there = set(folder.rglob("*"))
        line = odd_folders.KINDS[kind](folder, number)
        new = {path.relative_to(folder).as_posix() for path in {*folder.rglob("*")} - there}
        lines.append(line if "," in line else f"{line},{odd_folders.CAPTION}")
        ((in_table, *_),) = csv.reader(lines[-1:])
        by_path |= dict.fromkeys({*new, in_table}, kind)
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return SourceConfig(path=str(folder), depth=depth), by_path


def write_folders(
    root: Path, sources: list[SourceConfig], plain: list[str], deep: list[str]
) -> dict[str, dict[str, str]]:
    """Add a folder without depth and one with depth; their kinds by path."""
    folders = {}
    for name, kinds, depth in (("videos", plain, "plane"), ("deep", deep, "auto")):
        source, folders[name] = write_folder_kinds(root / name, kinds, depth)
        sources.append(source)
    return folders


def _slug(kind: str) -> str:
    return re.sub(r"\W+", "-", kind).strip("-")


def _is_expected(row: dict[str, str], folders: dict[str, dict[str, str]]) -> bool:
    """Whether a kind's set, or its file in a folder, is rejected for the reason of its table.

    ``folders`` has the kinds by path of each folder, by its name.
    """
    source, reason = row["source"], row["reason"]
    if source in folders:
        reasons = {**odd_folders.REASONS, **odd_folders.DEPTH_REASONS}
        kind = folders[source].get(row["path"], "")
        if kind in ("another case", "no ending") and "no caption in" in reason:
            return True  # of the video itself, which the table's row does not name
        said = reasons.get(kind, "")
        parts = said.split("|") if said else []
        return any(part in reason or re.search(part, reason) for part in parts)
    tables = (
        ("lerobot-", {k: said for k, (_, said) in odd_lerobot.KINDS.items()}),
        ("rlds-", {k: said for k, (_, said) in odd_rlds.KINDS.items()}),
        ("records-", {k: said for k, (_, said) in odd_rlds.FILES.items()}),
    )
    for prefix, table in tables:
        for kind, said in table.items():
            if source == prefix + _slug(kind):
                # What is read is kept; but grey images hold nothing to track, and two kinds of
                # RLDS may have the same bytes.
                grey = prefix != "lerobot-" or "images" in kind
                fine = grey and ("no window is left" in reason or "same content" in reason)
                return fine or bool(said and re.search(said, reason))
    return False


def check(folder: Path, read: int) -> pl.DataFrame:
    """Account for every clip; the rejected ones."""
    rejected = pl.read_parquet(folder / "rejected.parquet")
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert counts["read"] == counts["kept"] + counts["rejected"] == read
    assert counts["rejected"] == len(rejected)
    for row in rejected.iter_rows(named=True):
        print(f"{row['source']:<44}{row['stage']:<10}{row['reason'][:110]}")
    assert not rejected.filter(pl.col("stage").is_in(_INTERNAL)).height
    assert (rejected["reason"].str.len_chars() > 3).all()
    return rejected


@pytest.mark.integration
@pytest.mark.ray
def test_the_job_reads_or_rejects_each_odd_source(tmp_path: Path) -> None:
    lerobot = [
        *("times 6 ms an episode ahead", "video at three times the rate", "rows in milliseconds"),
        *("a frame too few in the video", "no rows where the table of episodes says"),
        *("tasks of the rows are others", "depth in millimetres of 16 bits", "depth of 8 bits"),
        *("images in the rows", "images that are pointers", "a file number of none"),
        "half a character in a task",
    ]
    rlds = ["ragged stack", "several views a step", "no instruction"]
    sources = write_lerobot_kinds(tmp_path, lerobot)
    sources += write_rlds_kinds(tmp_path, rlds, ["a pointer", "gzip"])
    videos = ["container .wmv", "a cover before the film", "é taken apart", "a Git LFS pointer"]
    deep = ["depth in millimetres as floats", "depth of 8 bits"]
    folders = write_folders(tmp_path, sources, videos, deep)
    write_video(tmp_path / "videos" / "good.mp4", moving_square(40))
    with (tmp_path / "videos" / "captions.csv").open("a") as table:
        table.write("good.mp4,push the square\n")
    listed = [
        {k: v for k, v in vars(source).items() if v and k in ("path", "fps", "depth")}
        for source in sources
    ]
    (tmp_path / "mix.yaml").write_text(json.dumps({"sources": listed}))
    words = ["--config", str(tmp_path / "mix.yaml"), "--output", str(tmp_path / "out")]
    words += ["--depth", "plane", "--max_rejected_share", "1", "--draws_per_clip", "1"]
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / "preprocess.py"), *words],
        env={**os.environ, "DYNAFLIP_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Traceback" not in result.stdout + result.stderr
    rejected = check(tmp_path / "out", read=3 * len(lerobot) + len(rlds) + 2 + 5 + 2)
    rows = rejected.select("source", "path", "reason").rows(named=True)
    assert not [row for row in rows if not _is_expected(row, folders)]
    kept = pl.read_parquet(tmp_path / "out" / "triplets" / "*.parquet")
    assert kept.filter(pl.col("source") == "videos")["clip_id"].n_unique() == 4
    assert not kept.filter(pl.col("source") == "deep").height


@pytest.mark.fuzz
@pytest.mark.ray
def test_a_hundred_kinds_of_bad_input_are_accounted_for(tmp_path: Path, ray_cluster: None) -> None:
    lerobot, rlds, files = list(odd_lerobot.KINDS), list(odd_rlds.KINDS), list(odd_rlds.FILES)
    kinds = [*lerobot, *rlds, *files, *odd_folders.KINDS, *odd_lerobot.REFUSED, *test_damage.KINDS]
    print(f"{len(kinds)} kinds")
    assert len(kinds) >= 100
    sources = [*write_lerobot_kinds(tmp_path, lerobot), *write_rlds_kinds(tmp_path, rlds, files)]
    deep = [kind for kind in odd_folders.KINDS if kind.startswith("depth")]
    plain = [kind for kind in odd_folders.KINDS if kind not in deep]
    folders = write_folders(tmp_path, sources, plain, deep)
    config = PreprocessConfig(
        sources=tuple(sources),
        depth="plane",
        draws_per_clip=1,
        max_rejected_share=1.0,
        example_images=0,
        clips_per_shard=8,
    )
    outcome = preprocess(config, str(tmp_path / "out"))
    rejected = check(outcome.folder, read=outcome.counts["read"])
    assert outcome.counts["read"] >= len(kinds) - len(odd_lerobot.REFUSED) - len(test_damage.KINDS)
    rows = rejected.select("source", "path", "reason").rows(named=True)
    assert not [row for row in rows if not _is_expected(row, folders)]
