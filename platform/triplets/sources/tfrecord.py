"""TFRecord files and the ``tf.train.Example`` in their records, without TensorFlow.

A record is its length (8 bytes), the length's masked CRC-32C (4), the data, and the
data's masked CRC-32C (4); see tensorflow/core/lib/io/record_writer.h. An Example is a
protobuf map of names to lists of bytes, floats or integers (example.proto, feature.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.platform.triplets.sources.crc32c import masked_crc32c

_HEAD = struct.Struct("<QI")
_SUM = struct.Struct("<I")
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3
# Of a long feature's value: three heads of a field, and the header of an image.
_HEAD_BYTES = 96
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

# A feature's values: a list of bytes, or an array of float32 or int64.
Values = list[bytes] | np.ndarray


@dataclass(frozen=True)
class Unread:
    """A long feature of which only the beginning was read.

    Args:
        first: the first bytes of its first value; None where its values are numbers, or none.
    """

    first: bytes | None


class DamagedRecord(Exception):
    """A record, or the rest of a file, that cannot be read."""


@dataclass(frozen=True)
class Record:
    """Place of a record's data in its file, and the checksum that is stored with it."""

    offset: int
    size: int
    checksum: int


def scan_records(file: Any, size: int) -> Iterator[Record | DamagedRecord]:
    """Find the records of a file of ``size`` bytes without reading their data.

    After a damaged length nothing more can be found: the last item then says so.
    """
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            yield DamagedRecord("the file ends within a record's head")
            return
        length, checksum = _HEAD.unpack(head)
        if masked_crc32c(head[:8]) != checksum:
            yield DamagedRecord(f"the length at byte {position} is damaged, the rest is unreadable")
            return
        begin = position + _HEAD.size
        if begin + length + _SUM.size > size:
            yield DamagedRecord(f"truncated: {size - begin} of {length} bytes of a record")
            return
        file.seek(begin + length)
        yield Record(begin, length, _SUM.unpack(file.read(_SUM.size))[0])
        position = begin + length + _SUM.size


def read_record(file: Any, record: Record) -> bytes:
    """The data of a record.

    Raises:
        DamagedRecord: its checksum is another.
    """
    file.seek(record.offset)
    data = file.read(record.size)
    if len(data) != record.size or masked_crc32c(data) != record.checksum:
        raise DamagedRecord("the record's checksum (CRC-32C) is wrong: its bytes are damaged")
    return data


def read_outline(file: Any, record: Record, most_bytes: int) -> dict[str, Values | Unread]:
    """The features of a record, without reading those of more than ``most_bytes``.

    Returns:
        Values by name.

    Raises:
        DamagedRecord: it is no ``tf.train.Example``, as far as it was read.
    """
    out: dict[str, Values | Unread] = {}
    end = record.offset + record.size
    try:
        begin, limit = _enter(file, record.offset, end)
        while begin < limit:
            at, after = _enter(file, begin, limit)
            if after - at <= most_bytes:
                file.seek(at)
                name, values = _entry(memoryview(file.read(after - at)))
                out[name] = values
            else:
                # The name comes first, as every serialiser of protobuf writes it.
                text, text_end = _enter(file, at, after)
                file.seek(text)
                size = text_end - text
                data = file.read(min(size + _HEAD_BYTES, after - text))
                out[data[:size].decode()] = Unread(_first_bytes(memoryview(data[size:])))
            begin = after
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise DamagedRecord(f"not a tf.train.Example ({error})") from None
    return out


def _enter(file: Any, position: int, limit: int) -> tuple[int, int]:
    """Begin and end of the content of the length-delimited first field at a position."""
    file.seek(position)
    head = memoryview(file.read(min(11, limit - position)))
    if head[0] != (1 << 3 | _LENGTH):
        raise ValueError(f"byte {head[0]} where a field begins")
    size, used = _varint(head, 1)
    if position + used + size > limit:
        raise ValueError(f"a field of {size} bytes where {limit - position - used} are left")
    return position + used, position + used + size


def _first_bytes(head: memoryview) -> bytes | None:
    """The first bytes of the first value, from those of the map's entry behind its name."""
    position, size = 0, 0
    # The entry's value, a Feature; its list of bytes; the first value of that.
    for field in (2, _BYTES, 1):
        if position == len(head) or head[position] != (field << 3 | _LENGTH):
            return None
        size, position = _varint(head, position + 1)
    return bytes(head[position : position + size])


def read_example(data: bytes) -> dict[str, Values]:
    """The features of a serialised ``tf.train.Example`` by name.

    Raises:
        DamagedRecord: it is something else.
    """
    try:
        out: dict[str, Values] = {}
        view = memoryview(data)
        for field, features in _fields(view):
            if field != 1:
                continue
            out |= dict(_entry(entry) for _, entry in _fields(features))
        return out
    except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
        raise DamagedRecord(f"not a tf.train.Example ({error})") from None


def _entry(entry: memoryview) -> tuple[str, Values]:
    """Name and values of an entry of the map."""
    parts = dict(_fields(entry))
    return bytes(parts[1]).decode(), _values(parts.get(2, memoryview(b"")))


def _values(feature: memoryview) -> Values:
    for kind, values in _fields(feature):
        if kind == _BYTES:
            return [bytes(value) for _, value in _fields(values)]
        if kind == _FLOATS:
            packed = b"".join(bytes(part) for _, part in _fields(values))
            return np.frombuffer(packed, "<f4")
        if kind == _INTEGERS:
            return np.array([n for _, part in _fields(values) for n in _integers(part)], np.int64)
    return []


def _integers(part: memoryview | int) -> list[int]:
    """Signed 64-bit integers, packed or single."""
    if isinstance(part, int):
        return [_signed(part)]
    out, position = [], 0
    while position < len(part):
        value, position = _varint(part, position)
        out.append(_signed(value))
    return out


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(view: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of the fields of a protobuf message."""
    position = 0
    while position < len(view):
        tag, position = _varint(view, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(view, position)
            yield tag >> 3, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if kind == _LENGTH:
            size, position = _varint(view, position)
        if size is None or position + size > len(view):
            raise ValueError(f"field {tag >> 3} of wire type {kind} at byte {position}")
        yield tag >> 3, view[position : position + size]
        position += size


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {position}")
