"""Rows to batches: keep what training needs of a clip, decode its images, stack.

Shapes: B samples, K = 7 flow steps, G = 20 grid points a side, H = W = image_px; frames of a
sample are t, the next one, and a later one of the clip (far) for the temporal term.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynaflip.losses.base import FRAMES
from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.augment import draw_augmentation
from dynaflip.platform.training.data.caption_features import TextTable
from dynaflip.platform.training.data.decode import decode_into
from dynaflip.platform.training.data.ids import id64
from dynaflip.platform.training.data.random_numbers import Purpose, uniform
from dynaflip.platform.triplets.shapes import GRID, R3M_FRAMES, STEPS

if TYPE_CHECKING:
    import pyarrow as pa

Batch = dict[str, Any]

TENSOR_SHAPES = {
    "flow_origin_m": (GRID, GRID, 3),
    "flow_displacement_m": (STEPS, GRID, GRID, 3),
    "flow_visible": (STEPS, GRID, GRID),
    "flow_measured": (STEPS,),
}
_FLAGS = ("flow_visible", "flow_measured")  # of the tensors
_IDENTITIES = {
    "group": "caption_group",
    "task": "task",
    "clip": "clip_id",
    "recording": "recording_id",
    "source": "source",
    "triplet": "triplet_id",
}
# Times of the same frame may differ in the last bits.
_SAME_TIME_S = 1e-3


@dataclass(frozen=True)
class Jpegs:
    """Encoded images, one after the other."""

    data: np.ndarray  # (bytes,) uint8
    ends: np.ndarray  # (N + 1,) int32 offsets in `data`

    @classmethod
    def of(cls, column: pa.Array) -> Jpegs:
        """The images of a binary column, without a copy."""
        _, ends, data = column.buffers()
        all_ends = np.frombuffer(ends, np.int32)
        part = all_ends[column.offset : column.offset + len(column) + 1]
        return cls(np.frombuffer(data, np.uint8), part)

    def __getitem__(self, number: int) -> np.ndarray:
        """One of them: (bytes,) uint8."""
        return self.data[self.ends[number] : self.ends[number + 1]]


@dataclass(frozen=True)
class Rows:
    """Some rows of a clip as they wait in the shuffle buffer: R rows, shown as E ≥ R examples."""

    row: np.ndarray  # (E,) of each example
    frames: dict[str, Jpegs]  # t and next of R rows, far of E examples
    tensors: dict[str, np.ndarray]  # (R, …) each, see TENSOR_SHAPES
    median_depth_m: np.ndarray  # (R,)
    window_s: np.ndarray  # (R, 2) float64 start and end of the flow, on the clip's clock
    ids: np.ndarray  # (R, 6) int64, in the order of _IDENTITIES
    text: np.ndarray  # (R,) rows of the caption features
    triplet_id: list[str]
    example: np.ndarray  # (E,) int64
    far_valid: np.ndarray  # (E,) bool: the clip has a frame after the transition


class PendingBatch:
    """A batch whose images are being decoded."""

    def __init__(self, batch: Batch, work: Sequence[Future[None]]) -> None:
        self._batch, self._work = batch, work

    def result(self) -> Batch:
        """The batch, when it is complete; raises what decoding raised."""
        for part in self._work:
            part.result()
        return self._batch


class Collate:
    """Turns rows into the batch that model and objective take (see :meth:`start`)."""

    def __init__(
        self,
        config: DataConfig,
        image_px: int,
        text: TextTable,
        *,
        seed: int,
        augment: bool,
        frames: tuple[str, ...] = FRAMES,
    ) -> None:
        """Take what decides a batch beside its rows.

        Args:
            config: augmentation.
            image_px: side of the images.
            text: features of the captions.
            seed: of the run.
            augment: False leaves the images as they are.
            frames: that are decoded; ``t`` and ``next`` always are.
        """
        self.config, self.image_px, self.text = config, image_px, text
        self.seed, self.augment = seed, augment
        self.frames = tuple(name for name in FRAMES if name in {"t", "next", *frames})

    def __call__(self, table: pa.Table) -> Batch:
        """All rows of a table, in its order, as an unaugmented batch."""
        examples = np.array([id64(name) for name in table["triplet_id"].to_pylist()])
        rows = self.keep(table, np.arange(len(table)), examples, epoch=0)
        return self.start([(rows, number) for number in range(len(table))], epoch=0).result()

    def keep(self, table: pa.Table, row: np.ndarray, example: np.ndarray, epoch: int) -> Rows:
        """The columns that training needs of some rows of a table.

        The far frame is drawn here, of the frames of the clip that are later than the pair: the
        others are dropped while they are still encoded.

        Args:
            table: with the columns ``TRAINING_COLUMNS``.
            row: (E,) row of each example.
            example: (E,) int64 ids.
            epoch: of the run.
        """
        needed, row = np.unique(row, return_inverse=True)
        if len(needed) < len(table):
            table = table.take(needed)
        columns = {name: _whole(table[name]) for name in table.column_names}
        far, valid = self._far_frames(columns, row, example, epoch)
        frames = {"t": columns["frame_t"], "next": columns["frame_next"], "far": far}
        tensors = {
            name: _flat(columns[name]).reshape(-1, *shape)
            for name, shape in TENSOR_SHAPES.items()
            if name in columns
        }
        # Older folders lack it: all of their steps count as measured.
        tensors.setdefault("flow_measured", np.ones((len(table), STEPS), np.uint8))
        start_s = columns["t_s"].to_numpy()
        names = [columns[column].to_pylist() for column in _IDENTITIES.values()]
        numbers = {name: id64(name) for name in set().union(*names)}
        return Rows(
            row,
            {name: Jpegs.of(frames[name]) for name in self.frames},
            tensors,
            columns["median_depth_m"].to_numpy(),
            np.stack([start_s, start_s + columns["window_s"].to_numpy()], 1),
            np.array([[numbers[name] for name in column] for column in names]).T,
            self.text.rows(columns["caption"].to_pylist()),
            names[-1],
            example,
            valid,
        )

    def _far_frames(
        self, columns: dict[str, pa.Array], row: np.ndarray, example: np.ndarray, epoch: int
    ) -> tuple[pa.Array, np.ndarray]:
        """A later frame for each example, and (E,) whether there is one."""
        end_s = columns["t_s"].to_numpy() + columns["window_s"].to_numpy()
        times_s = _flat(columns["frames_r3m_s"]).reshape(-1, R3M_FRAMES)
        later = (times_s > end_s[:, None] + _SAME_TIME_S)[row]
        chance = uniform(Purpose.FAR_FRAME, self.seed, epoch, example)
        wanted = 1 + (chance * later.sum(1)).astype(np.int64)  # the first, second … of those
        chosen = (later.cumsum(1) >= wanted[:, None]).argmax(1)  # 0 where there is none
        images = columns["frames_r3m"].flatten()
        return images.take(R3M_FRAMES * row + chosen), later.any(1)

    def start(
        self,
        rows: Sequence[tuple[Rows, int]],
        epoch: int,
        pool: Executor | None = None,
        tasks: int = 1,
        *,
        pinned: bool = False,
    ) -> PendingBatch:
        """Begin to make a batch; its images are decoded on a pool of threads.

        Args:
            rows: B of them: some rows of a clip, and the number of an example in it.
            epoch: of the run.
            pool: decodes; without one it is done here.
            tasks: parts that decoding is divided into.
            pinned: allocate memory that a GPU can copy from while it computes. torch keeps such
                memory until its copies are done and then gives it to a later batch.

        Returns:
            image_t, image_next, image_far (B, 3, H, W) uint8, channels last in memory, of the
            frames that are decoded; text_features (B, D_text); flow_origin_m (B, G, G, 3),
            flow_displacement_m (B, K, G, G, 3) in camera frame t; flow_visible (B, K, G, G) bool;
            flow_measured (B, K) bool, False where a step is interpolated; median_depth_m (B,);
            window_start_s, window_end_s (B,) float64 on the clip's clock;
            group, task, clip, recording, source, triplet, example (B,) int64
            (a triplet that is drawn several times in an epoch is several examples); far_valid (B,)
            bool; triplet_id, a list of B strings; and augment_… tensors, which
            :func:`.augment.augment_on_device` takes out again.
        """

        def new(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(len(rows), *shape, dtype=dtype, pin_memory=pinned)

        side = self.image_px
        images = {name: new(side, side, 3, dtype=torch.uint8) for name in self.frames}
        tensors = {
            name: new(*shape, dtype=torch.bool if name in _FLAGS else torch.float32)
            for name, shape in TENSOR_SHAPES.items()
        }
        outs = {name: tensor.numpy() for name, tensor in (images | tensors).items()}

        def fill(some: range) -> None:
            for i in some:
                kept, number = rows[i]
                row = kept.row[number]
                for name, jpegs in kept.frames.items():
                    decode_into(jpegs[number if name == "far" else row], outs[name][i])
                for name, values in kept.tensors.items():
                    outs[name][i] = values[row]

        batch: Batch = {
            f"image_{name}": image.permute(0, 3, 1, 2) for name, image in images.items()
        }
        batch |= tensors | self._small(rows, epoch)
        if pool is None:
            fill(range(len(rows)))
            return PendingBatch(batch, [])
        size = -(-len(rows) // tasks)
        parts = [range(i, min(i + size, len(rows))) for i in range(0, len(rows), size)]
        return PendingBatch(batch, [pool.submit(fill, part) for part in parts])

    def _small(self, rows: Sequence[tuple[Rows, int]], epoch: int) -> Batch:
        """All but images and flow."""
        places = [(kept, number, kept.row[number]) for kept, number in rows]
        example = np.array([kept.example[number] for kept, number, _ in places])
        ids = torch.from_numpy(np.array([kept.ids[row] for kept, _, row in places]))
        text = [kept.text[row] for kept, _, row in places]
        depth_m = np.array([kept.median_depth_m[row] for kept, _, row in places])
        window_s = torch.from_numpy(np.array([kept.window_s[row] for kept, _, row in places]))
        valid = np.array([kept.far_valid[number] for kept, number, _ in places])
        batch: Batch = {
            "text_features": torch.from_numpy(self.text.features[text]),
            "median_depth_m": torch.from_numpy(depth_m),
            **dict(zip(("window_start_s", "window_end_s"), window_s.T.contiguous(), strict=True)),
            **dict(zip(_IDENTITIES, ids.T.contiguous(), strict=True)),
            "example": torch.from_numpy(example),
            "far_valid": torch.from_numpy(valid),
            "triplet_id": [kept.triplet_id[row] for kept, _, row in places],
        }
        if self.augment:
            batch |= draw_augmentation(self.config, example, self.seed, epoch)
        return batch


def _whole(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return getattr(array, "storage", array)  # of a tensor


def _flat(column: pa.Array) -> np.ndarray:
    """The numbers of a column of fixed-size lists, without a copy."""
    return column.flatten().to_numpy(zero_copy_only=True)
