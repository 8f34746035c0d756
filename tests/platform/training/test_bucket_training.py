"""Training on triplets in a bucket of a real S3 server: the same weights, and its reads counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run
from s3_server import failing_proxy, s3_server, upload


def test_a_bucket_gives_the_same_weights_and_counts_what_an_epoch_reads(
    triplet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"train__steps": 18, "train__eval_every_steps": 0, "train__diagnostics_every_steps": 0}
    local = tiny_run.train(triplet_folder, tmp_path / "local", monkeypatch, **few)
    assert local.error == ""
    assert not local.curve("data/requests")
    with s3_server() as server, failing_proxy(server) as (url, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        uri = upload(server, triplet_folder, "set")
        far = tiny_run.train(uri, tmp_path / "far", monkeypatch, **few)  # type: ignore[arg-type]
        seen = [path for path, _ in proxy.requests if "part-" in path]
    assert far.error == ""
    assert tiny_run.equal(far.weights, local.weights)
    # 36 rows of 9 clips in 9 steps an epoch; the second one asks for each clip once.
    first, second = far.curve("data/requests")
    assert 9 < first < len(seen)
    assert second == 9
    assert 100_000 < far.curve("data/bytes")[0] < proxy.bytes_sent
    said = [line for line in far.lines if "to the bucket" in line]
    assert [line.split(":")[0] for line in said] == ["epoch 1", "epoch 2"]
