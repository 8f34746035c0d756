"""Train a policy of your own on an encoder: frozen features, then the encoder with LoRA.

    python examples/own_policy.py [URI]

The "demonstrations" are made up here: images with a bright square, whose position is the action.
"""

import sys

import torch
from torch import Tensor, nn

import dynaflip
from dynaflip.encoders import finetune


def demonstrations(count: int, px: int = 64) -> tuple[Tensor, Tensor]:
    """Images (N, 3, px, px) uint8 with a square at a random place, and that place (N, 2)."""
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(count, 2, generator=generator)
    images = torch.full((count, 3, px, px), 60, dtype=torch.uint8)
    for image, (row, column) in zip(images, (places * (px - 12)).long(), strict=True):
        image[:, row : row + 12, column : column + 12] = 220
    return images, 2 * places - 1


def main() -> None:
    """Fit both policies and print their errors."""
    uri = sys.argv[1] if len(sys.argv) > 1 else "models:/dynaflip-encoder@candidate"
    encoder = dynaflip.load_encoder(uri)
    images, actions = demonstrations(64)
    torch.manual_seed(0)

    # Frozen: features are computed once.
    with torch.no_grad():
        features = encoder(images)
    norm = nn.BatchNorm1d(encoder.dim)
    head = nn.Sequential(norm, nn.Linear(encoder.dim, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3)
    for _ in range(100):
        loss = (head(features) - actions).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"frozen encoder: training error {loss.item():.4f}")

    # LoRA: the encoder's linear layers learn a low-rank addition.
    trainable = [*finetune.prepare(encoder, "lora"), *head.parameters()]
    optimizer = torch.optim.AdamW(trainable, 1e-3)
    for start in range(0, len(images), 16):
        chosen = slice(start, start + 16)
        loss = (head(encoder(images[chosen])) - actions[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    finetune.fold(encoder)  # an ordinary encoder again
    print(f"with LoRA, after one pass: training error {loss.item():.4f}")


if __name__ == "__main__":
    main()
