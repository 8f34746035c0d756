"""Depth in a ``.npy`` file, read frame by frame: a recording's depth may exceed the memory."""

from __future__ import annotations

import math

import numpy as np

from dynaflip.platform.s3_errors import NetworkError
from dynaflip.platform.triplets.clips import ClipRejected, Floats
from dynaflip.platform.triplets.sources.locations import Location, other_kind_of


def read_depth_file_m(path: Location, indices: list[int], frames: int) -> Floats:
    """Depth of some frames, in metres.

    Args:
        path: (N, H, W) z-depth: metres if floating point, millimetres if integer.
        indices: of frames.
        frames: N must be this.

    Returns:
        (len(indices), H, W), NaN where there is none.

    Raises:
        ClipRejected: no such file, no such array, or another number of frames.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                raise ClipRejected("depth", f"{path.name}: .npy of version {version}")
            shape, by_column, kind = read_header(file)
            if kind.kind not in "fiu" or by_column:
                raise ClipRejected("depth", f"{path.name}: needs numbers in C order, has {kind}")
            if kind.kind in "iu" and kind.itemsize == 1:
                raise ClipRejected(
                    "depth",
                    f"{path.name}: integers are read as millimetres, and 8 bits end at 255 mm; "
                    f"write metres in floating point",
                )
            if len(shape) != 3 or shape[0] != frames:
                raise ClipRejected(
                    "depth",
                    f"depth of shape {tuple(shape)} does not go with {frames} frames of video",
                )
            begin, size = file.tell(), math.prod(shape[1:]) * kind.itemsize
            picked = np.empty((len(indices), *shape[1:]), np.float32)
            scale = np.float32(1.0 if kind.kind == "f" else 0.001)
            for n, index in enumerate(indices):
                file.seek(begin + index * size)
                data = file.read(size)
                if len(data) < size:
                    raise ClipRejected("depth", f"{path.name} ends before frame {index}")
                picked[n] = np.frombuffer(data, kind).reshape(shape[1:]).astype(np.float32) * scale
    except NetworkError as error:
        raise ClipRejected("network", str(error)) from None
    except FileNotFoundError:
        raise ClipRejected("depth", f"there is no file {path.name}") from None
    except (OSError, ValueError, EOFError):
        kind_of_file = other_kind_of(path)
        reason = f": {kind_of_file}" if kind_of_file else ""
        raise ClipRejected("depth", f"cannot read {path.name} as .npy{reason}") from None
    picked[~np.isfinite(picked) | (picked <= 0)] = np.nan
    return picked
