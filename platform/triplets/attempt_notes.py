"""Note of the attempts at a clip, which outlives the worker process that dies of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from dynaflip.platform.triplets.clips import content_hash
from dynaflip.platform.triplets.place import Place


class Notes:
    """The note of one clip.

    A fault handler writes into a file of this machine. For work in a bucket the note there says
    how often the clip was begun; the traces of faults are known on the machine where they happened.
    """

    def __init__(self, folder: Place, clip_id: str) -> None:
        self.note = folder / clip_id
        self.file = self.note if isinstance(self.note, Path) else _on_this_machine(self.note)

    def read(self) -> str:
        """All that is known of earlier attempts."""
        here = self.file.read_text(errors="replace") if self.file.exists() else ""
        if self.note is self.file:
            return here
        try:
            there = self.note.read_text()
        except FileNotFoundError:
            return ""  # of earlier work on this machine, which is done
        return here if here.startswith(there) else there

    @contextmanager
    def begun(self, text: str) -> Iterator[TextIO]:
        """Note an attempt; yields the open file that a fault handler may write into."""
        self.file.parent.mkdir(parents=True, exist_ok=True)  # workers may outlive their driver
        if not isinstance(self.note, Path):
            self.note.write_bytes(text.encode())
        with self.file.open("w") as file:
            file.write(text)
            file.flush()
            yield file

    def remove(self) -> None:
        """Forget the attempts: the clip is done."""
        self.file.unlink(missing_ok=True)
        if self.note is not self.file:
            self.note.unlink(missing_ok=True)


def _on_this_machine(note: Place) -> Path:
    folder = Path(tempfile.gettempdir()) / f"dynaflip-attempts-{os.getuid()}"
    return folder / content_hash(str(note))
