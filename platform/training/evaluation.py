"""Evaluation in the course of training: retrieval on the held-out gallery, also by source."""

from __future__ import annotations

import time

from torch import Tensor

from dynaflip.encoders.model import DynaFLIP
from dynaflip.eval.retrieval import retrieval_report
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.platform.training.data.collate import Batch
from dynaflip.platform.training.data.ids import id64
from dynaflip.platform.training.meter import curve_name

Metrics = dict[str, float]


def evaluate(
    model: DynaFLIP, gallery: Batch, sources: tuple[str, ...], objective: ObjectiveConfig
) -> Metrics:
    """Retrieval, areas and spread on a gallery of held-out transitions.

    Args:
        model: the bare model, neither compiled nor DDP's.
        gallery: a batch of held-out transitions.
        sources: of the triplets; where there are several, retrieval is reported by source too.
        objective: the weights of the energy.
    """
    start_s = time.perf_counter()
    tensors = {name: value for name, value in gallery.items() if isinstance(value, Tensor)}

    def report(rows: dict[str, Tensor], prefix: str) -> Metrics:
        values = retrieval_report(model, rows, volume=objective.volume, cosine=objective.cosine)
        return {f"{prefix}/{name}": value for name, value in values.items()}

    metrics = report(tensors, "heldout")
    for source in sources if len(sources) > 1 else ():
        rows = tensors["source"] == id64(source)
        if int(rows.sum()) < 2:
            continue
        part = {name: value[rows] for name, value in tensors.items()}
        scores = report(part, f"heldout_{curve_name(source)}")
        metrics |= {name: value for name, value in scores.items() if "/retrieval/" in name}
    return metrics | {"speed/evaluation_s": time.perf_counter() - start_s}
