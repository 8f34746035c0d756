"""Shared by all tests: a home of their own and one real Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import SHARED_CLIPS
from hub_server import Hub, running_hub

# Before anything reads them: state goes to the session's folder, rendering is in software.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)
# The suite is about this machine; nothing may be looked up on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Nor in anybody's object store: the tests start a server of their own.
os.environ |= {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests"}
os.environ |= {"AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="session", autouse=True)
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DYNAFLIP_HOME that no other run shares; worker processes inherit it."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["DYNAFLIP_HOME"] = str(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DYNAFLIP_HOME of this test alone (in this process and those it starts)."""
    folder = tmp_path / "home"
    monkeypatch.setenv("DYNAFLIP_HOME", str(folder))
    return folder


@pytest.fixture
def model_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of models on this machine with nothing in it, and an empty local cache."""
    from huggingface_hub import constants

    with running_hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        yield hub


@pytest.fixture(scope="session")
def ray_cluster(session_home: Path) -> Iterator[None]:
    """A real Ray cluster of 2 CPUs on this machine, shared by the session."""
    from dynaflip.platform.cluster import prepare_environment, start_ray

    prepare_environment()
    import ray

    # With the dashboard, as a cluster has it: Ray Train asks its State API at the end of a run,
    # and a short run without one would wait 12 s for the answer.
    start_ray(num_cpus=2, dashboard=True)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def triplet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic triplet folder, so that training is tested without a simulator."""
    from synthetic_triplets import write_triplets

    return write_triplets(tmp_path_factory.mktemp("triplets") / "set")


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """Real clips beside the checkout; the tests that want them skip without."""
    if not SHARED_CLIPS.is_dir():
        pytest.skip("the folder of real clips (shared/clips beside the checkout) is not here")
    return SHARED_CLIPS
