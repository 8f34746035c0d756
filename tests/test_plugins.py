"""Names resolve to a table's own, then installed packages', then a class of the user's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dynaflip.errors import UserError
from dynaflip.plugins import EXTENSION_POINTS, ExtensionPoint, extension_points, listing

MODULE = "ROUND = 'round'\n\n\nclass Shapes:\n    SQUARE = 'square'\n"


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExtensionPoint:
    """An extension point with one built-in, and an installed package that brings three names."""
    (tmp_path / "outside_shapes.py").write_text(MODULE)
    info = tmp_path / "outside_shapes-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-shapes\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(
        "[dynaflip.shape]\nround = outside_shapes:ROUND\nbroken = nowhere:X\n"
        "dot = outside_shapes:Shapes\n[dynaflip.colour]\nred = outside_shapes:ROUND\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "outside_shapes", raising=False)
    return ExtensionPoint("shape", {"dot": "math:pi", "line": "math:tau"}, contract="a.Shape")


def test_the_own_table_comes_before_installed_packages(shapes: ExtensionPoint) -> None:
    import math

    assert shapes.resolve("dot") == math.pi
    assert shapes.resolve("round") == "round"
    assert shapes.resolve("class:outside_shapes:Shapes.SQUARE") == "square"
    assert shapes.names() == ["dot", "line", "broken", "round"]
    origins = {plugin.name: plugin.origin for plugin in shapes.plugins()}
    assert origins["dot"] == "built in"
    assert origins["round"] == "outside-shapes 2.1"


def test_an_unknown_name_lists_what_there_is_and_the_nearest(shapes: ExtensionPoint) -> None:
    known = r"known: dot, line, broken, round, or class:MODULE:NAME"
    message = f"drawing.shape: there is no shape 'lime'; did you mean line\\?; {known}"
    with pytest.raises(UserError, match=message):
        shapes.resolve("lime", "drawing.shape")
    with pytest.raises(UserError, match=message):
        shapes.check("lime", "drawing.shape")
    shapes.check("round", "drawing.shape")
    assert "outside_shapes" not in sys.modules, "checking imports nothing"
    assert not shapes.knows("lime")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("class:outside_shapes", "must be class:MODULE:NAME"),
        ("class:nowhere:X", r"cannot import class:nowhere:X \(No module named 'nowhere'\)"),
        ("class:nowhere:X", "put the folder that holds nowhere on PYTHONPATH"),
        ("class:outside_shapes:Y", "cannot import class:outside_shapes:Y"),
        ("class:outside_shapes:ROUNDED", "did you mean ROUND"),
        ("broken", "outside-shapes 2.1 does not import"),
    ],
)
def test_what_does_not_import_is_one_clear_line(
    shapes: ExtensionPoint, name: str, said: str
) -> None:
    with pytest.raises(UserError, match=f"drawing.shape: .*{said}") as caught:
        shapes.resolve(name, "drawing.shape")
    assert "\n" not in str(caught.value)


def test_a_name_from_a_file_runs_installed_code_only(shapes: ExtensionPoint) -> None:
    name = "class:outside_shapes:ROUND"
    for _ in range(2):
        with pytest.raises(UserError, match=r"read from a file and .* entry point of dynaflip\.s"):
            shapes.resolve(name, trusted=False)
        shapes.resolve(name)  # the user's own use does not make the file's trusted
    assert shapes.resolve("round", trusted=False) == "round"
    assert shapes.resolve("line", trusted=False) > 6


@pytest.mark.parametrize("kind", sorted(EXTENSION_POINTS))
def test_every_built_in_extension_is_there(kind: str) -> None:
    point = extension_points()[kind]
    assert point.kind == kind
    for name in point.table:
        assert point.resolve(name) is not None, name


def test_the_list_shows_names_origins_and_targets(
    shapes: ExtensionPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynaflip import plugins

    monkeypatch.setattr(plugins, "extension_points", lambda: {"shape": shapes})
    lines = [line.split() for line in listing()]
    assert lines[0] == ["shape:", "entry", "points", "dynaflip.shape,", "contract", "a.Shape"]
    assert ["line", "built", "in", "math:tau"] in lines
    assert ["round", "outside-shapes", "2.1", "outside_shapes:ROUND"] in lines
    assert list(listing(["other"])) == []
