"""The flow encoder: the motion of a grid of scene points over K steps → one vector.

DynaFLIP (arXiv 2605.30350): per step a 4-layer CNN over the 20×20×3 grid; a 4-layer
transformer over the K steps with the frame's embedding prepended as condition token, under
stop-gradient, or the flow branch would leak the image; a learned temporal CLS token.
Shapes: B examples, K steps, G×G grid points, D frame embedding, W tokens, E shared space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynaflip.encoders.config import FlowConfig


class FlowEncoder(nn.Module):
    """Visibility-aware encoder of 3D flow."""

    def __init__(self, config: FlowConfig, condition_dim: int, out_dim: int) -> None:
        super().__init__()
        self.config = config
        self.grid_cnn = _grid_cnn(config)
        self.condition_norm = nn.LayerNorm(condition_dim)
        self.condition = nn.Linear(condition_dim, config.width)
        if not config.condition:  # never read: DDP would wait for gradients
            self.condition_norm.requires_grad_(False)
            self.condition.requires_grad_(False)
        self.temporal_cls = nn.Parameter(torch.randn(config.width) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.steps + 2, config.width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.transformer = nn.TransformerEncoder(
            layer, config.layers, nn.LayerNorm(config.width), enable_nested_tensor=False
        )
        self.out = nn.Linear(config.width, out_dim)

    def forward(
        self, origin: Tensor, displacement: Tensor, visible: Tensor, condition: Tensor
    ) -> Tensor:
        """(B, E), not normalised.

        Args:
            origin: (B, G, G, 3) points at frame t, camera frame of t, in median depths.
            displacement: (B, K, G, G, 3) from there, same frame and unit.
            visible: (B, K, G, G) bool; values of invisible points are not read.
            condition: (B, D) embedding of frame t; no gradient goes back into it.
        """
        num_examples, num_steps = visible.shape[:2]
        assert num_steps == self.config.steps, (num_steps, self.config.steps)
        channels = self._channels(origin, displacement, visible)
        steps = self.grid_cnn(channels.flatten(0, 1)).view(num_examples, num_steps, -1)
        cls = self.temporal_cls.expand(num_examples, 1, -1)
        frame = self.condition(self.condition_norm(condition.detach())).unsqueeze(1)
        if not self.config.condition:
            frame = torch.zeros_like(frame)
        elif self.training and self.config.condition_dropout > 0:
            draw = torch.rand(num_examples, 1, 1, device=frame.device)
            frame = frame * (draw >= self.config.condition_dropout)
        tokens = torch.cat([cls, frame, steps], 1) + self.positions
        return self.out(self.transformer(tokens)[:, 0])

    def _channels(self, origin: Tensor, displacement: Tensor, visible: Tensor) -> Tensor:
        """Input of the CNN: (B, K, C, G, G)."""
        seen = visible.unsqueeze(-1)
        # Selection, not multiplication: invisible points may hold NaN.
        displacement = torch.where(seen, displacement, 0.0)
        position = torch.where(seen, origin.unsqueeze(1) + displacement, 0.0)
        parts = [seen.to(displacement.dtype)]
        if self.config.inputs in ("positions", "both"):
            parts.append(position)
        if self.config.inputs in ("displacements", "both"):
            parts.append(displacement * self.config.displacement_gain)
        return torch.cat(parts, -1).permute(0, 1, 4, 2, 3)


def _grid_cnn(config: FlowConfig) -> nn.Sequential:
    """(B·K, C, G, G) → (B·K, W): strided after the first layer, then pooled to 2×2.

    Pooled to 2×2 and not to a point, which would lose where the motion is.
    """
    channels = 7 if config.inputs == "both" else 4
    width = config.channels
    layers: list[nn.Module] = []
    for layer in range(config.cnn_layers):
        out = min(width * 2**layer, config.width)
        groups = 8 if out % 8 == 0 else 1
        layers += [
            nn.Conv2d(channels, out, 3, stride=1 if layer == 0 else 2, padding=1),
            nn.GroupNorm(groups, out),
            nn.GELU(),
        ]
        channels = out
    pool = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, config.width)]
    return nn.Sequential(*layers, *pool)
