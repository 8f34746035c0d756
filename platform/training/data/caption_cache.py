"""Caption features in ``<home>/cache/captions``: embedded once for each caption and text model.

A folder of the cache holds the tables of one text model, named by what decides its features
(weights, tokens, pooling); a table is named by its set of captions. A new set is put together from
the tables that are there, and only captions that none of them has are embedded.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dynaflip.encoders.config import LanguageConfig
from dynaflip.files import file_lock
from dynaflip.platform.paths import cache_folder
from dynaflip.platform.training.data.caption_features import (
    TextTable,
    open_table,
    sorted_keys,
    write_rows,
)
from dynaflip.platform.triplets.clips import captions_digest

Log = Callable[[str], None]
# Embeds lists of captions, in order: each (C,) → (C, D) float32.
Embed = Callable[[LanguageConfig, Iterable[list[str]]], Iterator[np.ndarray]]

CHUNK = 1024  # captions of one call
# Fewer than these are embedded in the process itself: loading the model elsewhere takes longer.
WORTH_A_GPU = 2000
# Captions after which what has been embedded is written, so that a stopped run keeps it.
PART = 16 * CHUNK
_PROGRESS_S = 5.0


def caption_table(
    captions: Sequence[str] | Callable[[], Sequence[str]],
    config: LanguageConfig,
    *,
    digest: str | None = None,
    elsewhere: Embed | None = None,
    log: Log = print,
) -> TextTable:
    """Features of distinct captions, from the cache as far as it has them.

    Args:
        captions: C of them, at least one, or what reads them: a table that is there already is
            found by ``digest`` alone.
        config: the text model.
        digest: of the set of captions; by default it is computed.
        elsewhere: embeds many captions where this process has no GPU, for instance on a cluster's.
        log: takes lines of progress.

    Raises:
        UserError: the model cannot be reached, or two captions have the same number.
    """
    folder = cache_folder() / "captions" / features_key(config)
    if digest is None:
        captions = captions() if callable(captions) else captions
        digest = captions_digest(captions)
    file = folder / f"{digest}.safetensors"
    if table := open_table(file):
        return table
    with file_lock(folder / "embedding.lock"):
        if table := open_table(file):  # another process was first
            return table
        return _make(file, captions() if callable(captions) else captions, config, elsewhere, log)


def features_key(config: LanguageConfig) -> str:
    """Name of a text model's folder in the cache: equal where features are.

    Raises:
        UserError: the model cannot be reached.
    """
    from dynaflip.encoders.language import FEATURES_VERSION, weights_identity
    from dynaflip.platform.training.pretrained import remembered_digest

    weights = weights_identity(config, remembered_digest)
    parts = (weights, str(config.max_tokens), config.pooling, str(FEATURES_VERSION))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _make(
    file: Path, captions: Sequence[str], config: LanguageConfig, elsewhere: Embed | None, log: Log
) -> TextTable:
    keys, order = sorted_keys(captions)
    features, found = _from_tables(file.parent, keys)
    missing = np.flatnonzero(~found)
    # The longest first: what does not fit into memory fails at once.
    lengths = np.array([len(captions[i]) for i in order[missing]])
    missing = missing[np.argsort(-lengths, kind="stable")]
    embed = _chosen(len(missing), elsewhere)
    texts = (
        [captions[i] for i in order[missing[start : start + CHUNK]]]
        for start in range(0, len(missing), CHUNK)
    )
    progress = _Progress(len(missing), log)
    done = written = 0
    for values in embed(config, texts):
        if features is None:
            features = np.zeros((len(keys), values.shape[1]), np.float32)
        features[missing[done : done + len(values)]] = values
        done += len(values)
        progress(done)
        if done - written >= PART and done < len(missing):
            rows = np.sort(missing[written:done])
            part = file.with_name(f"part-{file.stem}-{len(missing) - done}.safetensors")
            write_rows(part, keys[rows], features[rows])
            written = done
    assert features is not None
    assert done == len(missing)
    table = write_rows(file, keys, features)
    for part in file.parent.glob(f"part-{file.stem}-*.safetensors"):
        part.unlink()
    return table


class _Progress:
    """A line now and then where embedding takes long, and one at its end."""

    def __init__(self, captions: int, log: Log) -> None:
        self.captions, self.log = captions, log
        self.began = self.logged = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        rate = done / max(now - self.began, 1e-9)
        if done == self.captions and done > CHUNK and now - self.began > _PROGRESS_S:
            self.log(f"captions: {done:,} embedded in {now - self.began:.0f} s")
        elif now - self.logged > _PROGRESS_S:
            self.logged = now
            self.log(
                f"captions: {done:,} of {self.captions:,} embedded ({rate:.0f}/s, "
                f"{(self.captions - done) / rate:.0f} s left)"
            )


def _from_tables(folder: Path, keys: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Features (C, D) of the keys (C,) that earlier tables have, and which those are (C,) bool."""
    features: np.ndarray | None = None
    found = np.zeros(len(keys), bool)
    files = sorted(folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    for file in files:
        if found.all():
            break
        table = open_table(file)
        if table is None:
            continue
        missing = np.flatnonzero(~found)
        rows = np.minimum(np.searchsorted(table.keys, keys[missing]), len(table.keys) - 1)
        known = table.keys[rows] == keys[missing]
        if features is None:
            features = np.zeros((len(keys), table.features.shape[1]), np.float32)
        features[missing[known]] = table.features[rows[known]]
        found[missing[known]] = True
    return features, found


def _chosen(number: int, elsewhere: Embed | None) -> Embed:
    import torch

    if elsewhere is None or number < WORTH_A_GPU or torch.cuda.is_available():
        return embed_here
    return elsewhere


class Embedder:
    """A text model on this process's GPU, or its CPUs where it has none."""

    def __init__(self, config: LanguageConfig) -> None:
        import torch

        from dynaflip.encoders.language import build_language_encoder

        on_gpu = torch.cuda.is_available()
        self.encoder = build_language_encoder(config).to("cuda" if on_gpu else "cpu")
        self.batch_size = 256 if on_gpu else 64

    def embed(self, captions: list[str]) -> np.ndarray:
        """(C, D) float32."""
        return self.encoder(captions, self.batch_size).cpu().numpy()


def embed_here(config: LanguageConfig, chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
    """Embed lists of captions, in order, in this process; without any the model is not loaded."""
    embedder: Embedder | None = None
    for chunk in chunks:
        embedder = embedder or Embedder(config)
        yield embedder.embed(chunk)
