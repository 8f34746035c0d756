"""Jobs where the machine or the shell is odd: it works, or one line says what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import REPOSITORY

from dynaflip.errors import UserError
from dynaflip.platform import cluster
from dynaflip.platform.machine_errors import in_one_line

# As a C locale without Python's help against it: Latin-1 ones are not on every machine.
ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def run(
    job: str, *words: str, close: str = "", user: str = "", **variables: str | None
) -> subprocess.CompletedProcess[bytes]:
    """A job of a checkout; ``close`` are redirections of its shell, ``None`` unsets a variable."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), *words]
    if user:
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
    return subprocess.run(
        ["bash", "-c", f'"$@" {close}', "bash", *command],
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
    )


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    """What a refused job says: one line."""
    told = done.stderr.decode()
    assert done.returncode == 2, told
    assert "Traceback" not in told
    assert told.startswith("error: ")
    assert len(told.splitlines()) == 1
    return told


def test_settings_are_read_as_utf8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("source: {captions: 把杯子/é.csv}\n", encoding="utf-8")
    words = ["--config", str(tmp_path / "mine.yaml"), "--print_config"]
    assert (
        "把杯子/é.csv"
        in run("preprocess", *words, PYTHONIOENCODING="utf-8", **ASCII).stdout.decode()
    )
    printed = run("preprocess", *words, **ASCII)
    assert printed.returncode == 0
    assert b"captions: ???/?.csv" in printed.stdout


def test_a_refusal_is_a_line_on_any_terminal(tmp_path: Path) -> None:
    folder = str(tmp_path / "没有")
    assert "manifest.json" in said(
        run("preprocess", "inspect", folder, DYNAFLIP_HOME=str(tmp_path), **ASCII)
    )


@pytest.mark.parametrize("close", [">&-", "<&-", ">&- 2>&- <&-"])
def test_a_job_runs_with_closed_streams(tmp_path: Path, close: str) -> None:
    home = tmp_path / "home"
    done = run("preprocess", "inspect", str(tmp_path), close=close, DYNAFLIP_HOME=str(home))
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert (home / "home.json").read_text().startswith("{")  # nothing printed into it


def test_a_deleted_working_directory_is_one_line(tmp_path: Path) -> None:
    job = REPOSITORY / "jobs" / "preprocess.py"
    script = (
        f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; {sys.executable} {job}"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True)
    assert "cd to another folder" in said(done)


needs_root = pytest.mark.skipif(
    os.getuid() != 0, reason="another user is needed, which root can be"
)


@needs_root
def test_a_user_without_a_home_is_told_to_name_one() -> None:
    done = run("preprocess", "inspect", user="54321", HOME=None, DYNAFLIP_HOME=None)
    assert "set DYNAFLIP_HOME to an absolute path" in said(done)


@needs_root
@pytest.mark.parametrize("job", ["preprocess", "collect"])
def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path, job: str) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    words = {
        "preprocess": ["--source", str(REPOSITORY / "tests"), "--output", str(tmp_path / "out")],
        "collect": ["--output", str(tmp_path / "out")],
    }[job]
    told = said(run(job, *words, user="54321", DYNAFLIP_HOME=str(tmp_path)))
    assert str(tmp_path) in told
    assert "DYNAFLIP_HOME" in told


def nested(cause: BaseException) -> Exception:
    """An error that another one explains, as libraries wrap them."""
    outer = RuntimeError("the worker failed")
    outer.__cause__ = cause
    return outer


class Wrapped(Exception):
    """As Ray hands on what a task raised."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("Traceback (most recent call last): …")
        self.cause = cause


@pytest.mark.parametrize("wrap", [lambda error: error, nested, Wrapped])
def test_what_a_machine_refuses_is_one_line_wherever_it_comes_from(
    wrap: Callable[[BaseException], BaseException],
) -> None:
    full = in_one_line(wrap(OSError(errno.ENOSPC, "No space left on device", "/data/out.parquet")))
    assert full is not None
    assert full.startswith("/data/out.parquet: No space left on device: free some space")
    assert in_one_line(wrap(UserError("track.tracker: no such"))) == "track.tracker: no such"
    assert "ulimit -n" in str(in_one_line(wrap(OSError(errno.EMFILE, "Too many open files"))))
    locked = RuntimeError("(sqlite3.OperationalError) attempt to write a readonly database")
    assert "readonly database" in str(in_one_line(wrap(locked)))


class RayTaskError(Exception):
    """As Ray Data hands it on: with nothing but the text of what a task raised."""


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (
            "OSError: [Errno 28] Error writing bytes to file. Detail: [errno 28] No space left",
            "No space left on device: free some space",
        ),
        ("PermissionError: [Errno 13] Permission denied: '/a/b'", "/a/b: Permission denied: "),
        ("dynaflip.errors.StoreError: cannot write s3://a: full", "cannot write s3://a: full"),
        ("dynaflip.platform.s3_errors.AccessRefused: s3://a/b: no", "s3://a/b: no"),
        ("KeyError: 'a'", None),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/a'", None),
    ],
)
def test_what_a_task_of_ray_data_raised_is_read_from_its_text(
    raised: str, line: str | None
) -> None:
    error = RayTaskError(f"ray::task()\n  File a.py, line 3\n{raised}\n\nThe above exception …")
    assert (in_one_line(error) or "").startswith(line or "")
    assert (in_one_line(error) is None) == (line is None)


@pytest.mark.parametrize("error", [KeyError("a"), FileNotFoundError(errno.ENOENT, "x", "y")])
def test_mistakes_of_the_program_keep_their_traceback(error: Exception) -> None:
    assert in_one_line(error) is None
    assert in_one_line(nested(error)) is None


def test_a_temporary_folder_that_is_not_there_is_not_given_to_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for chosen in ("/nonexistent/scratch", "/proc", str(tmp_path / ("x" * 60))):
        monkeypatch.setenv("TMPDIR", chosen)
        assert str(cluster._short_temporary_folder()).startswith("/tmp/ray-")
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert cluster._short_temporary_folder() is None


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("my-cluster", "give HEAD:6379"),
        (":6379", "give HEAD:6379"),
        ("127.0.0.1:9", "no Ray cluster"),
    ],
)
def test_an_address_of_no_cluster_is_one_line(address: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        cluster._check_address(address)
