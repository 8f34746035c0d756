"""Frozen blocks and recomputed activations of plain and of hierarchical networks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynaflip.encoders.backbones.block_order import freeze_first_blocks, repeated_blocks
from dynaflip.encoders.backbones.transformers_vision import TransformersBackbone
from dynaflip.encoders.config import ImageConfig
from dynaflip.encoders.image import build_image_encoder
from dynaflip.errors import UserError

PX = 64
PLAIN = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
PLAIN |= {"image_size": PX, "patch_size": 16}
WIDTHS = {"hidden_sizes": [8, 8, 8, 8], "depths": [2, 1, 3, 1]}
# Model to its settings and its number of blocks.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "Swin": ({"embed_dim": 4, "depths": [2, 1, 3, 1], "num_heads": [1, 2, 2, 2]}, 7),
    "ConvNext": (WIDTHS, 7),
    "ResNet": ({**WIDTHS, "embedding_size": 4, "layer_type": "basic"}, 7),
    "RegNet": ({**WIDTHS, "embedding_size": 4, "groups_width": 4}, 7),
    "Pvt": ({**WIDTHS, "num_attention_heads": [1, 1, 2, 2], "image_size": PX}, 7),
    "EfficientNet": ({"width_coefficient": 0.1, "depth_coefficient": 0.5, "hidden_dim": 128}, 10),
    "Dinov2": (PLAIN, 3),
    "CLIPVision": ({**PLAIN, "intermediate_size": 8}, 3),
    "SiglipVision": ({**PLAIN, "intermediate_size": 8}, 3),
}


def saved(kind: str, folder: Path) -> Path:
    """A model's folder, of its configuration and random weights."""
    import transformers

    settings, _ = MODELS[kind]
    if kind == "Swin":
        settings = settings | {"image_size": PX, "window_size": 2}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    return folder


def encoder_of(kind: str, folder: Path, **settings: Any) -> Any:
    return build_image_encoder(ImageConfig(name=str(folder), image_px=PX, **settings))


def order_of_use(network: nn.Module, blocks: list[nn.Module]) -> list[nn.Module]:
    used: list[nn.Module] = []
    hooks = [b.register_forward_pre_hook(lambda m, args: used.append(m)) for b in blocks]
    network(torch.zeros(1, 3, PX, PX))
    for hook in hooks:
        hook.remove()
    return used


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_all_that_comes_before_the_first_trained_block_is_frozen(
    kind: str, share: float, tmp_path: Path
) -> None:
    folder, (_, number) = saved(kind, tmp_path / kind), MODELS[kind]
    frozen = max(1, round(share * number))
    encoder = encoder_of(kind, folder, frozen_blocks=frozen).eval()
    blocks = list(encoder.backbone.blocks())
    assert len(blocks) == number
    used = order_of_use(encoder.backbone, blocks)
    assert sorted(map(id, used)) == sorted(map(id, blocks)), "each block runs once"
    for place, block in enumerate(used):
        learns = {parameter.requires_grad for parameter in block.parameters()}
        assert learns == {place >= frozen}, place
    # Nothing before the border asks for a gradient, so autograd keeps nothing of it.
    inputs: list[bool] = []
    border = used[frozen] if frozen < number else used[-1]
    border.register_forward_pre_hook(lambda m, args: inputs.append(args[0].requires_grad))
    encoder.backbone(torch.zeros(1, 3, PX, PX))
    assert inputs == [False]


@pytest.mark.parametrize("kind", ["Swin", "ConvNext", "ResNet", "CLIPVision"])
def test_recomputed_activations_keep_less_and_change_no_gradient(kind: str, tmp_path: Path) -> None:
    plain = encoder_of(kind, saved(kind, tmp_path / kind), frozen_blocks=1).eval()
    thrifty = copy.deepcopy(plain)
    thrifty.recompute_activations()
    inside = [dict.fromkeys(("saved", "calls"), 0) for _ in range(2)]
    for encoder, counts in zip((plain, thrifty), inside, strict=True):
        trained = list(encoder.backbone.blocks())[1:]
        for block in trained:
            first = next(m for m in block.modules() if not list(m.children()))
            first.register_forward_pre_hook(
                lambda m, args, counts=counts: counts.update(calls=counts["calls"] + 1)
            )

        def count(tensor: Tensor, counts: dict[str, int] = counts) -> Tensor:
            counts["saved"] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out, _ = encoder.features(torch.ones(2, 3, PX, PX))
        out.square().sum().backward()
    assert inside[1]["saved"] < inside[0]["saved"]
    assert inside[1]["calls"] == 2 * inside[0]["calls"], "every trained block once more"
    for (name, a), b in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=name)


class Twice(nn.Module):
    """Runs one of its blocks twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](self.layers[1](self.layers[0](x)))


def test_a_network_without_a_first_block_is_refused() -> None:
    network = Twice()
    with pytest.raises(UserError, match=r"frozen_blocks: Twice does not run each .* once"):
        freeze_first_blocks(network, 1, lambda: network(torch.zeros(1, 2)))
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert repeated_blocks(nn.Linear(2, 2)) == []


def test_activations_of_no_blocks_cannot_be_recomputed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of("Dinov2", saved("Dinov2", tmp_path / "model"))
    monkeypatch.setattr(TransformersBackbone, "blocks", lambda self: nn.ModuleList())
    with pytest.raises(UserError, match=r"train\.activation_checkpointing: .* names no blocks"):
        encoder.recompute_activations()
