"""What a machine refuses, in one line: full disks, missing rights, too many open files.

Such an error may come from anywhere below a job: its own writes, a library's, a Ray worker's.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from dynaflip.errors import UserError
from dynaflip.platform.s3_errors import NetworkError

_FREE = "free some space, or name another disk (DYNAFLIP_HOME, --output, TMPDIR)"
_RIGHTS = "give this user the right to it, or name another folder (DYNAFLIP_HOME, --output, TMPDIR)"
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
# Last lines of a traceback: an error of ours, and one of the system with the file that it names.
_USERS = re.compile(r"^dynaflip\.(?:errors|platform\.s3_errors)\.\w+: (.+)$", re.MULTILINE)
_SYSTEMS = re.compile(r"^\w+Error: \[Errno (\d+)\](?:[^'\n]*'([^'\n]+)')?", re.MULTILINE)


def in_one_line(error: BaseException) -> str | None:
    """An error as a line for the user, or None where it is a mistake of the program.

    A user's mistake that a Ray worker found counts too; Ray wraps it.
    """
    for one in _chain(error):
        if isinstance(one, (UserError, NetworkError)):
            return str(one)
        if isinstance(one, OSError) and one.errno in _REMEDIES:
            return _line(one.errno, os.fsdecode(one.filename or ""))
        for said, remedy in _SQLITE.items():
            if said in str(one):
                return f"{said}: {remedy}{_AGAIN}"
        if type(one).__name__.startswith("RayTaskError") and (line := _told(str(one))):
            return line
    return None


def _told(text: str) -> str | None:
    """The same of what a Ray task raised, where Ray Data hands on nothing but its text."""
    if users := _USERS.findall(text):
        return str(users[-1])
    for number, where in reversed(_SYSTEMS.findall(text)):
        if int(number) in _REMEDIES:
            return _line(int(number), where)
    return None


def _line(number: int, where: str) -> str:
    # Not in the words of the error: pyarrow writes numbers and details around the system's.
    before = f"{where}: " if where else ""
    return f"{before}{os.strerror(number)}: {_REMEDIES[number]}{_AGAIN}"


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
