"""Backends: what runs the training loop. Imports neither torch nor Ray."""

from __future__ import annotations

RAY_TRAIN, IN_PROCESS = "ray_train", "in_process"

# Name to what it is, for `jobs/pretrain.py --backend`.
BACKENDS = {
    RAY_TRAIN: "on a Ray cluster or this machine; logged to MLflow and registered",
    IN_PROCESS: "without Ray and MLflow: in one process, or in many under torchrun",
}
