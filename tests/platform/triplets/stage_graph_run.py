"""Makes triplets with stages apart on a cluster that says it has two GPUs; prints what came of it.

A process of its own, because the tests' shared cluster has no GPU.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from dynaflip.platform.cluster import prepare_environment
from dynaflip.platform.triplets import listing, pipeline, stage_graph
from dynaflip.platform.triplets.config import FilterConfig, PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.flow.config import CameraConfig, TrackConfig
from dynaflip.platform.triplets.stage_config import ModelStageConfig, StagesConfig

prepare_environment()
import ray  # noqa: E402

folder, model, out = sys.argv[1:]
here = str(Path(__file__).parent)
sys.path.insert(0, here)
environment = {
    "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
    "DYNAFLIP_HOME": os.environ["DYNAFLIP_HOME"],
    "DYNAFLIP_TEST_MARK": os.environ["DYNAFLIP_TEST_MARK"],
}
ray.init(
    "local",
    num_cpus=2,
    num_gpus=2,
    include_dashboard=False,
    log_to_driver=False,
    object_store_memory=200 << 20,
    runtime_env={"env_vars": environment},
)


def made(
    name: str, depth: str, tracker: str = "lk", stages: StagesConfig | None = None
) -> tuple[str, Any]:
    config = PreprocessConfig(
        source=SourceConfig(path=folder),
        depth=depth,
        filter=FilterConfig(min_moving_share=0, min_visible_share=0),
        track=TrackConfig(tracker=tracker),
        camera=CameraConfig(motion="none"),  # depth of random weights fits no camera
        stages=stages or StagesConfig(),
    )
    outcome = pipeline.preprocess(config, f"{out}/{name}")
    return outcome.digest, outcome.counts


found: dict[str, Any] = {
    "apart": made("apart", f"model:{model}", "class:staged_models:Still"),
    "whole": made("whole", "class:staged_models:Ramp"),
    "killed": made("killed", "class:staged_models:DiesOnce"),
    "small": made(
        "small",
        "class:staged_models:SmallMemory",
        stages=StagesConfig(depth=ModelStageConfig(actors=1), depth_batch=64),
    ),
}


def counted(shards: Any, *more: Any) -> Any:
    found["waves"].append(len(shards))
    yield from run_stages(shards, *more)


# Several waves of shards, of a clip each.
found["waves"] = []
run_stages, pipeline.run_stages = pipeline.run_stages, counted
listing._WAVE_CLIPS, listing._WAVE_SHARDS_A_CPU = 3, 0
found["in waves"] = made("in waves", "class:staged_models:Loaded")
pipeline.run_stages = run_stages


def graph_of_cpus(*given: Any) -> list[stage_graph.Stage]:
    return stages(*given[:-1], {"CPU": 2.0})


stages, stage_graph.stage_graph = stage_graph.stage_graph, graph_of_cpus
found["together"] = made("together", f"model:{model}", "class:staged_models:Still")
print(json.dumps(found))
ray.shutdown()
