"""Captions of clips without one, by a captioning model; transformers' is the built-in one.

The model sees the clip's first, middle and last frame side by side. Captions are cached by content
(model, prompt, clip), so that no clip is captioned twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.files import write_file
from dynaflip.platform.paths import captions_folder
from dynaflip.platform.triplets.clips import Clip, ClipRejected, Frames, Recording, content_hash
from dynaflip.platform.triplets.models import Captioner

_SHORT_SIDE_PX = 224
_MAX_TOKENS = 32
_CHUNK_BYTES = 1 << 22
# Captions that no captioner makes.
_GIVEN = ("source", "template")


def is_captioned(clip: Clip) -> bool:
    """Whether a clip's caption is a captioner's, by its ``caption_kind``."""
    return clip.caption_kind not in _GIVEN


def needs_caption(clip: Clip) -> bool:
    """Whether a clip waits for a captioner."""
    return clip.problem is None and not clip.captions and is_captioned(clip)


def with_caption(clip: Clip, recording: Recording, captioner: Captioner, digest: str) -> Clip:
    """The clip with a caption: the cached one, or a new one.

    Args:
        clip: without caption.
        recording: of the clip.
        captioner: asked with the clip's prompt.
        digest: tells its captions from those of other models.

    Raises:
        ClipRejected: the clip cannot be read, or the caption is empty.
    """
    key = content_hash(digest, clip.captioner_prompt, clip.clip_id)
    cached = captions_folder() / key[:2] / f"{key}.txt"
    try:
        caption = cached.read_text()
    except FileNotFoundError:
        caption = captioner.describe(_side_by_side(recording), clip.captioner_prompt)
        write_file(cached, caption)
    if not caption:
        raise ClipRejected("caption", f"the caption of {clip.caption_kind} is empty")
    return replace(clip, captions=(caption,))


def _side_by_side(recording: Recording) -> Frames:
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
        import torch
        from PIL import Image

        pixels = Image.fromarray(image)
        if getattr(self.processor, "chat_template", None):
            question = [{"type": "image", "image": pixels}, {"type": "text", "text": prompt}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": question}],
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
        text = self.processor.batch_decode(tokens, skip_special_tokens=True)[0]
        return " ".join(text.split())


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
