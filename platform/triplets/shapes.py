"""Shapes of a triplet, for code that reads no Parquet: a GPU machine may lack pyarrow."""

from __future__ import annotations

STEPS = 7  # K, of the flow
GRID = 20  # G, key points a side
R3M_FRAMES = 5
