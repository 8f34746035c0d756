"""Whether the images of a triplet folder are as large as a training wants them."""

from __future__ import annotations

import json
import shlex
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.config_loader import flatten, to_dict
from dynaflip.platform.training.data.index import TripletIndex
from dynaflip.platform.triplets.config import PreprocessConfig


def check_image_size(index: TripletIndex, image_px: int) -> list[str]:
    """Compare the stored images with the size that the network sees.

    Args:
        index: of the triplets; of a folder that does not say how it was made, nothing is known.
        image_px: side of the network's square image.

    Returns:
        A line for each source whose recordings themselves are smaller.

    Raises:
        UserError: images were stored smaller than that, though recordings may be larger.
    """
    stored_px = index.settings.get("image_px", image_px)
    if stored_px < image_px:
        raise UserError(
            f"model.image.image_px: {image_px}, but {index.folder} stores images of {stored_px} "
            f"pixels (short side), which would be enlarged; store them larger:\n"
            f"    {remake_command(index, image_px)}\n"
            f"or train with --model.image.image_px {stored_px}"
        )
    lines = []
    for source, clips in index.short_sides_px.items():
        smaller = {int(px): number for px, number in clips.items() if int(px) < image_px}
        if smaller:
            share = sum(smaller.values()) / sum(clips.values())
            lines.append(
                f"source {source}: {share:.0%} of the recordings are smaller than the {image_px} "
                f"pixels trained at (short side, as small as {min(smaller)}): their images are "
                f"enlarged"
            )
    return lines


def remake_command(index: TripletIndex, image_px: int) -> str:
    """The command that makes the triplets again with larger images."""
    settings, defaults = flatten(index.settings), flatten(to_dict(PreprocessConfig()))
    words = ["python", "jobs/preprocess.py"]
    if index.settings.get("sources"):
        words += ["--config", "SETTINGS_OF_THIS_MIX.yaml"]
    else:
        for key, value in settings.items():
            if key != "image_px" and value != defaults.get(key, value):
                words += ["--source" if key == "source.path" else f"--{key}", _word(value)]
    words += ["--output", index.folder, "--image_px", str(image_px)]
    return shlex.join(words)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return json.dumps(value)
    return str(value)
