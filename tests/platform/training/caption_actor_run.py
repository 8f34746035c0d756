"""Embeds captions on a cluster that says it has a GPU, and prints how they compare with those here.

A process of its own, because the tests' shared cluster has no GPU.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from dynaflip.encoders.config import LanguageConfig
from dynaflip.platform.cluster import prepare_environment
from dynaflip.platform.training.data.caption_cache import embed_here

prepare_environment()
import ray  # noqa: E402

ray.init("local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
from dynaflip.platform.training.backends import caption_actor  # noqa: E402

config, captions = LanguageConfig(name=sys.argv[1]), sys.argv[2:]
chunks = [captions[i : i + 3] for i in range(0, len(captions), 3)]
here = np.concatenate(list(embed_here(config, chunks)))
caption_actor.embed_here = None  # type: ignore[assignment]  # nothing is embedded in this process
there = np.concatenate(list(caption_actor.embed(config, chunks)))
print(json.dumps({"equal": bool(np.allclose(here, there, atol=1e-6)), "shape": there.shape}))
ray.shutdown()
