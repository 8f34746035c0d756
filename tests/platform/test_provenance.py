"""The commit, machine and command that stand in a run's tags."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynaflip.platform import provenance


def test_without_a_checkout_the_commit_is_the_environment_s_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "_ray_pkg_abc" / "platform" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(copy))
    assert provenance.git_commit() == "unknown (no git checkout, _ray_pkg_abc)"
    monkeypatch.setenv("DYNAFLIP_GIT_COMMIT", "0" * 40)
    assert provenance.git_commit() == "0" * 40
