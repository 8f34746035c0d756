"""The score that any triplets give: its windows from a folder, and a sweep that is ranked by it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkout import REPOSITORY
from recovery import start
from synthetic_triplets import write_triplets

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.flow_frames import read_flow_file, read_flow_frames
from dynaflip.platform.evaluation.flow_probe_config import FlowProbeConfig
from dynaflip.platform.sweep.consistency import inconsistencies
from dynaflip.platform.sweep.flow_score import FILE, FlowScore, make_flow_frames
from dynaflip.platform.sweep.opened_sweep import open_to_read
from dynaflip.platform.sweep.study import SEARCH, own_trials
from dynaflip.platform.sweep.trial_score import TrialScore
from dynaflip.platform.tracking import registry
from dynaflip.platform.training.data.index import read_index

FEW = FlowProbeConfig(windows_per_clip=3)


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips, of which 6 are held out."""
    return write_triplets(tmp_path_factory.mktemp("flow") / "set", clips=24)


class Pixels(torch.nn.Module):
    """Features of a stub encoder."""

    config = SimpleNamespace(image_px=16)

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1:] == (16, 16, 3)
        return images.float().flatten(1) * (0.0 if self.blind else 1.0)


def test_windows_are_read_written_and_scored(home: Path, triplets: Path, tmp_path: Path) -> None:
    index = read_index(str(triplets))
    frames = make_flow_frames(index, FEW, tmp_path)
    assert len(frames.jpegs) == 24 * 3
    assert len(set(frames.windows.recording[frames.windows.heldout])) == 6
    again = read_flow_file(tmp_path / FILE)
    assert again.digest() == frames.digest() == read_flow_frames(index, FEW).digest()
    other = read_flow_frames(index, FlowProbeConfig(windows_per_clip=2))
    assert other.digest() != frames.digest()
    score = TrialScore(None, FlowScore(tmp_path / FILE, folds=5, batch_size=16))
    (left,) = score.metrics(Pixels()).values()
    assert score.names == ("score/flow_unexplained_percent",)
    # Where the square is says little of where it goes: the mean is all there is.
    assert score.metrics(Pixels(blind=True)) == {score.names[0]: pytest.approx(100)}
    assert 0 < left < 150
    errors = score.ranking_errors(Pixels(), "flow_probe")
    blind = score.ranking_errors(Pixels(blind=True), "flow_probe")
    assert blind.gap_of([errors, errors]).value == pytest.approx(left - 100)
    assert errors.gap_of([errors]).high == pytest.approx(0)


def test_too_few_recordings_are_refused_before_the_first_trial(
    home: Path, triplet_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="of 3 recordings held out it says nothing"):
        make_flow_frames(read_index(str(triplet_folder)), FEW, tmp_path)
    np.savez(tmp_path / FILE, velocity=np.zeros(1))
    with pytest.raises(UserError, match="holds no frames with flow"):
        read_flow_file(tmp_path / FILE)


@pytest.mark.integration
@pytest.mark.ray
def test_a_sweep_without_simulator_or_labels_is_ranked_by_flow(
    home: Path, triplets: Path, tmp_path: Path
) -> None:
    words = ["--config", str(REPOSITORY / "tests/tiny.yaml"), "--triplets", str(triplets)]
    words += ["--name", "own", "--objectives", "flow_probe", "--trials", "2", "--confirm", "0"]
    words += ["--search", "objective.flow=uniform(0,2)", "--sweep.score.flow_probe.folds", "3"]
    process = start(home, words, tmp_path / "sweep.log")
    assert process.popen.wait(timeout=300) == 0, process.said()
    sweep = open_to_read("own", "test")
    trials = own_trials(sweep.study(SEARCH))
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    assert inconsistencies("own") == []
    said = process.said()
    assert "score: flow of 24 held-out windows, with 72 training windows" in said
    assert "% unexplained" in said
    assert " cm" not in said
    tags = registry.version_tags(sweep.base.tracking.model_name, "1")
    best = min(trial.values[0] for trial in trials)
    assert float(tags["flow_unexplained_percent"]) == pytest.approx(best, abs=1e-3)
    assert "score_cm" not in tags
