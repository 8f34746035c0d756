"""The flow probe in an evaluation: trained weights beside their initialisation and random ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_triplets import write_triplets

from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.model import DynaFLIP
from dynaflip.platform.evaluation.flow_comparison import FlowComparison, compare_flow
from dynaflip.platform.evaluation.flow_probe_config import FlowProbeConfig
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig


def test_equal_weights_explain_as_much_and_few_recordings_are_said(
    home: Path, tmp_path: Path, triplet_folder: Path
) -> None:
    flow = FlowConfig(width=16, layers=1, heads=2, channels=8, cnn_layers=2)
    image = ImageConfig(image_px=32, pretrained=False)
    model = DynaFLIP(ModelConfig(image=image, flow=flow, embedding_dim=16, hidden_dim=16)).eval()
    folder = write_triplets(tmp_path / "set", clips=24)
    config = ProbeSuiteConfig(triplets=str(folder), flow_probe=FlowProbeConfig(windows_per_clip=2))
    found = compare_flow(model, model, [], config)
    assert isinstance(found, FlowComparison)
    metrics = found.metrics()
    assert metrics["flow_probe/trained_percent"] == metrics["flow_probe/initial_percent"]
    assert metrics["flow_probe/difference_from_initial_percent"] == 0
    assert "flow_probe/difference_from_random_low_percent" in metrics
    section = found.section()
    assert "12 windows of 6 recordings" in section.title
    assert [row[0] for row in section.rows] == ["trained", "initial", "random"]
    table = found.results({"trained": ("uri", "digest")}, suite="probes", run="r", split="dev")
    assert table["value"].to_list()[0] == pytest.approx(metrics["flow_probe/trained_percent"] / 100)
    assert table["chance"].unique().to_list() == [0.0]
    said = compare_flow(model, model, [], ProbeSuiteConfig(triplets=str(triplet_folder)))
    assert "of 3 recordings held out it says nothing" in str(said)
