"""Checkpoint manager: asynchronous writes, pruning, and the newest whole checkpoint.

Each checkpoint is a folder ``step-00000200`` with its files' sizes and digests in
``digests.json``, the file that makes it complete. The newest k stay, and the best by a curve. A
damaged one is skipped with a warning, and the one before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from dynaflip.errors import RefusedError, StoreError, UserError
from dynaflip.platform.storage import open_storage

MARKER = "digests.json"
STATE = "state.json"
# One failed write may pass; a second in a row ends the run. Of an object store, which may be out of
# order for a while, only when it has refused for so long. Credentials or rights that it refuses do
# not come back: the first such refusal ends the run.
_REFUSALS = 2
_PATIENCE_S = 1800.0


@dataclass(frozen=True)
class Files:
    """A checkpoint's files on this machine."""

    name: str
    folder: Path


class Checkpoints:
    """The checkpoints of one run, below a path or an S3 URI."""

    def __init__(self, uri: str, *, keep: int = 2, best_metric: str = "") -> None:
        """``best_metric`` names a curve; the checkpoint with its highest value stays."""
        self.uri, self.keep, self.best_metric = uri, keep, best_metric
        self.storage = open_storage(uri, MARKER)
        self._writing: threading.Thread | None = None
        self._refusals: list[UserError] = []
        self._refused_at_s = 0.0  # the first of them
        self._failure: BaseException | None = None
        self._values: dict[str, float | None] = {}
        self._damaged: set[str] = set()  # names that newest() has skipped

    def busy(self) -> bool:
        """True if the checkpoint before is still being written."""
        return self._writing is not None and self._writing.is_alive()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the checkpoint before is written, at most so long; whether it is."""
        if self._writing is not None:
            self._writing.join(timeout_s)
        return not self.busy()

    def save(self, step: int, write: Callable[[Path], None], log: Callable[[str], None]) -> None:
        """Write a checkpoint in a thread; waits for the one before it, if that is not done.

        Args:
            step: steps done.
            write: fills a folder with the files; runs in the thread, on tensors of its own.
            log: takes a line for the user.

        Raises:
            UserError: the two checkpoints before could not be written, and an object store has
                taken none for half an hour, or says that it never will.
        """
        self._join()
        if self._gives_up():
            raise self._explained()
        if self._refusals:
            log(f"warning: {self._refusals[-1]}; continuing")
        self._writing = threading.Thread(
            target=self._write, args=(step, write), daemon=True, name="checkpoint"
        )
        self._writing.start()

    def finish(self) -> None:
        """Wait for the last checkpoint.

        Raises:
            UserError: it could not be written.
        """
        self._join()
        if self._refusals:
            raise self._explained()

    def newest(self, log: Callable[[str], None]) -> str | None:
        """Name of the newest whole checkpoint; damaged ones are named in a line to ``log``."""
        with self.newest_files(log) as found:
            return None if found is None else found.name

    @contextlib.contextmanager
    def newest_files(self, log: Callable[[str], None]) -> Iterator[Files | None]:
        """The newest whole checkpoint's files, for a block; None if there is none."""
        with contextlib.ExitStack() as held:
            for name in reversed(self.storage.names()):
                with contextlib.ExitStack() as copy:
                    folder = copy.enter_context(self.storage.fetched(name))
                    problem = damage(folder)
                    if problem is None:
                        held.push(copy.pop_all())
                        yield Files(name, folder)
                        return
                self._damaged.add(name)
                log(
                    f"warning: checkpoint {self.uri}/{name} is damaged ({problem}); "
                    "trying the one before"
                )
            yield None

    def fetched(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A local folder with a checkpoint's files, for a block."""
        return self.storage.fetched(name)

    @contextlib.contextmanager
    def last(self) -> Iterator[Path]:
        """The newest whole checkpoint's files, for a block.

        Raises:
            UserError: there is none.
        """
        with self.newest_files(print) as found:
            if found is None:
                raise UserError(f"checkpoints: {self.uri} holds none that is whole")
            yield found.folder

    def remove_all(self) -> None:
        """Delete every checkpoint of a run that is finished."""
        for name in self.storage.names():
            self.storage.remove(name)

    def _write(self, step: int, write: Callable[[Path], None]) -> None:
        staged = None
        try:
            staged = self.storage.staging()
            try:
                write(staged)
                _seal(staged)
            except (OSError, SafetensorError) as error:
                reason = getattr(error, "strerror", None) or " ".join(str(error).split())
                raise StoreError(f"cannot write a checkpoint below {self.uri}: {reason}") from None
            self.storage.publish(staged, _name(step))
            self._damaged.discard(_name(step))
            self._prune()
        except UserError as error:
            if not self._refusals:
                self._refused_at_s = time.monotonic()
            self._refusals.append(error)
        except BaseException as error:  # raised again in the training's thread
            self._failure = error
        else:
            self._refusals.clear()
        finally:
            if staged is not None:
                shutil.rmtree(staged, ignore_errors=True)

    def _join(self) -> None:
        self.wait()
        self._writing = None
        if self._failure is not None:
            raise self._failure

    def _gives_up(self) -> bool:
        if self._refusals and isinstance(self._refusals[-1], RefusedError):
            return True
        if len(self._refusals) < _REFUSALS:
            return False
        return "://" not in self.uri or time.monotonic() - self._refused_at_s >= _PATIENCE_S

    def _explained(self) -> StoreError:
        try:
            names = self.storage.names()
        except UserError:
            names = []
        last = f"the last good one is {names[-1]}" if names else "there is none yet"
        return StoreError(f"checkpoints: {self._refusals[-1]}; {last}; then go on with --resume")

    def _prune(self) -> None:
        names = self.storage.names()
        # A damaged one that is newer than the resumed step would outlive all later ones.
        whole = [name for name in names if name not in self._damaged]
        stay = set(whole[-self.keep :])
        valued = []
        for name in whole:
            try:
                value = self._value(name)
            except StoreError:  # it may answer the next time: delete nothing
                stay.add(name)
                continue
            if value is not None:
                valued.append((value, name))
        if valued:
            stay.add(max(valued)[1])
        for name in names:
            if name not in stay:
                self.storage.remove(name)

    def _value(self, name: str) -> float | None:
        if not self.best_metric:
            return None
        if name not in self._values:
            text = self.storage.read(name, STATE)
            try:
                self._values[name] = json.loads(text)["metrics"].get(self.best_metric)
            except (ValueError, KeyError):
                self._values[name] = None  # damaged: it is not the best
        return self._values[name]


def damage(folder: Path) -> str | None:
    """Damage of a checkpoint's files in words, or None."""
    try:
        digests = json.loads((folder / MARKER).read_text())
        for name, wanted in digests.items():
            path = folder / name
            if path.stat().st_size != wanted["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {wanted['bytes']}"
            if _digest(path) != wanted["blake2b"]:
                return f"{name} differs from its digest"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MARKER}: {error}"
    return None


def _seal(folder: Path) -> None:
    """Write the digests of all files, which completes the folder."""
    digests = {
        path.name: {"bytes": path.stat().st_size, "blake2b": _digest(path)}
        for path in sorted(folder.iterdir())
    }
    (folder / MARKER).write_text(json.dumps(digests, indent=1))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _name(step: int) -> str:
    return f"step-{step:08d}"
