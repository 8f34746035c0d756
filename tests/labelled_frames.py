"""A small file of labelled frames, so that sweeps are tested without a simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynaflip.eval.labelled_frames import LabelledFrames
from dynaflip.platform.sweep.frames import write_frames

TASKS = ("open", "press")


def labelled_frames(episodes: int = 4, px: int = 32) -> LabelledFrames:
    """A bright square is the hand, a dark one the object; condition ``light`` dims both."""
    rng = np.random.default_rng(0)
    rows = []
    for task in TASKS:
        for condition, dim in (("train", 1.0), ("none", 1.0), ("light", 0.6)):
            for episode in range(episodes):
                # Test conditions show the same moments.
                name = f"{task}/{'train' if condition == 'train' else 'test'}/{episode}"
                for _ in range(3):
                    hand, thing = rng.integers(2, px - 8, (2, 2))
                    image = np.full((px, px, 3), 120.0)
                    image[thing[1] : thing[1] + 6, thing[0] : thing[0] + 6] = 20
                    image[hand[1] : hand[1] + 6, hand[0] : hand[0] + 6] = 250
                    place = [np.array([*xy, 0]) / 100 for xy in (hand, thing)]
                    shown, joints = (image * dim).astype(np.uint8), np.zeros(7)
                    rows.append((shown, *place, joints, task, name, condition))
    columns = list(zip(*rows, strict=True))
    return LabelledFrames(*(np.array(column) for column in columns))


def write_labelled_frames(path: Path) -> Path:
    """Write them; returns the path."""
    write_frames(labelled_frames(), path)
    return path
