"""The triplet pipeline's benchmarks: accuracy is asserted, times and memory are printed."""

from __future__ import annotations

import accuracy
import growth
import listing
import long_video
import numpy as np
import pytest
import speed
import stages
from expectation import show
from simulated import TASKS, recordings, windows

pytestmark = [pytest.mark.bench, pytest.mark.sim, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("moving_camera", [False, True], ids=["static", "moving"])
def test_flow_of_sixteen_frames_is_close_to_the_truth(moving_camera: bool) -> None:
    root = recordings(TASKS, moving_camera=moving_camera, seed=11)
    many = list(windows(root, 16, per_clip=2))
    found = {name: accuracy.score(method, many) for name, method in accuracy.METHODS.items()}
    print()
    for name, values in found.items():
        print(accuracy.row(name, values))
    print(accuracy.camera_row(many))

    def error_at(name: str, recall: float) -> float:
        moving = found[name]["moving"]
        order = np.argsort(found[name]["doubt"][moving], kind="stable")
        kept = int(np.isfinite(found[name]["doubt"][moving]).sum())
        assert kept >= recall * moving.sum(), f"{name} keeps {kept} of {moving.sum()}"
        return float(np.median(found[name]["share"][moving][order[: round(recall * moving.sum())]]))

    for name in ("LK + pieces aligned", "the same, pose hidden"):
        ours = found[name]
        assert error_at(name, 0.6) <= 0.15
        assert error_at(name, 0.6) <= 0.7 * error_at("LK", 0.6)
        kept = np.isfinite(ours["doubt"])
        assert np.median(ours["miss_m"][ours["moving"] & kept]) <= 0.015
        assert np.median(ours["miss_m"][ours["still"] & kept]) <= 0.002


def test_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["speed.py"])
    show("Ray Data on 2 CPUs, times as fast as a plain loop", speed.main(), at_least=1.85)


def test_stages_are_as_fast_as_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["stages.py"])
    show("throughput of what the slowest stage allows", stages.main(), at_least=0.9)


def test_growth() -> None:
    growth.main(["--clips", "2000"])


def test_listing_of_a_large_set() -> None:
    listing.main()


def test_a_video_of_an_hour_fits_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["long_video.py"])
    peak_gib = max(long_video.main().values()) / 2**30
    show("peak memory of a machine of 4 GiB, in GiB", peak_gib, at_most=3)
