"""Captions in a table beside the videos: ``captions.csv``, ``.jsonl`` or ``.parquet``.

Columns: ``file`` and ``caption``; a file may have several rows, one a phrasing.
Optional: ``start_s`` and ``end_s`` (the segment of the video that the caption
describes), ``task`` (rows of equal task mean the same), ``recording`` (files of equal
name are cameras of one recording and stay in one split), ``camera``, ``licence``,
``embodiment``, and ``depth`` (see :mod:`~dynaflip.platform.triplets.sources.folder`).
"""

from __future__ import annotations

import codecs
import csv
import datetime
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from dynaflip.errors import UserError
from dynaflip.platform.triplets.sources.locations import Location, read_table, why_unreadable

CAPTION_FILES = ("captions.csv", "captions.jsonl", "captions.parquet")


@dataclass(frozen=True)
class CaptionRow:
    """One caption of one video, or of a segment of it."""

    file: str  # relative to the source's root
    caption: str = ""
    task: str = ""
    group: str = ""  # equal = same meaning, where it differs from the task; no column
    recording: str = ""
    camera: str = ""
    licence: str = ""
    embodiment: str = ""
    depth: str = ""
    start_s: float | None = None  # None: the video's beginning
    end_s: float | None = None  # None: the video's end
    problem: str = ""  # why this row cannot be used


_NO_COLUMNS = ("group", "problem")
_TEXTS = tuple(f.name for f in fields(CaptionRow) if f.type == "str" and f.name not in _NO_COLUMNS)
# Names on disk need not be UTF-8; texts in triplets must be.
_WORDS = tuple(name for name in _TEXTS if name not in ("file", "depth"))
_TIMES = ("start_s", "end_s")
_NUMBERED = ("task", "recording", "camera")
# What JSON and Parquet hold beside texts, in the order in which Python's types are tried.
_KINDS: dict[type, str] = {
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a number",
    float: "a number",
    bytes: "bytes",
}
# A spreadsheet's export has a semicolon where the comma marks decimals, or tabs.
_DELIMITERS = (",", ";", "\t")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_captions(path: Location) -> list[CaptionRow]:
    """Rows of a table of captions, in its order.

    Raises:
        UserError: the file as a whole cannot be read, or lacks a column.
    """
    try:
        if path.name.endswith(".parquet"):
            lines: list[dict[str, Any]] = read_table(path).to_pylist()
        elif path.name.endswith(".jsonl"):
            lines = _read_jsonl(path)
        else:
            lines = _read_csv(path)
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({why_unreadable(path, error)})") from None
    lines = [_with_plain_names(line) for line in lines]
    names = {str(name) for line in lines for name in line if name is not None}
    if lines and not {"file", "caption"} <= names:
        raise UserError(
            f"{path}: needs the columns file and caption, has {', '.join(sorted(names)) or 'none'}"
        )
    return list(_rows(lines, path))


def _rows(lines: list[dict[str, Any]], path: Location) -> Iterator[CaptionRow]:
    for number, line in enumerate(lines, start=1):
        others = {name: kind for name in _TEXTS if (kind := _other_than_text(name, line.get(name)))}
        if "file" in others:
            raise UserError(f"{path}: row {number}: file is {others['file']}, not text")
        texts = {name: "" if name in others else _text(line.get(name)) for name in _TEXTS}
        if not texts["file"]:
            if others or any(texts.values()):
                raise UserError(f"{path}: row {number} names no file")
            continue
        for name in ("file", "depth"):
            texts[name] = PurePosixPath(texts[name]).as_posix() if texts[name] else ""
        problem = ""
        for name, kind in others.items():
            problem = f"row {number} of {path.name}: {name} is {kind}, not text"
        if others.get("caption") == _KINDS[list]:
            problem = (
                f"row {number} of {path.name}: caption is a list, not text; give a row a phrasing"
            )
        for name in _WORDS:
            if not _is_utf8(texts[name]):
                texts[name] = texts[name].encode(errors="backslashreplace").decode()
                problem = f"row {number} of {path.name}: the {name} is not UTF-8"
        # What csv.DictReader finds beyond the header's columns.
        if any(cell.strip() for cell in line.get(None, ())):  # type: ignore[call-overload]
            problem = (
                f"row {number} of {path.name}: has more cells than the first row; put a caption "
                f"that holds a comma into quotes"
            )
        times: dict[str, float | None] = {}
        for name in _TIMES:
            try:
                times[name] = _seconds(line.get(name))
            except (OverflowError, TypeError, ValueError):
                times[name] = None
                problem = f"row {number} of {path.name}: {name} is not a time in seconds"
        start, end = times["start_s"] or 0.0, times["end_s"]
        if end is not None and end <= start:
            problem = f"row {number} of {path.name}: ends at {end} s, before its start"
        row = CaptionRow(**texts, problem=problem)  # type: ignore[arg-type]
        yield replace(row, start_s=times["start_s"], end_s=end)


def _read_csv(path: Location) -> list[dict[str, Any]]:
    text = _decoded(path)
    header = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.DictReader(
        io.StringIO(text, newline=""), skipinitialspace=True, delimiter=delimiter
    )
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
    if not {"file", "caption"} <= set(reader.fieldnames):
        has = ", ".join(reader.fieldnames) or "none"
        raise UserError(f"{path}: needs the columns file and caption, has {has}")
    lines = list(reader)
    if any("\n" in str(cell) for line in lines for cell in line.values()):
        _check_quotes(text, delimiter, path)
    return lines


def _check_quotes(text: str, delimiter: str, path: Location) -> None:
    """Refuse a quote that is never closed: it takes in all rows behind it."""
    try:
        list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise UserError(f"{path}: a quote is opened and never closed") from None


def _with_plain_names(line: dict[str, Any]) -> dict[str, Any]:
    """A row with its columns' names in lower case, as people write File and Caption."""
    return {name.lower() if isinstance(name, str) else name: line[name] for name in line}


def _read_jsonl(path: Location) -> list[dict[str, Any]]:
    out = []
    # Not splitlines: a string of JSON may hold U+2028 and U+0085 as they are.
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise UserError(f"{path}: line {number} is not a JSON object")
        out.append(values)
    return out


def _decoded(path: Location) -> str:
    """UTF-8, but what is not stays as lone surrogates: names on disk need not be UTF-8."""
    data = path.read_bytes()
    if data.startswith(_UTF16):  # "Unicode text" of a spreadsheet
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise UserError(f"{path}: begins as UTF-16 and is not: save it as UTF-8") from None
    if b"\0" in data[:512]:
        raise UserError(f"{path}: is not text in UTF-8 (it holds zero bytes): save it as UTF-8")
    return data.decode("utf-8-sig", errors="surrogateescape")


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _other_than_text(name: str, value: Any) -> str:
    """The kind of a value that is no text, as a person says it; "" for text and for none."""
    if isinstance(value, str) or _is_missing(value):
        return ""
    # Recordings, cameras and tasks are often numbered; no caption and no file is a number.
    if name in _NUMBERED and isinstance(value, int | float) and not isinstance(value, bool):
        return ""
    kinds = (said for kind, said in _KINDS.items() if isinstance(value, kind))
    return next(kinds, f"of type {type(value).__name__}")


def _text(value: Any) -> str:
    return "" if _is_missing(value) else str(value).strip()


def _is_missing(value: Any) -> bool:
    """True for no value: data frames have NaN where a text is missing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _seconds(value: Any) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        raise TypeError(value)
    seconds = value.total_seconds() if isinstance(value, datetime.timedelta) else float(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(value)
    return seconds
