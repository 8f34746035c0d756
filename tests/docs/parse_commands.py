"""Parse command lines with the real jobs, up to the first thing that is work.

Reads ``[[job, [word, …]], …]`` from standard input and writes a message for each on standard
output, as JSON: null where the job would have begun to work, or the error it ended with. Work
begins where a job imports torch, Ray or MLflow, or starts a process: none of the jobs needs that
to read its settings, so nothing is switched off inside them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import io
import json
import subprocess
import sys
import types
import typing
from collections.abc import Sequence

WORK = ("torch", "ray", "mlflow", "optuna", "pyarrow", "polars", "mujoco")


class _Work(BaseException):
    """Raised where a job's work would begin."""


class _StopAtWork(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] in WORK:
            raise _Work(name)
        return None


def _start_nothing(*_: object, **__: object) -> typing.NoReturn:
    raise _Work("a process")


def problem(job: str, words: list[str]) -> str | None:
    """What is wrong with a command line."""
    from dynaflip.errors import UserError
    from dynaflip.jobs import cli

    if job not in cli.JOBS:
        return f"there is no job {job}"
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            module = importlib.import_module(f"dynaflip.jobs.{job}")
            module.main(words)
    except _Work:
        return None
    except UserError as error:
        return str(error)
    except SystemExit as stop:  # of --help
        return None if not stop.code else f"exit code {stop.code}: {output.getvalue()}"
    return None


def main() -> None:
    """Answer for every command line."""
    sys.meta_path.insert(0, _StopAtWork())
    subprocess.Popen.__init__ = _start_nothing  # type: ignore[method-assign]
    lines = json.load(sys.stdin)
    json.dump([problem(job, words) for job, words in lines], sys.stdout)


if __name__ == "__main__":
    main()
