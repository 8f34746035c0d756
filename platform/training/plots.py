"""Figures of a pretraining: its curves, and flow drawn on some of its triplets."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynaflip.platform.tracking import Run
from dynaflip.platform.training.meter import STEP_PARTS

Curves = dict[str, list[tuple[int, float]]]
_FLOW_EXAMPLES = 8


def log_images(run: Run, curves: Curves, triplets: str, terms: Sequence[str]) -> None:
    """Log ``images/curves.png`` and ``images/flow.png`` to the run.

    Args:
        run: the open MLflow run.
        curves: of :meth:`Run.curves`.
        triplets: the folder or bucket's prefix that the run was trained on.
        terms: names of the loss terms to draw.
    """
    import cv2

    from dynaflip.platform.triplets.folder_index import parquet_files
    from dynaflip.platform.triplets.place import place_of
    from dynaflip.platform.triplets.report.examples import read_examples
    from dynaflip.platform.triplets.report.overlays import draw_tracks, sheet
    from dynaflip.platform.triplets.schema import read_manifest

    run.log_figure(curves_figure(curves, terms), "images/curves.png")
    files = parquet_files(place_of(triplets), read_manifest(triplets))
    rows = read_examples(files, _FLOW_EXAMPLES)
    overlay = sheet([draw_tracks(row) for row in rows], [row["caption"] for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.png"
        cv2.imwrite(str(path), cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR))
        run.log_file(path, "images")


def curves_figure(curves: Curves, terms: Sequence[str]) -> Any:
    """Six panels over steps: terms, areas, held-out retrieval against chance, effective rank, the
    parts of a step's time, and throughput."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(18, 7), layout="constrained")
    panels = figure.subplots(2, 3)
    shown = {name: f"train/{name}" for name in ("loss", *terms)}
    _draw(panels[0, 0], curves, shown, "loss and its terms, unweighted")
    areas = {f"{k} triples": f"train/area_{k}" for k in ("matched", "shuffled")}
    _draw(panels[0, 1], curves, areas, "area of triples")
    for colour, scope in zip(("C0", "C1", "C2", "C3"), _SCOPES, strict=True):
        for kind, style in (("top1", "-"), ("chance", ":")):
            points = curves.get(f"heldout/retrieval/{scope}/{kind}", [])
            label = scope if kind == "top1" else None
            panels[1, 0].plot(*_xy(points), style, color=colour, label=label, marker=".")
    panels[1, 0].set_title("held-out retrieval, top-1 (dotted: chance)")
    ranks = {m: f"heldout/effective_rank/{m}" for m in ("image", "language", "flow")}
    _draw(panels[1, 1], curves, ranks, "effective rank of held-out embeddings")
    parts = {part.replace("_", " and "): f"speed/{part}_s" for part in STEP_PARTS}
    _draw(panels[0, 2], curves, parts, "seconds of a step")
    _draw(panels[1, 2], curves, {"images/s": "speed/images_per_s"}, "throughput")
    if "speed/mfu" in curves:
        share = panels[1, 2].twinx()
        share.plot(*_xy(curves["speed/mfu"]), color="C1")
        share.set_ylabel("MFU", color="C1")
        share.set_ylim(0, 1)
    for panel in panels.flat:
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    return figure


_SCOPES = ("all", "task", "clip", "task_swapped")


def _draw(panel: Any, curves: Curves, names: dict[str, str], title: str) -> None:
    for label, name in names.items():
        panel.plot(*_xy(curves.get(name, [])), label=label)
    panel.set_title(title)


def _xy(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
