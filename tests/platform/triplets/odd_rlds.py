"""RLDS records of odd kinds, written without TensorFlow.

Step k's image has the brightness 20 + 8 k, see :mod:`odd_lerobot`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from odd_lerobot import LFS, brightness, png

from dynaflip.platform.triplets.sources.crc32c import masked_crc32c

STEPS = 12
IMAGE = "steps/observation/image"
INSTRUCTION = "steps/language_instruction"
Features = dict[str, Any]


def varint(n: int) -> bytes:
    out = b""
    while True:
        n, low = n >> 7, n & 0x7F
        out += bytes([low | (0x80 if n else 0)])
        if not n:
            return out


def _field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(features: Features) -> bytes:
    """A serialised tf.train.Example of lists of bytes, and arrays of floats or integers."""
    out = b""
    for name, values in features.items():
        if isinstance(values, list):
            feature = _field(1, b"".join(_field(1, one) for one in values))
        elif np.asarray(values).dtype.kind == "f":
            feature = _field(2, _field(1, np.asarray(values, "<f4").tobytes()))
        else:
            feature = _field(3, _field(1, b"".join(varint(int(n)) for n in np.ravel(values))))
        out += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, out)


def records(*several: bytes) -> bytes:
    """The bytes of a TFRecord file."""
    out = b""
    for data in several:
        size = len(data).to_bytes(8, "little")
        out += size + masked_crc32c(size).to_bytes(4, "little")
        out += data + masked_crc32c(data).to_bytes(4, "little")
    return out


def encoded(frames: np.ndarray) -> list[bytes]:
    """Images that differ from step to step, small and lossless."""
    return [png(frame) for frame in frames]


def sound() -> Features:
    """An episode with nothing odd about it."""
    return {
        IMAGE: encoded(brightness(STEPS)),
        "steps/language_instruction": [b"open it"] * STEPS,
        "steps/is_first": np.r_[1, np.zeros(STEPS - 1, int)],
        "steps/reward": np.zeros(STEPS, np.float32),
    }


def stacked(back: tuple[int, ...], ragged: bool = False, counted: bool = True) -> Features:
    """Each step holds past images, in this order."""
    episode = sound()
    images = episode.pop(IMAGE)
    rows = [[images[k - b] if k >= b else images[0] for b in back] for k in range(STEPS)]
    flat = [image for row in rows for image in row]
    episode[f"{IMAGE}/ragged_flat_values" if ragged else IMAGE] = flat
    if ragged:
        episode[f"{IMAGE}/ragged_row_lengths_0"] = np.full(STEPS, len(back))
    if not counted:
        del episode["steps/is_first"], episode["steps/reward"]
    return episode


def growing() -> Features:
    """Ragged stacks of one image at first, then two, then three."""
    episode = sound()
    images = episode.pop(IMAGE)
    rows = [images[max(0, k - 2) : k + 1] for k in range(STEPS)]
    episode[f"{IMAGE}/ragged_flat_values"] = [image for row in rows for image in row]
    episode[f"{IMAGE}/ragged_row_lengths_0"] = np.array([len(row) for row in rows])
    return episode


def changed(**values: Any) -> Features:
    """A sound episode with other features; None leaves one out. ``__`` stands for ``/``."""
    episode = sound() | {name.replace("__", "/"): value for name, value in values.items()}
    return {name: value for name, value in episode.items() if value is not None}


def views() -> Features:
    """Each step holds images of three cameras at once."""
    episode = sound()
    images = episode[IMAGE]
    others = [png(255 - frame) for frame in brightness(STEPS)]
    episode[IMAGE] = [image for k in range(STEPS) for image in (images[k], others[k], others[0])]
    return episode


def phrased(lengths: list[int]) -> Features:
    """So many phrasings a step, ragged; those of step k end in k."""
    episode = sound()
    del episode[INSTRUCTION]
    texts = [
        b"open it" if not step and not n else f"phrasing {n} of {step}".encode()
        for step, length in enumerate(lengths)
        for n in range(length)
    ]
    episode[f"{INSTRUCTION}/ragged_flat_values"] = texts
    episode[f"{INSTRUCTION}/ragged_row_lengths_0"] = np.array(lengths)
    return episode


def wrong_lengths() -> Features:
    episode = stacked((2, 1, 0), ragged=True)
    episode[f"{IMAGE}/ragged_row_lengths_0"] = np.full(STEPS, 2)
    return episode


def without_image(step: int) -> Features:
    episode = sound()
    episode[IMAGE] = [b"" if k == step else image for k, image in enumerate(episode[IMAGE])]
    return episode


def deep() -> Features:
    images = [cv2.imencode(".png", f[..., 0].astype(np.uint16) * 99)[1] for f in brightness(STEPS)]
    return changed(**{IMAGE.replace("/", "__"): [image.tobytes() for image in images]})


# Kind → features, and what is said of it: "" where it is read.
KINDS: dict[str, tuple[Callable[[], Features], str]] = {
    "nothing odd": (sound, ""),
    "stack of past images": (lambda: stacked((2, 1, 0)), ""),
    "stack with the newest first": (lambda: stacked((0, 1, 2)), ""),
    "stack without counted steps": (lambda: stacked((2, 1, 0), counted=False), ""),
    "ragged stack": (lambda: stacked((2, 1, 0), ragged=True), ""),
    "ragged stack of one": (lambda: stacked((0,), ragged=True), ""),
    "ragged stack that grows": (growing, ""),
    "ragged lengths of another sum": (wrong_lengths, "lengths of its steps add up to 24"),
    "ragged without lengths": (
        lambda: {k: v for k, v in stacked((1, 0), ragged=True).items() if "row_lengths" not in k},
        "without one length a step",
    ),
    "several views a step": (views, "no window over time"),
    "images for other steps": (
        lambda: changed(**{IMAGE.replace("/", "__"): encoded(brightness(STEPS - 1))}),
        "11 images in steps/observation/image, but 12 steps",
    ),
    "two numbers of steps": (
        lambda: changed(steps__reward=np.zeros(STEPS - 2, np.float32)),
        "is_first 12, reward 10",
    ),
    "instructions for other steps": (
        lambda: changed(steps__language_instruction=[b"open it"] * 4 + [b"close it"] * 3),
        "7 instructions in steps/language_instruction, but 12 steps",
    ),
    "one instruction": (lambda: changed(steps__language_instruction=[b"open it"]), ""),
    "two phrasings a step": (
        lambda: changed(steps__language_instruction=[b"open it", b"pull it open"] * STEPS),
        "",
    ),
    "ragged phrasings": (lambda: phrased([1, 2, 3] * 4), ""),
    "as many ragged phrasings as steps": (
        lambda: phrased([2, 0] * 6),
        r"step \d+ has no instruction",
    ),
    "ragged phrasings of other steps": (
        lambda: phrased([2] * 6),
        "6 rows of instructions in steps/language_instruction, but 12 steps",
    ),
    "ragged phrasings of another sum": (
        lambda: phrased([1] * 12) | {f"{INSTRUCTION}/ragged_row_lengths_0": np.full(12, 2)},
        "lengths of its steps add up to 24",
    ),
    "ragged phrasings without counted steps": (
        lambda: (
            {
                name: values
                for name, values in (stacked((2, 1, 0), counted=False) | phrased([3] * 12)).items()
                if name not in (IMAGE, "steps/is_first", "steps/reward")
            }
            | {IMAGE: stacked((2, 1, 0))[IMAGE]}
        ),
        "",
    ),
    "a step without its instruction": (
        lambda: changed(steps__language_instruction=[b"open it"] * 5 + [b""] + [b"close it"] * 6),
        "step 5 has no instruction, and those of other steps differ",
    ),
    "a step without the only instruction": (
        lambda: changed(steps__language_instruction=[b"open it"] * 5 + [b""] + [b"open it"] * 6),
        "",
    ),
    "numbers longer than an image": (
        lambda: changed(steps__observation__state=np.ones(70_000, np.float32)),
        "",
    ),
    "bytes longer than an image": (
        lambda: changed(steps__observation__sound=[bytes(30_000)] * STEPS),
        "",
    ),
    "long images": (
        lambda: changed(**{IMAGE.replace("/", "__"): [i + bytes(30_000) for i in sound()[IMAGE]]}),
        "",
    ),
    "phrasings of the episode": (
        lambda: changed(
            steps__language_instruction=None,
            episode_metadata__language_instruction=[b"open it", b"pull it open"],
        ),
        "",
    ),
    "an instruction not UTF-8": (
        lambda: changed(steps__language_instruction=[b"ouvrir \xe9"] * STEPS),
        "no instruction",
    ),
    "no instruction": (lambda: changed(steps__language_instruction=None), "no instruction"),
    "a step without image": (lambda: without_image(5), "no image at step 5"),
    "images of 16-bit grey": (deep, "no feature of steps/ holds"),
    "raw pixels": (
        lambda: changed(**{IMAGE.replace("/", "__"): [bytes(4608)] * STEPS}),
        "no feature of steps/ holds JPEG or PNG images .it has .*steps/observation/image",
    ),
    "no images": (lambda: changed(**{IMAGE.replace("/", "__"): None}), "no camera"),
    "images beside the steps": (
        lambda: changed(image=sound()[IMAGE], **{IMAGE.replace("/", "__"): None}),
        "no camera",
    ),
}

# Kind → bytes of the file, and what is said of it.
FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a pointer": (lambda data: LFS.encode(), "Git LFS pointer"),
    "gzip": (gzip.compress, "gzip"),
    "zlib": (zlib.compress, "zlib"),
    "a web page": (lambda data: b"<html>404</html>", "a web page"),
    "a store's error": (lambda data: b"<?xml version='1.0'?><Error/>", "XML"),
    "a tar archive": (lambda data: bytes(257) + b"ustar" + bytes(300), "tar archive"),
    "zeros": (lambda data: bytes(5000), "all zeros|not a tf.train.Example|damaged"),
    "nothing": (lambda data: b"", "empty"),
    "cut": (lambda data: data[:-40], "truncated"),
    "a flipped byte": (
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        "checksum|not a tf.train.Example",
    ),
    "a flipped length": (lambda data: bytes([data[0] ^ 1]) + data[1:], "length at byte 0"),
    "a record that is no example": (lambda data: records(b"hello"), "not a tf.train.Example"),
    "an empty record": (lambda data: records(b""), "not a tf.train.Example|no camera"),
}


def write(root: Path, data: bytes, name: str = "bridge-train.tfrecord-00000-of-00001") -> Path:
    """A data set of one file."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
    return root


def features_json(length: int | None = None) -> str:
    """What TFDS says of the images: of a stack of so many, or one a step."""
    image: dict[str, Any] = {"pythonClassName": "…Image", "image": {"dtype": "uint8"}}
    if length is not None:
        image = {"pythonClassName": "…Sequence", "sequence": {"feature": image, "length": length}}
    observation = {"featuresDict": {"features": {"image": image}}}
    step = {"featuresDict": {"features": {"observation": observation}}}
    return json.dumps({"featuresDict": {"features": {"steps": {"sequence": {"feature": step}}}}})
