"""The named arms: each changes what it says, and every one of them trains."""

from __future__ import annotations

import subprocess
import sys

import pytest
from checkout import REPOSITORY

from dynaflip.errors import UserError
from dynaflip.platform.config import config_digest, flatten, to_dict
from dynaflip.platform.training.arms import ARMS, PAPER_SUCCESS_PERCENT, apply_arm
from dynaflip.platform.training.config import PretrainConfig


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_changes_its_own_settings_alone(arm: str) -> None:
    before, after = (
        flatten(to_dict(c)) for c in (PretrainConfig(), apply_arm(PretrainConfig(), arm))
    )
    changed = {key: value for key, value in after.items() if value != before[key]}
    assert changed == ARMS[arm]


def test_arms_are_distinct_and_hold_the_paper_s_whole_table() -> None:
    digests = {config_digest(apply_arm(PretrainConfig(), arm)) for arm in ARMS}
    assert len(digests) == len(ARMS)
    assert set(PAPER_SUCCESS_PERCENT) <= set(ARMS)


def test_an_unknown_arm_is_one_line_that_lists_them() -> None:
    with pytest.raises(UserError, match="no such arm; known: full, no_flow_prediction"):
        apply_arm(PretrainConfig(), "no_image")
    done = subprocess.run(
        [sys.executable, "jobs/pretrain.py", "--arm", "no_image"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --arm no_image: there is no such arm")
