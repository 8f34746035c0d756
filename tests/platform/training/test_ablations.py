"""The named variants: each changes its own settings, and every one of them trains."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from checkout import REPOSITORY

from dynaflip.errors import UserError
from dynaflip.losses.energy import energy
from dynaflip.platform.config_loader import config_digest, flatten, to_dict
from dynaflip.platform.training.ablations import PAPER_SUCCESS_PERCENT, VARIANTS, apply_variant
from dynaflip.platform.training.config import PretrainConfig


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_its_own_settings_alone(variant: str) -> None:
    before, after = (
        flatten(to_dict(c)) for c in (PretrainConfig(), apply_variant(PretrainConfig(), variant))
    )
    changed = {key: value for key, value in after.items() if value != before[key]}
    # A segment in the triangle's place pulls the image as strongly as before.
    volume = {"objective.volume": pytest.approx(1 / 6**0.5)}
    pair = len(VARIANTS[variant].get("objective.modalities", ())) == 2
    assert changed == VARIANTS[variant] | (volume if pair else {})


def test_a_variant_that_leaves_nothing_out_is_refused() -> None:
    without = apply_variant(PretrainConfig(), "no_temporal")
    with pytest.raises(UserError, match="no_temporal: the settings have it already"):
        apply_variant(without, "no_temporal")
    assert apply_variant(without, "full") == without


def test_a_segment_pulls_the_image_as_the_triangle_does() -> None:
    """At orthogonal embeddings, where a run begins, towards language and by the volume alone."""
    pulls = []
    for variant in ("full", "no_flow"):
        objective = apply_variant(PretrainConfig(), variant).objective
        image, language, flow = torch.eye(3, dtype=torch.float64)
        image.requires_grad_()
        points = {"image": image, "language": language, "flow": flow}
        kept = {name: points[name][None] for name in objective.modalities}
        (gradient,) = torch.autograd.grad(energy(kept, objective.volume, 0.0).sum(), image)
        pulls.append(float(gradient @ language))
    assert pulls[0] < 0
    assert pulls[1] == pytest.approx(pulls[0])


def test_variants_are_distinct_and_hold_the_paper_s_whole_table() -> None:
    digests = {config_digest(apply_variant(PretrainConfig(), variant)) for variant in VARIANTS}
    assert len(digests) == len(VARIANTS)
    assert set(PAPER_SUCCESS_PERCENT) <= set(VARIANTS)


def test_an_unknown_variant_is_one_line_that_lists_them_and_the_old_flag_warns() -> None:
    with pytest.raises(UserError, match="no such variant; known: full, no_flow_prediction"):
        apply_variant(PretrainConfig(), "no_image")
    done = subprocess.run(
        [sys.executable, "jobs/pretrain.py", "--arm", "no_image"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()
    assert warning.startswith("warning: --arm is now --variant")
    assert error.startswith("error: --variant no_image: there is no such variant")
