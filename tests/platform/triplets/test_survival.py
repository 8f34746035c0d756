"""Preprocessing killed at random moments, and started again: the same triplets, by digest."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import REPOSITORY
from triplet_recordings import moving_square, write_video

DRIVER, WORKER, NODE, COMPACTION = "driver", "worker", "node", "driver in its compaction"


def start(folder: Path, out: Path, home: Path) -> subprocess.Popen[str]:
    """The job in a process group of its own, with a Ray cluster of its own."""
    environment = {**os.environ, "DYNAFLIP_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    words = ["--source", str(folder), "--output", str(out), "--depth", "plane"]
    words += ["--draws_per_clip", "1", "--clips_per_shard", "1", "--example_images", "0"]
    words += ["--part_mb", "0.01"]  # a clip a file, so that the compaction takes a while
    job = str(REPOSITORY / "jobs" / "preprocess.py")
    log = (home / "log.txt").open("a")
    return subprocess.Popen(
        [sys.executable, job, *words], env=environment, stdout=log, stderr=log, text=True
    )


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below a process."""
    children: dict[int, list[int]] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                commands[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    below, todo = {}, [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            below[child] = commands[child]
            todo.append(child)
    return below


def kill_one(job: subprocess.Popen[str], kind: str, rng: random.Random) -> bool:
    """SIGKILL to the driver, to one busy worker, or to the node's raylet."""
    if kind in (DRIVER, COMPACTION):
        job.kill()
        return True
    below = descendants(job.pid)
    # The raylet's own command line names workers too: it is told by its program.
    wanted = [
        pid
        for pid, command in below.items()
        if (command.startswith("ray::") if kind == WORKER else "raylet/raylet" in command[:300])
        and "IDLE" not in command
    ]
    if not wanted:
        return False
    try:
        os.kill(rng.choice(wanted), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def began_a_clip(out: Path, started_s: float) -> bool:
    """Whether a worker has taken up a clip since then."""
    notes = out.parent.glob(f".{out.name}.*/attempts")
    return any(path.stat().st_mtime > started_s for path in notes)


def is_compacting(out: Path) -> bool:
    """Whether the job has written the first of its final files."""
    return any(out.parent.glob(f".{out.name}.*/triplets/*.parquet"))


def run_with_kills(
    folder: Path, out: Path, home: Path, kinds: list[str], seed: int, latest_s: float
) -> tuple[dict, list[str]]:
    """Run the job until it is done; every kind is killed once, as long as there is work left.

    The first kill of a job comes at most ``latest_s`` after its first clip was begun.
    """
    rng = random.Random(seed)
    left, done = list(kinds), []
    home.mkdir(parents=True, exist_ok=True)
    for _ in range(len(kinds) + 8):
        started_s = time.time()
        job = start(folder, out, home)
        wake = math.inf
        while job.poll() is None:
            time.sleep(0.05)
            if wake == math.inf and began_a_clip(out, started_s):
                wake = time.monotonic() + rng.uniform(0, latest_s)
            if left and left[0] == COMPACTION:
                wake = 0 if is_compacting(out) else math.inf
            if left and time.monotonic() >= wake and kill_one(job, left[0], rng):
                done.append(left.pop(0))
                wake = time.monotonic() + rng.uniform(0.3, 2.0)
        if job.returncode == 0:
            return json.loads((out / "manifest.json").read_text()), done
    raise AssertionError((home / "log.txt").read_text()[-3000:])


def videos(folder: Path, count: int) -> Path:
    lines = ["file,caption"]
    for n in range(count):
        write_video(
            folder / f"{n:03d}.mp4", moving_square(40, step_px=0.5 + n % 100 / 100, seed=1000 + n)
        )
        lines.append(f"{n:03d}.mp4,push {n}")
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


def check_whole(out: Path, manifest: dict, whole: dict) -> None:
    assert manifest["digest"] == whole["digest"]
    assert manifest["counts"] == whole["counts"]
    # Nothing half-written is left.
    assert sorted(p.name for p in out.iterdir()) == [
        "done",
        "index",
        "manifest.json",
        "rejected.parquet",
        "triplets",
    ]
    assert all(p.suffix == ".parquet" for p in (out / "triplets").iterdir())
    assert not any(p.name.startswith(".") for p in out.parent.iterdir())


@pytest.mark.ray
@pytest.mark.integration
def test_a_worker_the_driver_and_the_node_are_killed(tmp_path: Path, ray_cluster: None) -> None:
    from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
    from dynaflip.platform.triplets.pipeline import preprocess

    folder = videos(tmp_path / "videos", 40)
    config = PreprocessConfig(
        source=SourceConfig(path=str(folder)),
        depth="plane",
        draws_per_clip=1,
        clips_per_shard=1,
        example_images=0,
    )
    uninterrupted = preprocess(config, str(tmp_path / "a" / "whole"))
    whole = json.loads((uninterrupted.folder / "manifest.json").read_text())
    kinds = [WORKER, DRIVER, NODE, COMPACTION]
    found, killed = run_with_kills(
        folder, tmp_path / "b" / "out", tmp_path / "home2", kinds, 1, 0.5
    )
    check_whole(tmp_path / "b" / "out", found, whole)
    assert killed == kinds


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    folder = videos(tmp_path / "videos", 240)
    whole, _ = run_with_kills(folder, tmp_path / "a" / "whole", tmp_path / "home", [], 0, 0)
    rng = random.Random(7)
    total = 0
    for turn in range(6):
        kinds = [WORKER, WORKER, DRIVER, NODE]
        rng.shuffle(kinds)
        out = tmp_path / f"turn{turn}" / "out"
        found, killed = run_with_kills(folder, out, tmp_path / f"home{turn}", kinds, turn, 4)
        check_whole(out, found, whole)
        total += len(killed)
    print(f"\n{total} kills")
    assert total >= 20


@pytest.mark.ray
def test_a_changed_setting_makes_a_new_version_and_is_named(
    video_folder: Callable[..., Path], tmp_path: Path, ray_cluster: None
) -> None:
    from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
    from dynaflip.platform.triplets.pipeline import preprocess

    def run(weight: float = 1.0, **values):
        source = SourceConfig(path=str(video_folder(2)), weight=weight)
        config = PreprocessConfig(source=source, depth="plane", draws_per_clip=1, **values)
        return preprocess(config, str(tmp_path / "out"))

    assert run().version == 1
    again = run(weight=3.0)
    assert again.reused
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sources"]["videos"]["weight"] == 3.0
    unfinished = tmp_path / f".out.{'0' * 12}"  # of settings that were given up
    unfinished.mkdir()
    mine = tmp_path / ".out.notes"
    mine.mkdir()
    other = run(jpeg_quality=80)
    assert mine.exists()
    assert not unfinished.exists()
    assert (other.version, other.changed) == (2, ("jpeg_quality: 92 → 80",))
