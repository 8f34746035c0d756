"""Work of preprocessing on Ray Data, with nothing printed beside our own progress."""

from __future__ import annotations

import logging
import sys
from typing import Any

from dynaflip.platform.cluster import start_ray

_MAX_BLOCKS = 4096


def cluster_cpus() -> int:
    """CPUs of the Ray cluster; 1 as long as this process has not joined one."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return 1
    return int(ray.cluster_resources().get("CPU", 1))


def dataset_of(items: list[dict[str, Any]]) -> Any:
    """A Ray data set with a block an item, as far as that goes; starts Ray.

    Ray Data repeats a dead worker's task without end: tasks can be repeated, and what kills
    workers is counted elsewhere.
    """
    start_ray()
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would report beside our progress
    return ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_BLOCKS))
