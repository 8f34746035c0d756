"""The commit, machine and command that stand in a run's tags."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynaflip.platform import provenance


def test_passwords_of_urls_are_not_recorded() -> None:
    typed = "sweep.py --storage postgresql://me:secret@host:5432/db --name n"
    assert provenance.masked(typed) == typed.replace("secret", "***")
    assert (
        provenance.masked("s3://bucket/a@b http://host:80/x") == "s3://bucket/a@b http://host:80/x"
    )


def test_without_a_checkout_the_commit_is_the_environment_s_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "_ray_pkg_abc" / "platform" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(copy))
    assert provenance.git_commit() == "unknown (no git checkout, _ray_pkg_abc)"
    monkeypatch.setenv("DYNAFLIP_GIT_COMMIT", "0" * 40)
    assert provenance.git_commit() == "0" * 40
