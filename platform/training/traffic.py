"""Traffic of a run: what its epochs read from a bucket."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from dynaflip.losses.distributed import global_sum
from dynaflip.platform.s3 import Traffic

Metrics = dict[str, float]
# A rank's traffic of an epoch so far; None where triplets lie on a disk.
EpochTraffic = Callable[[int], Traffic | None]

BYTES, REQUESTS = "data/bytes", "data/requests"


def epoch_traffic(of: EpochTraffic, epoch: int, device: str) -> Metrics:
    """Bytes and requests of all ranks in an epoch, as curves; every rank calls this.

    Empty where triplets lie on a disk. Of an epoch that was resumed it is what came after that.
    """
    mine = of(epoch)
    if mine is None:
        return {}
    counts = torch.tensor([mine.bytes, mine.requests], dtype=torch.float64, device=device)
    total_bytes, requests = global_sum(counts).tolist()
    return {BYTES: total_bytes, REQUESTS: requests}


def traffic_line(metrics: Mapping[str, float], epoch: int) -> str:
    """``epoch 3: 1,240.0 MB in 842 requests to the bucket``."""
    return (
        f"epoch {epoch}: {metrics[BYTES] / 1e6:,.1f} MB in {metrics[REQUESTS]:,.0f} requests to "
        "the bucket"
    )
