"""CPU time of a behaviour cloning step with each read-out, beside the pooled feature.

    PYTHONPATH=.:tests/benchmarks python tests/benchmarks/readouts.py

Tokens are random and of the size of EfficientNet-Lite0's at 112 px (25 episodes of 100 frames);
what each read-out costs is the same whatever they hold. Memory is what the fit adds to the process.
"""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from dynaflip.eval.policies.base import Demonstrations
from dynaflip.eval.policies.behaviour_cloning import fit_behaviour_cloning
from dynaflip.eval.policies.config import BATCH, BehaviourCloningConfig
from dynaflip.eval.policies.readouts.base import new_reader
from dynaflip.eval.policies.readouts.grid import TokenGrid
from dynaflip.eval.policies.readouts.token_store import TokenStore
from dynaflip.eval.policies.registry import read_out, readout_settings

FRAMES, STEPS, ROUNDS = 2500, 20, 3
GRIDS = [TokenGrid(4, 4, 1280), TokenGrid(7, 7, 112), TokenGrid(14, 14, 40)]


def pooled(rng: np.random.Generator) -> Demonstrations:
    """Random frames with an embedding of 1,280."""
    return Demonstrations(
        features=rng.normal(size=(FRAMES, 1280)).astype(np.float32),
        proprioception=rng.normal(size=(FRAMES, 4)).astype(np.float32),
        actions=rng.uniform(-1, 1, (FRAMES, 4)).astype(np.float32),
        episode=np.arange(FRAMES) // 100,
    )


def stored(rng: np.random.Generator, scales: int) -> TokenStore:
    """Random tokens of so many scales."""
    store = TokenStore(FRAMES, GRIDS[:scales])
    width = sum(grid.values for grid in GRIDS[:scales])
    for _ in range(0, FRAMES, 100):
        store.append(rng.normal(size=(100, width)).astype(np.float32))
    return store


def seconds(shown: Demonstrations, steps: int) -> float:
    """CPU seconds of a fit."""
    config = BehaviourCloningConfig(steps=steps)
    began = time.process_time()
    fit_behaviour_cloning(shown, config, use_proprioception=True, seed=0)
    return time.process_time() - began


def with_readout(shown: Demonstrations, name: str, store: TokenStore) -> Demonstrations:
    """The same frames, read by a read-out."""
    settings = readout_settings(name, {"scales": len(store.grids)})
    reader = new_reader(read_out(name), settings, store.grids, norm=BATCH, seed=0)
    return replace(shown, features=np.zeros((FRAMES, 0), np.float32), tokens=store, reader=reader)


def main() -> None:
    """Print a line per read-out."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    cases = {"pooled": pooled(rng)}
    for scales in (1, 3):
        store = stored(rng, scales)
        for name in ("attentive", "spatial_softmax"):
            cases[f"{name}, {scales} scales"] = with_readout(cases["pooled"], name, store)
    memory = {}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, shown in cases.items():
            times[name].append(seconds(shown, STEPS))
            memory[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    base = median(times["pooled"])
    for name, values in times.items():
        step = 1000 * median(values) / STEPS
        print(f"{name:<26} {step:6.1f} ms CPU a step of 128 frames, {median(values) / base:4.1f} x")
    print(f"peak memory of the process {max(memory.values()):.0f} MB")


if __name__ == "__main__":
    main()
