"""The base install beside an older torch, as it is found in a policy's environment."""

from __future__ import annotations

import subprocess
import sys

import pytest
from checkout import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_folder_loads_in_an_environment_of_torch_2_7_alone() -> None:
    """Downloads torch with its CUDA libraries, several GB."""
    script = str(REPOSITORY / "infra" / "ci" / "bare_environment.py")
    result = subprocess.run([sys.executable, script, "--torch", "2.7.1"], text=True)
    assert result.returncode == 0
