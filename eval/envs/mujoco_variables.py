"""Which renderer MuJoCo takes. Imports nothing, so that specifications are read quickly."""

from __future__ import annotations

import os


def worker_variables() -> dict[str, str]:
    """Environment variables of a process that renders: EGL, unless another renderer is chosen."""
    renderer = os.environ.get("MUJOCO_GL", "egl")
    return {
        "MUJOCO_GL": renderer,
        "PYOPENGL_PLATFORM": os.environ.get("PYOPENGL_PLATFORM", renderer),
    }
