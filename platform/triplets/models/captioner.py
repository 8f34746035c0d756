"""Captions of clips without one, by a captioning model; transformers' is the built-in one.

The model sees the clip's first, middle and last frame side by side. Captions are cached by content
(model, prompt, clip), so that no clip is captioned twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.files import write_file
from dynaflip.platform.paths import captions_folder
from dynaflip.platform.triplets.clips import (
    Clip,
    ClipRejected,
    Frames,
    Recording,
    content_hash,
    holds_a_word,
    printable,
)
from dynaflip.platform.triplets.models import Captioner
from dynaflip.platform.triplets.user_models import asked

_SHORT_SIDE_PX = 224
_MAX_TOKENS = 32
_CHUNK_BYTES = 1 << 22
# Captions that no captioner makes.
_GIVEN = ("source", "template")


def is_captioned(clip: Clip) -> bool:
    """True where a clip's caption is a captioner's, by its ``caption_kind``."""
    return clip.caption_kind not in _GIVEN


def needs_caption(clip: Clip) -> bool:
    """True where a clip waits for a captioner."""
    return clip.problem is None and not clip.captions and is_captioned(clip)


@dataclass(frozen=True)
class LoadedCaptioner:
    """A captioner and the digest that its cached captions are found by."""

    model: Captioner
    digest: str


def caption_clips(
    clips: Sequence[Clip], shown: Sequence[Frames], captioner: LoadedCaptioner
) -> list[Clip]:
    """Clips with a caption: the cached one, or a new one.

    Args:
        clips: without caption.
        shown: :func:`side_by_side` of each.
        captioner: asked with the clips' own prompts.

    Raises:
        ClipRejected: the captioner failed, or a caption holds no word or half characters.
    """
    files = [_cached(clip, captioner.digest) for clip in clips]
    captions = {n: file.read_text() for n, file in enumerate(files) if file.exists()}
    new = [n for n in range(len(clips)) if n not in captions]
    if new:
        prompts = [clips[n].captioner_prompt for n in new]
        said = _describe_all(captioner.model, [shown[n] for n in new], prompts)
        for n, caption in zip(new, said, strict=True):
            write_file(files[n], caption)
            captions[n] = caption
    for n, clip in enumerate(clips):
        if not holds_a_word(captions[n]):
            reason = f"the caption {captions[n]!r} of {clip.caption_kind} holds no word"
            raise ClipRejected("caption", reason)
    return [replace(clip, captions=(captions[n],)) for n, clip in enumerate(clips)]


def _cached(clip: Clip, digest: str) -> Path:
    key = content_hash(digest, clip.captioner_prompt, clip.clip_id)
    return captions_folder() / key[:2] / f"{key}.txt"


def _describe_all(model: Captioner, images: list[Frames], prompts: list[str]) -> list[str]:
    name = type(model).__name__
    several = getattr(model, "describe_all", None)
    said = asked(
        "caption",
        name,
        lambda: (
            several(images, prompts)
            if several
            else [model.describe(*one) for one in zip(images, prompts, strict=True)]
        ),
    )
    if not isinstance(said, list) or len(said) != len(images):
        given = f"{len(said)} captions" if isinstance(said, list) else f"a {type(said).__name__}"
        raise ClipRejected("caption", f"{name} gave {given} where a list of {len(images)} is due")
    for caption in said:
        if not isinstance(caption, str):
            raise ClipRejected("caption", f"{name} gave a {type(caption).__name__}, not a caption")
        if caption != printable(caption):
            reason = f"{name} gave a caption that is not Unicode: it holds half characters"
            raise ClipRejected("caption", reason)
    return said


def side_by_side(recording: Recording) -> Frames:
    """(H, W, 3) uint8: a clip's first, middle and last frame.

    Raises:
        ClipRejected: it cannot be read.
    """
    count = len(recording.times_s())
    if not count:
        raise ClipRejected("decode", "the clip has no frame")
    indices = sorted({0, count // 2, count - 1})
    return np.concatenate(list(recording.read_frames(indices, _SHORT_SIDE_PX)), axis=1)


class TransformersCaptioner:
    """An image-text-to-text model of transformers on this process's CPU or GPU.

    Args:
        name: folder or hub id, which may name a revision (``OWNER/NAME@REVISION``); weights
            are read from safetensors alone.

    ``digest`` tells its captions from those of other models.
    """

    @staticmethod
    def check(name: str) -> None:
        """Raise UserError for what is neither a folder nor a hub id of a captioner."""
        from transformers import AutoModelForImageTextToText

        from dynaflip.encoders.hub import check_model

        check_model("source.captioner: ", name, AutoModelForImageTextToText, "captioner")

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from dynaflip.encoders import hub

        torch.set_num_threads(1)  # one CPU an actor
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        name = hub.pinned(name)
        folder = hub.local_folder(name)
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True)
        self.model = model.to(self.device).eval()
        self.digest = _digest(name)

    def describe(self, image: Frames, prompt: str) -> str:
        """One line about an (H, W, 3) RGB image, decoded greedily, so always the same.

        ``prompt`` is for models that can chat; others just describe.
        """
        return self._describe_alike([image], prompt)[0]

    def describe_all(self, images: Sequence[Frames], prompts: Sequence[str]) -> list[str]:
        """As :meth:`describe`, of several at once where they have one size and one prompt."""
        alike: dict[tuple[tuple[int, ...], str], list[int]] = {}
        for n, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            alike.setdefault((image.shape, prompt), []).append(n)
        captions: dict[int, str] = {}
        for (_, prompt), numbers in alike.items():
            said = self._describe_alike([images[n] for n in numbers], prompt)
            captions.update(zip(numbers, said, strict=True))
        return [captions[n] for n in range(len(images))]

    def _describe_alike(self, images: Sequence[Frames], prompt: str) -> list[str]:
        """Captions of images of one size: their inputs are equally long, so none is padded."""
        import torch
        from PIL import Image

        pixels = [Image.fromarray(image) for image in images]
        if getattr(self.processor, "chat_template", None):
            asked_for = {"type": "text", "text": prompt}
            inputs = self.processor.apply_chat_template(
                [
                    [{"role": "user", "content": [{"type": "image", "image": one}, asked_for]}]
                    for one in pixels
                ],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            inputs = self.processor(images=pixels, return_tensors="pt")
        inputs = inputs.to(self.device)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=_MAX_TOKENS, do_sample=False)
        if "input_ids" in inputs:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]  # without the prompt
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def _digest(name: str) -> str:
    """Digest of a model's files, or its pinned hub id."""
    folder = Path(name)
    if not folder.is_dir():
        base, _, commit = name.partition("@")
        return content_hash(base, commit)
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
