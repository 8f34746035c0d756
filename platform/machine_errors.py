"""What a machine refuses, in one line: full disks, missing rights, too many open files.

Such an error may come from anywhere below a job: its own writes, a library's, a Ray worker's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from dynaflip.errors import UserError

_FREE = "free some space, or name another disk (DYNAFLIP_HOME, --output, TMPDIR)"
_RIGHTS = "choose a folder that you may write to (DYNAFLIP_HOME, --output, TMPDIR)"
_AGAIN = "; then run the same command again"
# Errors of the system → what to do. Files that are not there are not among them: they are a
# mistake of the program where the job has not found them before.
_REMEDIES = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "allow larger files (`ulimit -f unlimited`)",
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EMFILE: "allow more open files (`ulimit -n 4096`)",
    errno.ENFILE: "the whole machine has too many open files: stop what is not needed",
    errno.EAGAIN: "allow more processes (`ulimit -u`), or stop some",
    errno.ENOMEM: "stop what else needs memory, or use fewer workers",
    errno.EIO: "the disk fails: look at the system's log",
    errno.ESTALE: "the network file system was mounted anew: start from a fresh shell",
    errno.ENOTCONN: "mount the file system again",
    errno.ELOOP: "the links lead in a circle",
    errno.ENAMETOOLONG: "choose a shorter path",
}
# What SQLite, which holds runs and trials, says instead.
_SQLITE = {
    "database or disk is full": _FREE,
    "readonly database": _RIGHTS,
    "unable to open database file": _RIGHTS,
    "database is locked": "another process holds it; network file systems may hold it for ever",
}


def in_one_line(error: BaseException) -> str | None:
    """An error as a line for the user, or None where it is a mistake of the program.

    A user's mistake that a Ray worker found counts too; Ray wraps it.
    """
    for one in _chain(error):
        if isinstance(one, UserError):
            return str(one)
        if isinstance(one, OSError) and one.errno in _REMEDIES:
            where = f"{os.fsdecode(one.filename)}: " if one.filename else ""
            # pyarrow writes a number and details around the system's own words.
            return f"{where}{os.strerror(one.errno)}: {_REMEDIES[one.errno]}{_AGAIN}"
        for said, remedy in _SQLITE.items():
            if said in str(one):
                return f"{said}: {remedy}{_AGAIN}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it, the last one first."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inside = getattr(one, "cause", None)  # of Ray's
        left += [one.__cause__ if one.__suppress_context__ else one.__context__, one.__cause__]
        left.append(inside if isinstance(inside, BaseException) else None)
