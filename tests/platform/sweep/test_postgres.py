"""A sweep whose study lies in a real Postgres server that the test starts."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_sweep import computed, opened, send_by_value

from dynaflip.errors import UserError
from dynaflip.platform.cluster import free_port
from dynaflip.platform.sweep.consistency import inconsistencies
from dynaflip.platform.sweep.show import show
from dynaflip.platform.sweep.stages import run_with
from dynaflip.platform.sweep.study import SEARCH, open_storage

pytestmark = [pytest.mark.ray, pytest.mark.integration]


@pytest.fixture(scope="module", autouse=True)
def sent_by_value(ray_cluster: None) -> None:
    send_by_value()


def program(name: str) -> str:
    """A program of Postgres; the test is skipped where there is none."""
    places = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")]
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *places]))
    if found is None:
        pytest.skip(f"Postgres ({name}) is not installed here")
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a database of its own."""
    pytest.importorskip("psycopg")
    initdb, postgres = program("initdb"), program("postgres")
    # In /tmp: the server's user must be able to walk there, and it refuses to be root.
    folder = Path(f"/tmp/dynaflip-postgres-{os.getpid()}")
    folder.mkdir(mode=0o755)
    user = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid}
    port = free_port()
    data = str(folder / "data")
    subprocess.run(
        [initdb, "-D", data, "-U", "tests", "--auth=trust", "-E", "UTF8"],
        check=True,
        capture_output=True,
        cwd=folder,
        **user,
    )
    log = (folder / "log.txt").open("w")
    running = subprocess.Popen(
        [postgres, "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)],
        stdout=log,
        stderr=log,
        cwd=folder,
        **user,
    )
    url = f"postgresql://tests@127.0.0.1:{port}/postgres"
    try:
        wait_for(port, running, folder / "log.txt")
        yield url
    finally:
        running.send_signal(signal.SIGINT)  # fast: it would else wait for its clients
        running.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(port: int, running: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    for _ in range(100):
        assert running.poll() is None, log.read_text()
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="tests", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_two_sweeps_share_a_database(
    server: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDIES", server)
    first = opened("first", trials=4, storage="env:STUDIES")
    run_with(first, SEARCH, 4, computed, reuse=True)
    second = opened("second", trials=3, storage=server, warm_start="first")
    run_with(second, SEARCH, 3, computed, reuse=True)
    for name in ("first", "second"):
        assert inconsistencies(name) == []
    assert "importance" in show("first")
    assert len(first.study(SEARCH).trials) == 4
    assert len(second.study(SEARCH).trials) == 7


def test_a_database_that_is_not_there_is_one_clear_line(server: str) -> None:
    nowhere = server.replace("tests@", "nobody-knows@")
    with pytest.raises(UserError, match=r"sweep\.storage .*cannot be opened"):
        open_storage(nowhere)
