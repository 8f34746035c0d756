"""An encoder's folder that commit e8dc758 wrote loads, with the same features and the same digest.

``made_at_e8dc758/`` is a tiny random DINOv2, saved by that commit's code; its features of the
images below are in ``expected.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dynaflip.encoders.checkpoint import copy_encoder, load_image_encoder, load_model, save_folder
from dynaflip.errors import UserError

FOLDER = Path(__file__).with_name("made_at_e8dc758")
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), dtype=np.uint8)


@pytest.mark.parametrize("load", [load_image_encoder, lambda folder: load_model(folder).image])
def test_an_earlier_folder_gives_the_features_it_gave(load: object) -> None:
    assert callable(load)
    encoder, expected = load(FOLDER), load_file(FOLDER / "expected.safetensors")
    with torch.no_grad():
        # Attention kernels round by where in memory the weights lie.
        torch.testing.assert_close(encoder(IMAGES), expected["embedding"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(encoder.tokens(IMAGES), expected["tokens"], rtol=1e-5, atol=1e-5)
    assert encoder.token_grid == (4, 4)
    assert encoder.info == {"git_commit": "e8dc758", "steps": 0}


def test_saving_it_again_keeps_what_its_digest_is_made_of(tmp_path: Path) -> None:
    """Evaluations are reused by the digest of weights, preprocessing and architecture."""
    again = save_folder(tmp_path / "again", load_model(FOLDER), {})
    before, after = (json.loads((f / "config.json").read_text()) for f in (FOLDER, again))
    for key in ("model", "preprocessing", "text_dim"):
        assert after[key] == before[key], key
    # transformers writes down its own release and where the weights came from.
    volatile = {"transformers_version", "_name_or_path"}
    kept, made = (
        {k: v for k, v in d["image_architecture"].items() if k not in volatile}
        for d in (before, after)
    )
    assert made == kept
    digests = [
        hashlib.sha256((f / "encoder.safetensors").read_bytes()).hexdigest()
        for f in (FOLDER, again)
    ]
    assert digests[0] == digests[1]


def test_weights_of_another_transformers_release_are_named(tmp_path: Path) -> None:
    folder = copy_encoder(FOLDER, tmp_path / "copy")
    described = json.loads((folder / "config.json").read_text())
    described["image_architecture"]["transformers_version"] = "4.1.0"
    described["image_architecture"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"written with transformers 4\.1\.0, and .*--format tra"):
        load_image_encoder(folder)
