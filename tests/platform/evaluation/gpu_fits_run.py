"""An evaluation that trains its encoder, on a cluster with a GPU that torch does not see.

Run by test_end_to_end_fits.py as a program of its own, because the cluster is its own. Prints one
line of JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tiny_rollouts import encoder_folder, tiny

from dynaflip.errors import UserError
from dynaflip.eval.envs.registry import environment
from dynaflip.eval.policies.config import BehaviourCloningConfig, EndToEndConfig
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.cluster import prepare_environment, start_ray
from dynaflip.platform.evaluation.fits_config import FitsConfig


class Other:
    """Somebody who has the GPU."""


@contextlib.contextmanager
def recorded_nodes() -> Iterator[list[str]]:
    """Machines that have fitted policies, in a block."""
    from dynaflip.platform.evaluation import end_to_end_fits

    nodes: list[str] = []

    class Recorded(ActorPool):
        def __exit__(self, *exception: object) -> None:
            nodes.extend(str(member.node) for member in self._members.values())
            super().__exit__(*exception)

    end_to_end_fits.ActorPool = Recorded  # type: ignore[misc]
    try:
        yield nodes
    finally:
        end_to_end_fits.ActorPool = ActorPool  # type: ignore[misc]


def main(folder: Path) -> None:
    """Fit, then roll out beside somebody who has the GPU; say which pool's actors were where."""
    prepare_environment()
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **small})
    with_gpu = cluster.add_node(num_gpus=1, **small)
    os.environ["RAY_ADDRESS"] = cluster.address
    start_ray()
    import ray
    import torch

    from dynaflip.platform.evaluation import cache
    from dynaflip.platform.evaluation.demonstrations import read_demonstrations
    from dynaflip.platform.evaluation.end_to_end_fits import fit_end_to_end_policies
    from dynaflip.platform.evaluation.plan import prepare
    from dynaflip.platform.evaluation.policy_fits import fit_end_to_end_policy
    from dynaflip.platform.evaluation.schedule import fit_missing, open_pool, run_jobs

    torch.set_num_threads(1)
    config = tiny(
        encoder_folder(folder / "encoder"),
        adaptation="lora",
        behaviour_cloning=BehaviourCloningConfig(hidden_dim=16, layers=1),
        end_to_end=EndToEndConfig(steps=3, batch_size=8, lora_rank=2),
        fits=FitsConfig(gpus=0.5),
        baselines=(),
        seeds=1,
        check_harness=False,
    )
    _, jobs = prepare(config)
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        open_pool(environment(config.environment)) as pool,
        recorded_nodes() as fitted_on,
    ):
        fit_missing(jobs, pool, config.fits, quiet=True)
        other = ray.remote(num_cpus=1, num_gpus=1)(Other).remote()
        ray.get(other.__ray_ready__.remote())
        results = run_jobs(jobs, pool, config.fits, quiet=True)
        rolled_out_on = {member.node for member in pool._members.values() if member.node}
    spec = jobs[0].policy
    here = fit_end_to_end_policy(spec, read_demonstrations(spec.demonstrations[0]))
    there = cache.load_policy(spec.digest())
    equal = here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here)
    ray.kill(other)
    try:
        list(fit_end_to_end_policies([spec], FitsConfig("gpu")))
        refused = ""
    except UserError as error:
        refused = str(error)
    found = {
        "fitted_on": fitted_on,
        "rolled_out_on": sorted(rolled_out_on),
        "head": cluster.head_node.node_id,
        "gpu_node": with_gpu.node_id,
        "said": said.getvalue().splitlines(),
        "steps": [sum(result.steps) for result in results],
        "equal": equal,
        "refused": refused,
    }
    print(f"FOUND {json.dumps(found)}", flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
