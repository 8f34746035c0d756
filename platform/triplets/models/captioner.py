"""Captions of clips that came without, by a transformers image-text-to-text model.

The model sees the clip's first, middle and last image side by side. What it said of a
clip is kept by content (model, prompt, clip), so that no clip is captioned twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.encoders.hub import check_model
from dynaflip.files import write_file
from dynaflip.platform.paths import captions_folder
from dynaflip.platform.triplets.clips import Clip, ClipRejected, Frames, Recording, content_hash

# How a clip's `caption_kind` says who captioned it.
KIND = "model:"
_SHORT_SIDE_PX = 224
_MAX_TOKENS = 32
_CHUNK_BYTES = 1 << 22


def needs_caption(clip: Clip) -> bool:
    """Whether a clip waits for a captioner."""
    return clip.problem is None and not clip.captions and clip.caption_kind.startswith(KIND)


def check_captioner(name: str) -> None:
    """Refuse early what is neither a folder nor a hub id of a captioner.

    Raises:
        UserError: says what was looked for.
    """
    from transformers import AutoModelForImageTextToText

    check_model("source.captioner: ", name, AutoModelForImageTextToText, "captioner")


class Captioner:
    """A captioning model on this process's CPU or GPU."""

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        torch.set_num_threads(1)  # one CPU an actor
        self.name = name
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor: Any = AutoProcessor.from_pretrained(name)
        model: Any = AutoModelForImageTextToText.from_pretrained(name)
        self.model = model.to(self.device).eval()
        self.digest = _digest(name, self.model)

    def captioned(self, clip: Clip, recording: Recording) -> Clip:
        """The clip with a caption: the one that is kept, or a new one.

        Raises:
            ClipRejected: the clip cannot be read, or the model says nothing.
        """
        key = content_hash(self.digest, clip.captioner_prompt, clip.clip_id)
        kept = captions_folder() / key[:2] / f"{key}.txt"
        try:
            caption = kept.read_text()
        except FileNotFoundError:
            caption = self.describe(_side_by_side(recording), clip.captioner_prompt)
            write_file(kept, caption)
        if not caption:
            raise ClipRejected("caption", f"the captioner {self.name} said nothing of it")
        return replace(clip, captions=(caption,))

    def describe(self, frames_in_a_row: Frames, prompt: str) -> str:
        """One line about an (H, W, 3) RGB image; greedy, so always the same.

        ``prompt`` is asked of models that can chat, others just describe.
        """
        import torch
        from PIL import Image

        image = Image.fromarray(frames_in_a_row)
        if getattr(self.processor, "chat_template", None):
            question = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            inputs = self.processor(images=image, return_tensors="pt")
        inputs = inputs.to(self.device)
        with torch.inference_mode():
            said = self.model.generate(**inputs, max_new_tokens=_MAX_TOKENS, do_sample=False)
        if "input_ids" in inputs:
            said = said[:, inputs["input_ids"].shape[1] :]  # the question is repeated
        text = self.processor.batch_decode(said, skip_special_tokens=True)[0]
        return " ".join(text.split())


def _side_by_side(recording: Recording) -> Frames:
    count = len(recording.times_s())
    if not count:
        raise ClipRejected("decode", "the clip has no frame")
    indices = sorted({0, count // 2, count - 1})
    return np.concatenate(list(recording.read_frames(indices, _SHORT_SIDE_PX)), axis=1)


def _digest(name: str, model: Any) -> str:
    """What tells one model's captions from another's: its files, or its commit on the hub."""
    folder = Path(name)
    if not folder.is_dir():
        return content_hash(name, str(getattr(model.config, "_commit_hash", "")))
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
