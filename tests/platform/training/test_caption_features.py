"""Caption features: what is embedded, what is kept, and how workers read it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dynaflip.encoders.config import LanguageConfig
from dynaflip.encoders.language import build_language_encoder
from dynaflip.errors import UserError
from dynaflip.platform.training.data import caption_cache, caption_features, ids
from dynaflip.platform.training.data.caption_cache import caption_table
from dynaflip.platform.training.data.caption_features import TextTable, open_table, write_table

CAPTIONS = [f"{verb} the {thing}" for verb in ("lift", "push", "open") for thing in "abcdefgh"]


def text_model(folder: Path, seed: int = 0) -> LanguageConfig:
    """A BERT of a few thousand weights, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *sorted({w for caption in CAPTIONS for w in caption.split()})]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return LanguageConfig(name=str(folder))


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A fresh home; the captions that are really embedded, in their order."""
    monkeypatch.setenv("DYNAFLIP_HOME", str(tmp_path / "home"))
    captions: list[str] = []
    embed = caption_cache.embed_here

    def counted(config: LanguageConfig, chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
        noted = ((captions.extend(chunk), chunk)[1] for chunk in chunks)
        return embed(config, noted)

    monkeypatch.setattr(caption_cache, "embed_here", counted)
    monkeypatch.setattr(caption_cache, "CHUNK", 3)
    return captions


def test_a_caption_is_embedded_once_for_each_text_model(
    embedded: list[str], tmp_path: Path
) -> None:
    model = text_model(tmp_path / "bert")
    some = caption_table(CAPTIONS[:10], model)
    assert sorted(embedded) == sorted(CAPTIONS[:10])
    assert len(embedded[0]) == max(map(len, CAPTIONS[:10])), "the longest first"
    expected = build_language_encoder(model)(CAPTIONS).numpy()
    assert some.features.dtype == np.float32
    np.testing.assert_allclose(some.features[some.rows(CAPTIONS[:10])], expected[:10], atol=1e-6)

    embedded.clear()
    more = caption_table(CAPTIONS, model)
    assert sorted(embedded) == sorted(CAPTIONS[10:]), "only what no table has"
    np.testing.assert_array_equal(
        more.features[more.rows(CAPTIONS[:10])], some.features[some.rows(CAPTIONS[:10])]
    )
    np.testing.assert_allclose(more.features[more.rows(CAPTIONS)], expected, atol=1e-6)

    embedded.clear()
    assert caption_table(CAPTIONS[::-1], model) == more, "a set, whatever its order"
    fewer = caption_table(CAPTIONS[5:8], model)
    assert embedded == []
    assert len(fewer.keys) == 3
    other = text_model(tmp_path / "other", seed=1)
    for config in (other, LanguageConfig(name=model.name, max_tokens=2)):
        embedded.clear()
        assert caption_table(CAPTIONS[:4], config).digest != some.digest
        assert len(embedded) == 4


def test_new_weights_in_the_same_folder_are_another_model(
    embedded: list[str], tmp_path: Path
) -> None:
    model = text_model(tmp_path / "bert")
    before = caption_table(CAPTIONS, model)
    text_model(tmp_path / "bert", seed=1)
    after = caption_table(CAPTIONS, model)
    assert len(embedded) == 2 * len(CAPTIONS)
    assert before.digest != after.digest


def test_a_table_that_is_there_is_found_without_the_captions(
    embedded: list[str], tmp_path: Path
) -> None:
    model = text_model(tmp_path / "bert")
    reads: list[int] = []

    def read() -> list[str]:
        reads.append(1)
        return CAPTIONS

    table = caption_table(read, model, digest="of the captions")
    assert caption_table(read, model, digest="of the captions") == table
    assert reads == [1]


def test_a_stopped_embedding_continues(
    embedded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = text_model(tmp_path / "bert")
    monkeypatch.setattr(caption_cache, "PART", 6)
    embed = caption_cache.embed_here

    def stops(config: LanguageConfig, chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
        for number, values in enumerate(embed(config, chunks)):
            if number == 5:
                raise KeyboardInterrupt
            yield values

    monkeypatch.setattr(caption_cache, "embed_here", stops)
    with pytest.raises(KeyboardInterrupt):
        caption_table(CAPTIONS, model)
    embedded.clear()
    monkeypatch.setattr(caption_cache, "embed_here", embed)
    table = caption_table(CAPTIONS, model)
    assert len(embedded) == len(CAPTIONS) - 12
    expected = build_language_encoder(model)(CAPTIONS).numpy()
    np.testing.assert_allclose(table.features[table.rows(CAPTIONS)], expected, atol=1e-6)
    assert [path.name for path in Path(table.file).parent.glob("*.safetensors")] == [
        Path(table.file).name
    ], "the parts are gone"


def test_captions_of_one_number_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="are one caption"):
        write_table(tmp_path / "t", ["lift", "lift"], np.zeros((2, 4)))
    monkeypatch.setattr(caption_features, "id64", lambda text: len(text))
    with pytest.raises(UserError, match=r"'push' and 'lift'.*same number"):
        write_table(tmp_path / "t", ["push", "lift"], np.zeros((2, 4)))
    with pytest.raises(UserError, match="there is none"):
        write_table(tmp_path / "t", [], np.zeros((0, 4)))


def test_a_table_travels_as_a_path(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((len(CAPTIONS), 300)).astype(np.float32)
    table = write_table(tmp_path / "t.safetensors", CAPTIONS, features)
    assert open_table(tmp_path / "t.safetensors") == table
    assert isinstance(table.features.base, np.memmap), "mapped, not read"
    sent = pickle.dumps(table)
    assert len(sent) < 1000
    there: TextTable = pickle.loads(sent)
    np.testing.assert_array_equal(there.features[there.rows(CAPTIONS)], features)
    keys = [ids.id64(caption) for caption in CAPTIONS]
    np.testing.assert_array_equal(there.keys, sorted(keys))
    with pytest.raises(UserError, match="no features of 'fold the towel'"):
        there.rows(["lift the a", "fold the towel"])


def test_a_machine_copies_a_shared_file_once_and_checks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Path("/dev/shm")  # another file system than the temporary folder's
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = shared / f"dynaflip-test-{os.getpid()}.safetensors"
    features = np.arange(len(CAPTIONS) * 4, dtype=np.float32).reshape(-1, 4)
    try:
        table = write_table(file, CAPTIONS, features)
        np.testing.assert_array_equal(table.features[table.rows(CAPTIONS)], features)
        (copy,) = tmp_path.glob("dynaflip-*/captions/*.safetensors")
        assert copy.read_bytes() == file.read_bytes()
        assert copy.parent.parent.stat().st_mode & 0o077 == 0, "no other user may write there"
        file.unlink()
        again = TextTable(table.file, table.digest)
        np.testing.assert_array_equal(again.features, table.features)  # from the copy
        with pytest.raises(UserError, match=r"is not there on .*DYNAFLIP_HOME"):
            TextTable(table.file, "another").rows(CAPTIONS)
        damaged = write_table(file, CAPTIONS, features + 1)
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        with pytest.raises(UserError, match="is damaged"):
            damaged.rows(CAPTIONS)
    finally:
        file.unlink(missing_ok=True)


@pytest.mark.ray
def test_many_captions_are_embedded_on_a_gpu_of_the_cluster(
    embedded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = text_model(tmp_path / "bert")
    script = Path(__file__).with_name("caption_actor_run.py")
    found = subprocess.run(
        [sys.executable, str(script), model.name, *CAPTIONS[:10]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    assert json.loads(found.stdout.splitlines()[-1]) == {"equal": True, "shape": [10, 16]}
    # Where it is decided: many are, few are not.
    elsewhere: list[int] = []

    def embed(config: LanguageConfig, chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
        for chunk in chunks:
            elsewhere.append(len(chunk))
            yield np.zeros((len(chunk), 16), np.float32)

    monkeypatch.setattr(caption_cache, "WORTH_A_GPU", 5)
    caption_table(CAPTIONS[:4], model, elsewhere=embed)
    assert not elsewhere
    caption_table(CAPTIONS, model, elsewhere=embed)
    assert sum(elsewhere) == (0 if torch.cuda.is_available() else len(CAPTIONS) - 4)
