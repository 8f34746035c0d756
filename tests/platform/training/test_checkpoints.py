"""Checkpoints: whole or not there, kept by age and by worth, and damage is passed over."""

from __future__ import annotations

import contextlib
import http.server
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dynaflip.errors import RefusedError, UserError
from dynaflip.platform import storage
from dynaflip.platform.training import checkpoint_manager
from dynaflip.platform.training.checkpoint_manager import Checkpoints, damage

CURVE = "heldout/retrieval/all/top1"


def writer(step: int, value: float | None = None):  # type: ignore[no-untyped-def]
    def write(folder: Path) -> None:
        save_file({"w": torch.full((1000,), float(step))}, folder / "model.safetensors")
        metrics = {} if value is None else {CURVE: value}
        text = f'{{"step": {step}, "metrics": {metrics}}}'.replace("'", '"')
        (folder / "state.json").write_text(text)

    return write


def saved(checkpoints: Checkpoints, values: dict[int, float | None]) -> list[str]:
    logged: list[str] = []
    for step, value in values.items():
        checkpoints.save(step, writer(step, value), logged.append)
    checkpoints.finish()
    return logged


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_stay_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=2, best_metric=CURVE)
    saved(checkpoints, {10: 0.1, 20: 0.9, 30: None, 40: 0.3, 50: 0.2})
    assert names(tmp_path) == ["step-00000020", "step-00000040", "step-00000050"]
    # Another process finds the best again.
    saved(Checkpoints(str(tmp_path), keep=1, best_metric=CURVE), {60: 0.5})
    assert names(tmp_path) == ["step-00000020", "step-00000060"]


@pytest.mark.parametrize("how", ["cut", "missing"])
def test_an_older_one_that_is_damaged_ends_no_run(tmp_path: Path, how: str) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=1, best_metric=CURVE)
    saved(checkpoints, {10: 0.9, 20: 0.1})
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    state = tmp_path / "step-00000010" / "state.json"
    state.write_text(state.read_text()[:9]) if how == "cut" else state.unlink()
    (tmp_path / ".partial-dead").mkdir()  # of a writer that was killed
    after = Checkpoints(str(tmp_path), keep=1, best_metric=CURVE)
    after.storage.remove_unfinished()
    saved(after, {30: 0.2})
    # What cannot be read may be the store's fault, and stays.
    unreadable = ["step-00000010"] if how == "missing" else []
    assert names(tmp_path) == [*unreadable, "step-00000030"]


def test_damaged_ones_push_out_none_of_those_after_them(tmp_path: Path) -> None:
    saved(Checkpoints(str(tmp_path), keep=2), {300: None, 400: None})
    for folder in tmp_path.iterdir():
        (folder / "model.safetensors").write_bytes(b"cut")
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    assert checkpoints.newest(lambda _: None) is None
    saved(checkpoints, {100: None, 200: None, 300: None})
    assert names(tmp_path) == ["step-00000200", "step-00000300"]
    assert checkpoints.newest(lambda _: None) == "step-00000300"


@pytest.mark.parametrize("how", ["cut", "flipped", "missing", "no digests", "bad digests"])
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path: Path, how: str) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=3)
    saved(checkpoints, {10: None, 20: None})
    newest = tmp_path / "step-00000020"
    weights = newest / "model.safetensors"
    data = weights.read_bytes()
    if how == "cut":
        weights.write_bytes(data[:-100])
    elif how == "flipped":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "missing":
        weights.unlink()
    elif how == "no digests":
        (newest / "digests.json").unlink()
    else:
        (newest / "digests.json").write_text("{")
    logged: list[str] = []
    assert checkpoints.newest(logged.append) == "step-00000010"
    assert damage(tmp_path / "step-00000010") is None
    if how == "no digests":
        assert logged == []  # a write that was cut short: not damage
    else:
        assert "step-00000020 is damaged" in logged[0]
        assert "trying the one before" in logged[0]


def test_writing_is_behind_the_training_s_back_and_keeps_what_was_there_then(
    tmp_path: Path,
) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    free, started = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        started.set()
        assert free.wait(10)
        writer(10)(folder)

    checkpoints.save(10, slow, print)
    assert started.wait(10)
    assert checkpoints.busy()
    assert checkpoints.storage.names() == []  # nothing half-written is seen
    free.set()
    checkpoints.finish()
    assert not checkpoints.busy()
    assert checkpoints.storage.names() == ["step-00000010"]


def test_a_bug_in_writing_is_raised_in_the_training_s_thread(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(10, lambda folder: 1 // 0, print)  # type: ignore[arg-type,return-value]
    with pytest.raises(ZeroDivisionError):
        checkpoints.finish()


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Files above 2 kB are refused by the kernel, as a full disk refuses them.

    Not a fixture: pytest's own output may go to a file too, between a test and its teardown.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_warns_once_then_stops_and_leaves_the_last_good_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    saved(checkpoints, {10: None})
    logged: list[str] = []
    with small_files():
        checkpoints.save(20, writer(20), logged.append)
        checkpoints.save(30, writer(30), logged.append)
        with pytest.raises(UserError, match="the last good one is step-00000010; then go on with"):
            checkpoints.save(40, writer(40), logged.append)
    assert len(logged) == 1
    assert logged[0].startswith(f"warning: cannot write a checkpoint below {tmp_path}: ")
    assert logged[0].endswith("; continuing")
    assert names(tmp_path) == ["step-00000010"]
    assert checkpoints.newest(print) == "step-00000010"


class Refusing(http.server.BaseHTTPRequestHandler):
    """An object store that lets nobody in, or is overloaded."""

    status, code = 403, "AccessDenied"

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        self.rfile.read(length)
        body = f"<Error><Code>{self.code}</Code><Message>No</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def s3_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@contextlib.contextmanager
def refusing(settings: pytest.MonkeyPatch, answer: type[Refusing]) -> Iterator[Checkpoints]:
    """Checkpoints in such a store."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    settings.setattr(storage, "_ATTEMPTS", 1)
    yield Checkpoints("s3://bucket/run")
    server.shutdown()


def test_an_object_store_that_lets_us_in_no_more_ends_the_run_at_once(
    s3_settings: pytest.MonkeyPatch,
) -> None:
    with refusing(s3_settings, Refusing) as checkpoints:
        with pytest.raises(RefusedError, match=r"cannot list s3://bucket/run: AccessDenied \("):
            checkpoints.newest(print)
        checkpoints.save(10, writer(10), print)
        with pytest.raises(UserError, match=r"cannot write s3://bucket/run/step-.*none yet") as e:
            checkpoints.save(20, writer(20), print)
        assert "\n" not in str(e.value)
        with pytest.raises(UserError, match="AccessDenied"):
            checkpoints.finish()


def test_an_overloaded_object_store_is_waited_for(s3_settings: pytest.MonkeyPatch) -> None:
    class Overloaded(Refusing):
        status, code = 503, "SlowDown"

    with refusing(s3_settings, Overloaded) as checkpoints:
        # Each refused write is a line, until it has been too long.
        logged: list[str] = []
        for step in (10, 20, 30, 40):
            checkpoints.save(step, writer(step), logged.append)
        checkpoints.wait()
        assert len(logged) == 3
        assert all(line.endswith("; continuing") for line in logged)
        s3_settings.setattr(checkpoint_manager, "_PATIENCE_S", 0.0)
        with pytest.raises(UserError, match=r"SlowDown.*none yet"):
            checkpoints.save(50, writer(50), logged.append)


def test_a_store_that_is_not_there_is_one_clear_line(s3_settings: pytest.MonkeyPatch) -> None:
    s3_settings.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3_settings.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match="cannot list s3://bucket/run: Could not connect"):
        Checkpoints("s3://bucket/run").newest(print)
    for uri, message in (("s3://", "names no bucket"), ("gs://a/b", "only a path or s3://")):
        with pytest.raises(UserError, match=message):
            Checkpoints(uri)


def test_an_object_store_keeps_the_same_promises(s3_settings: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server", reason="an S3 server: pip install moto[server]")
    import boto3

    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3_settings.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    checkpoints = Checkpoints("s3://bucket/a/run", keep=2, best_metric=CURVE)
    saved(checkpoints, {10: 0.9, 20: 0.1, 30: 0.2, 40: 0.3})
    assert checkpoints.storage.names() == ["step-00000010", "step-00000030", "step-00000040"]
    with checkpoints.fetched("step-00000040") as folder:
        assert damage(folder) is None
    assert not folder.exists(), "copies are not left behind"
    key = "a/run/step-00000040/model.safetensors"
    client.put_object(Bucket="bucket", Key=key, Body=b"damaged")
    logged: list[str] = []
    assert checkpoints.newest(logged.append) == "step-00000030"
    assert "step-00000040 is damaged" in logged[0]
    # An upload that was cut short has no marker, so it is not there.
    client.delete_object(Bucket="bucket", Key="a/run/step-00000030/digests.json")
    again = Checkpoints("s3://bucket/a/run")
    assert again.storage.names() == ["step-00000010", "step-00000040"]
    again.storage.remove_unfinished()
    left = client.list_objects_v2(Bucket="bucket", Prefix="a/run/")["Contents"]
    assert {key["Key"].split("/")[2] for key in left} == {"step-00000010", "step-00000040"}
    again.remove_all()
    assert again.storage.names() == []
    server.stop()
