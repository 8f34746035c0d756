"""Policies with a read-out on real Ray, in the real simulator."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_rollouts import encoder_folder, tiny

from dynaflip.eval.policies.readouts.config import AttentiveConfig

pytestmark = [pytest.mark.ray, pytest.mark.sim, pytest.mark.integration]


def test_the_same_table_twice_from_policies_that_read_three_scales(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from dynaflip.platform.evaluation.suites.imitation import Imitation

    monkeypatch.setenv("DYNAFLIP_HOME", str(tmp_path / "home"))
    encoder = encoder_folder(tmp_path / "encoder")
    config = tiny(
        encoder,
        seeds=1,
        baselines=(),
        readout="attentive",
        attentive=AttentiveConfig(scales=3, width=8),
    )
    outcome = Imitation().run(config)
    agreement = "agreement/proprioception/in_distribution"
    assert outcome.metrics[f"{agreement}/scripted_expert"] == 1
    assert 0 <= outcome.metrics[f"{agreement}/trained"] < 1
    # A reading of a tiny policy on random weights: it is shared out, and the page shows where.
    shares = [outcome.metrics[f"attention/{part}/none/trained"] for part in ("robot", "object")]
    assert min(shares) > 0
    assert sum(shares) < 1
    page = outcome.report.read_text()
    assert page.count("Where policies look: attention of the read-out") == 1
    assert page.count(">reach-v3, ") == 2, "unperturbed and perturbed"
    assert "Attention on robot and object, %" in outcome.table
    (path,) = (tmp_path / "home" / "evaluation" / "policies").iterdir()
    fitted = load_file(path)
    # 32 px: a cell of 32, 16 and 8 px.
    assert fitted["readout.grids"].tolist() == [[1, 1, 1280], [2, 2, 112], [4, 4, 40]]
    weights = path.read_bytes()
    path.unlink()
    assert Imitation().run(config).metrics == outcome.metrics
    assert path.read_bytes() == weights, "fitted to other weights by the same seed"
