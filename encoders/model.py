"""DynaFLIP's three towers and heads (arXiv 2605.30350).

f image, h language, g flow; Π(v) = v / ‖v‖:
z_I = Π(fuse(f(I_{t+H}) − f(I_t))), z_L = Π(adapter(h(L))), z_F = Π(g(flow; f(I_t) stopped)).
Shapes: B examples, H×W pixels, D frame embedding, E shared space, K steps, G×G grid points.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynaflip.encoders.config import ModelConfig
from dynaflip.encoders.flow import FlowEncoder
from dynaflip.encoders.image import ImageEncoder, build_image_encoder
from dynaflip.encoders.language import language_dim

# Images of an example: the transition's two, and a later one of the clip.
FRAMES = ("t", "next", "far")


def _mlp(dim_in: int, hidden: int, dim_out: int) -> nn.Sequential:
    """Normalise, one hidden layer. LayerNorm first: backbones differ in scale by decades."""
    return nn.Sequential(
        nn.LayerNorm(dim_in), nn.Linear(dim_in, hidden), nn.GELU(), nn.Linear(hidden, dim_out)
    )


class DynaFLIP(nn.Module):
    """The pretrained model; its ``image`` is the encoder for use.

    The frozen language encoder is not inside: captions come as features, each embedded once.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        image: ImageEncoder | None = None,
        text_dim: int | None = None,
    ) -> None:
        """Build the towers.

        Args:
            config: the settings.
            image: an image encoder to use instead of building one.
            text_dim: D_text; by default looked up from the language settings.

        Raises:
            UserError: a model that the settings name cannot be reached.
        """
        super().__init__()
        self.config = config
        # Frames that gradients may reach; the others' embeddings are there to be looked at, and
        # cost a forward pass alone. For whoever knows the objective to narrow.
        self.learnt_frames: tuple[str, ...] = FRAMES
        self.text_dim = text_dim if text_dim is not None else language_dim(config.language)
        self.image = image if image is not None else build_image_encoder(config.image)
        dim, hidden = self.image.dim, config.hidden_dim
        self.fuse = _mlp(dim, hidden, config.embedding_dim)
        self.adapter = _mlp(self.text_dim, hidden, config.embedding_dim)
        self.flow = FlowEncoder(config.flow, dim, config.embedding_dim)
        seen = dim + (self.text_dim if config.flow_head_language else 0)
        self.flow_head = _mlp(seen, hidden, config.flow.steps * config.flow.grid**2 * 3)
        # Start from predicting no motion, the right answer for most points.
        last = self.flow_head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings and predictions of a batch.

        Args:
            batch: image_t, image_next, and image_far unless no loss term reads it (B, 3, H, W)
                uint8; text_features
                (B, D_text); flow_origin_m (B, G, G, 3), flow_displacement_m (B, K, G, G, 3)
                metres in the camera frame of t; flow_visible (B, K, G, G) bool;
                median_depth_m (B,).

        Returns:
            z_image, z_language, z_flow (B, E) of unit norm; d_t, d_next, and d_far where there is
            an image_far (B, D);
            flow_prediction (B, K, G, G, 3) displacements in median depths.
        """
        return self.heads(*self.embed_frames(batch), batch)

    def embed_frames(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """d_t, d_next, d_far (B, D) of the images of a batch, as of :meth:`forward`."""
        embeddings = self._embed(batch, self.learnt_frames)
        others = (name for name in FRAMES if name not in self.learnt_frames)
        with torch.no_grad():
            embeddings |= self._embed(batch, tuple(n for n in others if f"image_{n}" in batch))
        return embeddings["t"], embeddings["next"], embeddings.get("far")

    def _embed(self, batch: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
        if not names:
            return {}
        # One call: a backbone is most efficient on many images.
        images = torch.cat([batch[f"image_{name}"] for name in names])
        embeddings, _ = self.image.features(self.image.preprocess(images))
        return dict(zip(names, embeddings.chunk(len(names)), strict=True))

    def heads(
        self, d_t: Tensor, d_next: Tensor, d_far: Tensor | None, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Outputs of :meth:`forward`, computed from the frames' embeddings, each (B, D)."""
        depth_m = batch["median_depth_m"]
        outputs = {
            "z_image": self.encode_transition(d_t, d_next),
            "z_language": self.encode_language(batch["text_features"]),
            "z_flow": self.encode_flow(
                batch["flow_origin_m"] / depth_m.view(-1, 1, 1, 1),
                batch["flow_displacement_m"] / depth_m.view(-1, 1, 1, 1, 1),
                batch["flow_visible"],
                d_t,
            ),
            "d_t": d_t,
            "d_next": d_next,
            "flow_prediction": self.predict_flow(d_t, batch["text_features"]),
        }
        return outputs if d_far is None else {**outputs, "d_far": d_far}

    def encode_transition(self, d_t: Tensor, d_next: Tensor) -> Tensor:
        """z_I of two frames' embeddings: two (B, D) → (B, E).

        The difference makes it motion and not appearance.
        """
        return _unit(self.fuse(d_next - d_t))

    def encode_language(self, text_features: Tensor) -> Tensor:
        """z_L of caption features: (B, D_text) → (B, E)."""
        return _unit(self.adapter(text_features))

    def encode_flow(
        self, origin: Tensor, displacement: Tensor, visible: Tensor, condition: Tensor
    ) -> Tensor:
        """z_F of flow: (B, E).

        Args:
            origin: (B, G, G, 3) in median depths, camera frame of t.
            displacement: (B, K, G, G, 3) in median depths, same frame.
            visible: (B, K, G, G) bool.
            condition: (B, D) embedding of frame t; gradient stops here.
        """
        return _unit(self.flow(origin, displacement, visible, condition))

    def predict_flow(self, d_t: Tensor, text_features: Tensor) -> Tensor:
        """Displacements foreseen from frame t: (B, K, G, G, 3) in median depths.

        ``text_features`` (B, D_text) is read with the setting ``flow_head_language`` only.
        """
        seen = torch.cat([d_t, text_features], -1) if self.config.flow_head_language else d_t
        flow = self.config.flow
        return self.flow_head(seen).view(-1, flow.steps, flow.grid, flow.grid, 3)


def _unit(x: Tensor) -> Tensor:
    """Π: the direction of each row, in at least float32."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(x.float() if x.dtype != torch.float64 else x, dim=-1)
