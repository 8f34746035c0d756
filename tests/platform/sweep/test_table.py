"""The live table fits its terminal, so that it can be drawn over."""

from __future__ import annotations

from dynaflip.platform.sweep.table import fitted


def test_long_lines_are_cut_and_of_many_the_newest_stay() -> None:
    lines = ["search: 40 running", "header", *(f"trial-{n:03d} " + "x" * 200 for n in range(40))]
    shown = fitted(lines, columns=60, rows=12)
    assert len(shown) == 11
    assert all(len(line) < 60 for line in shown)
    assert shown[:3] == ["search: 40 running", "header", "… 32 more"]
    assert [line[:9] for line in shown[3:]] == [f"trial-{n:03d}" for n in range(32, 40)]


def test_what_fits_stays_as_it_is() -> None:
    assert fitted(["a", "b"], columns=80, rows=24) == ["a", "b"]
