"""The encoder as MLflow serves it: a "model from code", so that nothing is pickled.

MLflow runs this file; :mod:`dynaflip.platform.tracking.registry` names it when it logs a version.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class PyfuncEncoder(PythonModel):
    """Images (B, H, W, 3) or (B, 3, H, W), uint8 or [0, 1] float → (B, D) float32."""

    def load_context(self, context: Any) -> None:
        """Read the encoder's folder (config and safetensors)."""
        from dynaflip.encoders.checkpoint import load_image_encoder

        self.encoder = load_image_encoder(context.artifacts["encoder"]).eval()

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Embed a batch of images."""
        import torch

        with torch.no_grad():
            return self.encoder(torch.from_numpy(np.ascontiguousarray(model_input))).numpy()


set_model(PyfuncEncoder())
