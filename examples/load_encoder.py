"""Load an encoder and compute features and spatial tokens of camera images.

    python examples/load_encoder.py [URI]

URI is an encoder folder or a registered version; by default the candidate of `make demo`.
"""

import sys

import numpy as np
import torch

import dynaflip


def main() -> None:
    """Embed two random images and print the shapes."""
    uri = sys.argv[1] if len(sys.argv) > 1 else "models:/dynaflip-encoder@candidate"
    encoder = dynaflip.load_encoder(uri)
    images = np.random.default_rng(0).integers(0, 256, (2, 128, 160, 3), dtype=np.uint8)
    with torch.no_grad():
        features = encoder(images)  # (B, D)
        tokens = encoder.tokens(images)  # (B, P, D'), row-major
    print(f"features {tuple(features.shape)}, tokens {tuple(tokens.shape)}")
    print(
        f"trained for {encoder.info.get('steps')} steps at commit {encoder.info.get('git_commit')}"
    )


if __name__ == "__main__":
    main()
