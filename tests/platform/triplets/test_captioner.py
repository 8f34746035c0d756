"""Captioners of the real classes, tiny and random: what they say is kept and marked as theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from triplet_recordings import moving_square, write_video

from dynaflip.errors import UserError
from dynaflip.platform.paths import captions_folder
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.models import CAPTIONERS
from dynaflip.platform.triplets.models.captioner import (
    TransformersCaptioner,
    caption_clips,
    side_by_side,
)
from dynaflip.platform.triplets.models.loading import load_stages
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.sources.formats import open_sources

WORDS = ["push", "open", "lift", "the", "red", "blue", "box", "lid", "left", "right"]
SPECIAL = ["<pad>", "<unk>", "<bos>", "<eos>", "<image>"]


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, extra_special_tokens={"image_token": "<image>"}, **names
    )


def chatting(folder: Path) -> Path:
    """A LLaVA of a few thousand weights: it is asked."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    vision = CLIPVisionConfig(image_size=28, patch_size=14, num_attention_heads=2, **small)
    words = tokenizer()
    text = LlamaConfig(
        vocab_size=len(words), num_attention_heads=2, bos_token_id=2, eos_token_id=3, **small
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size),
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% for c in m.content %}"
        "{{ '<image> ' if c.type == 'image' else c.text + ' ' }}{% endfor %}{% endfor %}",
    ).save_pretrained(folder)
    return folder


def describing(folder: Path) -> Path:
    """A BLIP of a few thousand weights: it describes unasked."""
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        BlipTextConfig,
        BlipVisionConfig,
    )

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    words = tokenizer()
    text = BlipTextConfig(
        vocab_size=len(words),
        num_attention_heads=2,
        encoder_hidden_size=16,
        bos_token_id=2,
        sep_token_id=3,
        eos_token_id=3,
        pad_token_id=0,
        **small,
    )
    vision = BlipVisionConfig(image_size=28, patch_size=14, num_attention_heads=2, **small)
    BlipForConditionalGeneration(
        BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    ).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    BlipProcessor(BlipImageProcessor(size=size), words).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [chatting, describing])
def test_a_captioner_gives_the_same_caption_for_the_same_image(
    kind: Callable[[Path], Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    name = str(kind(tmp_path / "captioner"))
    TransformersCaptioner.check(name)
    model = TransformersCaptioner(name)
    image = np.random.default_rng(0).integers(0, 255, (40, 120, 3), dtype=np.uint8)
    said = model.describe(image, "lift the box")
    assert said == model.describe(image, "lift the box")
    assert said
    assert set(said.split()) <= {*WORDS, "<unk>"}, "neither the question nor special tokens"
    images = [image, 255 - image, image[:, :60], image // 2]
    prompts = ["lift the box", "lift the box", "lift the box", "open the red lid"]
    alone = [model.describe(*one) for one in zip(images, prompts, strict=True)]
    assert model.describe_all(images, prompts) == alone, "several at once, sizes mixed"


def test_each_source_has_its_own_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate("ab"):
        write_video(tmp_path / name / "x.mp4", moving_square(12, step_px=1 + number))
    sources = tuple(
        SourceConfig(path=str(tmp_path / name), captioner="same/model", captioner_prompt=name)
        for name in ("a", "b")
    )
    config = PreprocessConfig(sources=sources)
    mix = open_sources(config)

    class Echo:
        def __init__(self, name: str) -> None:
            self.digest = str(tmp_path)

        def describe(self, image: np.ndarray, prompt: str) -> str:
            return f"asked {prompt}"

    monkeypatch.setitem(CAPTIONERS._loaded, "model", Echo)
    stages = load_stages(config)
    (captioner,) = stages["captions"].captioners.values()  # a model is loaded once
    captions = [
        caption_clips([clip], [side_by_side(mix.open(clip))], captioner)[0].captions
        for clip in mix.list_clips()
    ]
    assert captions == [("asked a",), ("asked b",)]


@pytest.mark.ray
@pytest.mark.integration
def test_clips_without_caption_are_described_once(
    video_folder: Callable[..., Path],
    tmp_path: Path,
    ray_cluster: None,
) -> None:
    torch.manual_seed(0)
    model_folder = chatting(tmp_path / "captioner")
    folder = video_folder(3)
    lines = (folder / "captions.csv").read_text().splitlines()
    (folder / "captions.csv").write_text("\n".join(lines[:-1]))  # the last stays without
    source = SourceConfig(path=str(folder), captioner=str(model_folder))
    config = PreprocessConfig(source=source, depth="plane", draws_per_clip=1)
    before = set(captions_folder().glob("*/*.txt"))
    outcome = preprocess(config, str(tmp_path / "out"))
    assert outcome.counts["kept"] == 3, outcome.counts
    columns = ["clip_id", "caption", "caption_kind"]
    rows = pq.read_table(outcome.folder / "triplets", columns=columns).to_pylist()
    own = {row["clip_id"]: row for row in rows if row["caption_kind"] != "source"}
    assert len(own) == 1
    (row,) = own.values()
    assert row["caption_kind"] == f"model:{model_folder}"
    kept = list(set(captions_folder().glob("*/*.txt")) - before)
    assert [path.read_text() for path in kept] == [row["caption"]]
    # What is kept is believed: nothing is asked twice.
    kept[0].write_text("open the lid")
    again = preprocess(config, str(tmp_path / "again"))
    rows = pq.read_table(again.folder / "triplets", columns=columns).to_pylist()
    assert {r["caption"] for r in rows if r["clip_id"] == row["clip_id"]} == {"open the lid"}


def test_other_models_as_captioners_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder nor"):
        TransformersCaptioner.check(str(tmp_path / "nothing"))
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="not a captioner"):
        TransformersCaptioner.check(str(tmp_path / "vit"))
