"""Actors that hold models for a whole run."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from dynaflip.errors import UserError
from dynaflip.platform.machine_errors import in_one_line
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.model_hosts import ModelHosts
from dynaflip.platform.triplets.stage_graph import ModelActor, Stage

pytestmark = pytest.mark.ray


def test_a_model_that_cannot_be_loaded_is_told_in_a_line(ray_cluster: None) -> None:
    config = PreprocessConfig(depth="class:not_there:Model")
    given = {"name": "depth", "config": config, "folder": "/none", "digests": {}}
    with closing(ModelHosts()) as hosts, pytest.raises(UserError) as caught:
        hosts.start([Stage("depth", ModelActor, given, cpus=0.1, actors=1)], cpus=1, gpus=0)
    line = in_one_line(caught.value)
    assert line is not None
    assert line.startswith("depth: ")
    assert "not_there" in line


def test_a_wave_takes_the_actors_of_the_one_before_and_gives_up_what_it_does_not_need(
    ray_cluster: None,
) -> None:
    import ray

    def started(name: str, cpus: float) -> list[Any]:
        """A stage of three actors of a quarter of a CPU; any class serves as its work."""
        hosts.start([Stage(name, dict, cpus=0.25, actors=3)], cpus=cpus, gpus=0)
        return list(hosts.stage(name, None)["fn_constructor_kwargs"]["hosts"])

    with closing(ModelHosts()) as hosts:
        first = started("all", cpus=0.1)
        assert len(first) == 1, "one, even where there is no room"
        assert started("all", cpus=0.6) == [*first, *started("all", cpus=0.6)[1:]]
        assert len(started("all", cpus=0.6)) == 2, "as there is room"
        (other,) = started("depth", cpus=0.3)  # as when a GPU has joined
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(first[0].ready.remote())
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(other.ready.remote())
