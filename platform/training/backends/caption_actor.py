"""Captions embedded on a GPU of the cluster, where the driver has none.

Import this only after :func:`dynaflip.platform.cluster.start_ray`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import ray

from dynaflip.encoders.config import LanguageConfig
from dynaflip.platform.training.data.caption_cache import Embedder, embed_here

_WAITING = 2  # lists of captions that the actor has before it, so that it never waits


def embed(config: LanguageConfig, chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
    """Embed lists of captions, in order, on a free GPU of the cluster; here where there is none.

    Features come back a list at a time: the whole table never is in Ray's object store.
    """
    if ray.available_resources().get("GPU", 0) < 1:
        yield from embed_here(config, chunks)
        return
    remote: Any = ray.remote(num_cpus=0, num_gpus=1)(Embedder)  # typed as the class itself
    actor = remote.remote(config)
    waiting: deque[ray.ObjectRef] = deque()
    try:
        for chunk in chunks:
            if len(waiting) == _WAITING:
                yield ray.get(waiting.popleft())
            waiting.append(actor.embed.remote(chunk))
        while waiting:
            yield ray.get(waiting.popleft())
    finally:
        ray.kill(actor)  # its GPU goes to training
