"""Rules of aliases: who moves which, and when."""

from __future__ import annotations

import pytest

from dynaflip.errors import UserError
from dynaflip.platform import promotion


@pytest.fixture
def aliases(monkeypatch: pytest.MonkeyPatch, home: object) -> dict[str, int]:
    """The store's aliases, as a dictionary instead of MLflow."""
    named: dict[str, int] = {}
    monkeypatch.setattr(
        promotion.registry, "set_alias", lambda _, alias, version: named.update({alias: version})
    )
    monkeypatch.setattr(
        promotion.registry,
        "version_of_alias",
        lambda _, alias: str(named[alias]) if alias in named else None,
    )
    return named


@pytest.mark.parametrize("alias", ["v3", "12", "Latest ", "a b", "a@b", ""])
def test_a_bad_alias_is_refused_before_any_work(alias: str) -> None:
    with pytest.raises(UserError, match="--alias"):
        promotion.check_alias(alias)


def test_a_user_moves_any_alias_but_the_champion_and_latest(aliases: dict[str, int]) -> None:
    for alias in (None, "latest"):
        promotion.move_alias("model", alias, 3)
    assert aliases == {}
    promotion.move_alias("model", "candidate", 3)
    promotion.move_alias("model", "my-own", 2)
    assert aliases == {"candidate": 3, "my-own": 2}
    with pytest.raises(UserError, match=r"a champion takes evidence; .*promote\.py"):
        promotion.move_alias("model", "champion", 3)
    assert "champion" not in aliases


@pytest.mark.parametrize(
    ("policy", "confirmed", "missing", "present", "gap", "moves", "why"),
    [
        ("always", False, 0, 1, 9.0, True, "--promote always"),
        ("never", True, 0, None, -9.0, False, "--promote never"),
        ("auto", False, 0, None, -9.0, False, "nothing was confirmed"),
        ("auto", True, 1, None, -9.0, False, "1 seeds of the best setting came to nothing"),
        ("auto", True, 0, None, 9.0, True, "there was none"),
        ("auto", True, 0, 5, 9.0, True, "it is this version already"),
        ("auto", True, 0, 1, -1.0, True, "-1.00 ± 0.50 cm to version 1"),
        ("auto", True, 0, 1, -0.4, False, "-0.40 ± 0.50 cm to version 1"),
    ],
)
def test_a_sweep_moves_the_candidate_only_beyond_noise(
    aliases: dict[str, int],
    policy: str,
    confirmed: bool,
    missing: int,
    present: int | None,
    gap: float,
    moves: bool,
    why: str,
) -> None:
    if present is not None:
        aliases["candidate"] = present
    decision = promotion.decide_candidate(
        "model",
        5,
        policy=policy,
        confirmed=confirmed,
        missing_seeds=missing,
        gap_to=lambda version: (gap, 0.5),
    )
    assert decision.promoted == moves
    assert why in decision.explanation
    assert aliases.get("candidate") == (5 if moves else present)
