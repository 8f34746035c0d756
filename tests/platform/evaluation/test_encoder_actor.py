"""Encoder actors on real Ray: many workers' images in full passes, and an actor that dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkout import REPOSITORY
from tiny_rollouts import encoder_folder

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.encoder_config import EncoderActorConfig
from dynaflip.platform.evaluation.encoders_under_test import encoder_at, load

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), np.uint8)


def silent_class() -> type:
    """An actor that never answers; local, because workers import no tests."""

    class Silent:
        async def encode(self, *_: object) -> None:
            await asyncio.sleep(1000)

    return Silent


@pytest.mark.ray
def test_requests_share_passes_and_an_actor_that_dies_is_asked_again(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from dynaflip.platform.evaluation import encoder_service
    from dynaflip.platform.evaluation.encoder_actor import EncoderSource
    from dynaflip.platform.evaluation.encoder_service import (
        EncoderActors,
        EncoderService,
        RemoteEncoder,
    )

    found = encoder_at(str(encoder_folder(tmp_path / "encoder")))
    encoder, images = load(found), torch.from_numpy(IMAGES)
    with torch.no_grad():
        expected, maps = encoder(images), encoder.feature_maps(images, 2)
    config = EncoderActorConfig(device="cpu", batch=8, window_ms=300)
    with EncoderService(config) as service:
        workers = [RemoteEncoder(service.for_a_job(), EncoderSource(found)) for _ in range(4)]
        (actor,) = service.for_a_job().actors
        ray.get(actor.usage.remote())
        answers = [worker.ask(images[3 * i : 3 * i + 3], None) for i, worker in enumerate(workers)]
        features = torch.cat([answer() for answer in answers])
        used = ray.get(actor.usage.remote())
        assert (used.images, used.passes) == (12, 2), "6 images of two workers in each pass"
        assert 0 < used.busy <= 1
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
        for ours, true in zip(workers[0].feature_maps(images, 2), maps, strict=True):
            torch.testing.assert_close(ours, true, rtol=1e-4, atol=1e-4)
        assert workers[0].waited_s > 0
        with pytest.raises(UserError, match=r"images: shape .* is needed, not \(8, 40, 40, 2\)"):
            workers[0](images[..., :2])

        monkeypatch.setattr(encoder_service, "_PATIENCE_S", 0.5)
        silent = ray.remote(num_cpus=0)(silent_class()).remote()
        patient = RemoteEncoder(EncoderActors((silent, actor), 8), EncoderSource(found))
        # Two requests that wait at once, as a worker's two groups of environments have them.
        both = [patient.ask(images, None) for _ in range(2)]
        assert all(torch.equal(answer(), features) for answer in both), "of the one that answers"
        assert patient._actors == (actor, silent), "later images go there at once"

        pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        assert torch.equal(workers[1](images), features), "of the one that took its place"


def test_an_actor_that_was_started_again_computes_exactly(tmp_path: Path) -> None:
    from dynaflip.platform.evaluation.encoder_actor import EncoderActor, EncoderSource

    source = EncoderSource(encoder_at(str(encoder_folder(tmp_path / "encoder"))))
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = True, True, False
    try:
        actor = EncoderActor("cpu", EncoderActorConfig(device="cpu", batch=4))
        asyncio.run(actor.encode(source, IMAGES, None))  # and nobody has asked whether it is ready
        assert (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic) == (False, False, True)
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before


def test_an_encoder_gets_the_memory_of_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynaflip.platform.evaluation import encoder_actor, encoder_passes
    from dynaflip.platform.evaluation.encoder_actor import EncoderActor, EncoderSource

    names = ("first", "second")
    sources = [EncoderSource(encoder_at(str(encoder_folder(tmp_path / name)))) for name in names]
    # Folders of equal weights are one encoder: a policy tells them apart.
    sources[1] = sources[1]._replace(policy="fitted")
    monkeypatch.setattr(encoder_actor, "_load", lambda source: load(source.encoder))
    actor = EncoderActor("cpu", EncoderActorConfig(device="cpu", batch=4))
    asyncio.run(actor.encode(sources[0], IMAGES, None))
    whole = encoder_passes.FixedPasses

    def full(*arguments: Any) -> Any:
        if actor._encoders:
            raise torch.OutOfMemoryError("no room")
        return whole(*arguments)

    monkeypatch.setattr(encoder_passes, "FixedPasses", full)
    asyncio.run(actor.encode(sources[1], IMAGES, None))
    assert list(actor._encoders) == [sources[1]]

    def never(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(encoder_passes, "FixedPasses", never)
    with pytest.raises(UserError, match="does not fit into the memory of cpu"):
        asyncio.run(actor.encode(sources[0], IMAGES, None))


@pytest.mark.ray
def test_a_gpu_that_nobody_has_is_not_waited_for(ray_cluster: None) -> None:
    from dynaflip.platform.evaluation.encoder_service import EncoderService

    service = EncoderService(EncoderActorConfig(device="gpu"))
    with service, pytest.raises(UserError, match="encoder_actor: Ray has 0 GPUs on this machine"):
        service.for_a_job()


@pytest.mark.ray
def test_features_that_differ_in_half_precision_stop_the_job(
    tmp_path: Path, ray_cluster: None
) -> None:
    from dynaflip.platform.evaluation.encoder_actor import EncoderSource
    from dynaflip.platform.evaluation.encoder_service import EncoderService, RemoteEncoder

    found = encoder_at(str(encoder_folder(tmp_path / "encoder")))
    config = EncoderActorConfig(device="cpu", batch=4, precision="bfloat16", tolerance=1e-5)
    with EncoderService(config) as service:
        encoder = RemoteEncoder(service.for_a_job(), EncoderSource(found))
        with pytest.raises(
            UserError, match=r"encoder_actor\.precision: .* differ .* allows 0\.001"
        ):
            encoder(torch.from_numpy(IMAGES))


@pytest.mark.ray
@pytest.mark.integration
def test_an_evaluation_with_a_killed_encoder_actor_has_the_table_of_workers_that_encode(
    tmp_path: Path,
) -> None:
    encoder_folder(tmp_path / "encoder")
    paths = os.pathsep.join(str(REPOSITORY / part) for part in ("", "tests/eval"))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("encoder_actor_run.py")), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": paths},
    )
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("FOUND ")] or [""]
    assert line, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(line.removeprefix("FOUND "))
    assert found["different"] == []
    assert found["episodes"] == 2 * 8 > found["solved"] > 0
    # Half a GPU each on the only one; one was killed and came back.
    assert (found["actors"], found["restarts"]) == (2, 1)
