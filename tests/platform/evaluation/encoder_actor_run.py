"""An evaluation on a cluster of 2 CPUs and a GPU that is only said to be there.

Run by test_encoder_actor.py as a program of its own, because the cluster is its own. The encoder
actor computes on a CPU and reserves the GPU. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from dynaflip.platform.cluster import prepare_environment
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoder_config import CPU, IN_WORKERS, EncoderActorConfig
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.suites.rollouts import Rollouts


def settings(encoder: Path) -> RolloutConfig:
    """An evaluation of an environment that costs nothing."""
    return RolloutConfig(
        encoder=str(encoder),
        baselines=(),
        environment="class:outside_environment:ENVIRONMENT",
        factors=("class:outside_environment:FOG",),
        all_at_once=False,
        seeds=1,
        episodes=8,
        demonstrations=20,
        image_px=32,
        horizon_steps=20,
        steps_after_success=2,
        environments=4,
        check_harness=False,
        head="class:outside_head:HEAD",
        head_settings={"penalty": 1e4},
        encoder_actor=EncoderActorConfig(device=IN_WORKERS),
    )


def evaluate(folder: Path, config: RolloutConfig) -> Outcome:
    """Run it in a home of its own."""
    os.environ["DYNAFLIP_HOME"] = str(folder)
    return Rollouts().run(config)


def different(first: pl.DataFrame, second: pl.DataFrame) -> list[str]:
    """Columns that differ; distances may by a thousandth, since sums are in another order."""
    exact = [name for name, kind in first.schema.items() if kind != pl.Float64]
    near = [name for name in first.columns if name not in exact]
    apart = [name for name in exact if not first[name].equals(second[name], null_equal=True)]
    return apart + [name for name in near if not (first[name] - second[name]).abs().max() < 1e-3]


def kill_once_fitted(home: Path) -> None:
    """Kill the encoder actor's process when the first policies are fitted."""
    from ray._private.state import state

    while not list((home / "evaluation" / "policies").glob("*.safetensors")):
        time.sleep(0.02)
    os.kill(encoder_actors(state)[0]["Pid"], signal.SIGKILL)


def encoder_actors(state: Any) -> list[dict]:
    """Ray's records of the encoder actors, those that have ended too."""
    return [
        one for one in state.actor_table(None).values() if one["ActorClassName"] == "EncoderActor"
    ]


def main(folder: Path) -> None:
    """The same evaluation with encoders in the workers, and in an actor that is killed."""
    prepare_environment()
    import ray
    from ray._private.state import state

    root = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join([root, str(Path(root) / "tests" / "eval")])
    ray.init(
        "local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    config = settings(folder / "encoder")
    own = evaluate(folder / "own", config)
    actors = EncoderActorConfig(device=CPU, gpus_per_actor=0.5, batch=16)
    killer = threading.Thread(target=kill_once_fitted, args=(folder / "there",), daemon=True)
    killer.start()
    there = evaluate(folder / "there", replace(config, encoder_actor=actors))
    ended = encoder_actors(state)
    print(
        "FOUND "
        + json.dumps(
            {
                "different": different(own.rows(), there.rows()),
                "episodes": own.rows().height,
                "solved": own.rows().filter(pl.col("arm") == "trained")["success_ever"].sum(),
                "restarts": sum(one["NumRestarts"] for one in ended),
                "actors": len(ended),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
