"""A rendering device that is not there is one line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dynaflip.eval.envs.mujoco_renderer import _check_display

_CHECK = """
from dynaflip.errors import UserError
from dynaflip.eval.envs.mujoco_renderer import _check_display
try:
    _check_display()
except UserError as error:
    print(error)
"""


@pytest.mark.sim
@pytest.mark.parametrize("device", ["99", "gpu"])
def test_a_device_of_another_machine_is_named(device: str) -> None:
    environment = {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl", "MUJOCO_EGL_DEVICE_ID": device}
    done = subprocess.run(
        [sys.executable, "-c", _CHECK],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith(f"MUJOCO_EGL_DEVICE_ID={device}: this machine has no such device")
    assert "Traceback" not in done.stderr


def test_other_renderers_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    _check_display()
