"""Passwords stand in no text, no file and no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynaflip.errors import UserError
from dynaflip.platform.passwords import from_environment, has_password, masked, refuse_password
from dynaflip.platform.provenance import provenance


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql+psycopg://me:secret@host/db", "postgresql+psycopg://me:***@host/db"),
        ("postgresql://me:se/cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:se@cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:s?e#c&ret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:se%40c%2Fret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:sec:ret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@tenant:secret@host/db", "postgresql://me@tenant:***@host/db"),
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        (
            "postgresql://host/db?user=me&password=secret",
            "postgresql://host/db?user=me&password=***",
        ),
        ("postgresql://h/db?password=se/c@ret&x=1", "postgresql://h/db?password=***&x=1"),
        ("postgresql://h/db?PASSWORD=secret", "postgresql://h/db?PASSWORD=***"),
        ("https://h/x?X-Amz-Signature=secret", "https://h/x?X-Amz-Signature=***"),
        (
            "postgresql://me:secret@h/db?sslpassword=secret",
            "postgresql://me:***@h/db?sslpassword=***",
        ),
        (
            "--a postgresql://me:secret@h/a (not http://you:secret@h:80/b), end",
            "--a postgresql://me:***@h/a (not http://you:***@h:80/b), end",
        ),
        ("a: mysql://me:secret@h/db\nb: x@y\n", "a: mysql://me:***@h/db\nb: x@y\n"),
    ],
)
def test_passwords_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown
    assert has_password(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b http://host:80/x",
        "postgresql://me@host:5432/db",
        "models:/dynaflip-encoder@candidate",
        "s3://bucket/key:1@2",
        "sqlite:////srv/me/studies.db",
        "mail me: a@b, ratio 1:2@3",
        "max_tokens=77 https://h/x?page=2",
    ],
)
def test_what_is_no_password_stays(text: str) -> None:
    assert masked(text) == text


def test_a_command_is_recorded_without_its_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["jobs/sweep.py", "--storage", "postgresql://me:se cret@h/db", "--name", "n"]
    monkeypatch.setattr("sys.argv", words)
    assert provenance()["command"] == "sweep.py --storage postgresql://me:***@h/db --name n"


def test_a_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIES", "postgresql://me:secret@h/db")
    assert from_environment("env:STUDIES", "sweep.storage") == "postgresql://me:secret@h/db"
    assert from_environment("sqlite:///x", "sweep.storage") == "sqlite:///x"
    monkeypatch.delenv("STUDIES")
    with pytest.raises(UserError, match=r"sweep\.storage env:STUDIES: .*STUDIES is not set"):
        from_environment("env:STUDIES", "sweep.storage")


def test_a_password_in_a_setting_is_refused_without_showing_it() -> None:
    refuse_password("postgresql://me@h/db", "sweep.storage")
    refuse_password("env:STUDIES", "sweep.storage")
    with pytest.raises(UserError, match="env:NAME") as caught:
        refuse_password("postgresql://me:secret@h/db", "sweep.storage")
    assert "secret" not in str(caught.value)


def test_runs_hold_no_password(home: Path) -> None:
    from dynaflip.platform import tracking

    url = "postgresql://me:horse/staple@h/db"
    run = tracking.open_run("passwords", "run", {"source": url})
    run.set_tags({"database": url})
    run.log_dataset("set", "0" * 16, url)
    error = ValueError(f"cannot reach {url}")
    with pytest.raises(ValueError, match="staple"), tracking.ending(run):
        raise error
    written = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
    assert any(b"cannot reach" in data for data in written)
    assert not any(b"staple" in data for data in written)


def test_a_sweep_refuses_a_password_before_it_writes_anything(home: Path) -> None:
    from dynaflip.platform.config_loader import load_config
    from dynaflip.platform.sweep import run
    from dynaflip.platform.sweep.config import SweepJobConfig

    given = {"sweep.search": "objective.volume=log(0.1,10)", "sweep.name": "mine"}
    for storage, said in [
        ("postgresql://me:horse@h/db", "PGPASSWORD"),
        ("env:NOT_SET_ANYWHERE", "is not set here"),
    ]:
        job = load_config(SweepJobConfig, None, given | {"sweep.storage": storage})
        with pytest.raises(UserError, match=said) as caught:
            run.start(job)
        assert "horse" not in str(caught.value)
    assert not (home / "sweeps").exists()
