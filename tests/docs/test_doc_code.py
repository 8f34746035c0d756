"""The documentation's Python blocks and the examples run."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkout import REPOSITORY
from pages import Block, blocks, page_name, pages, write_files

pytestmark = pytest.mark.integration
PAGES = [page for page in pages() if blocks(page, "python")]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))


@pytest.fixture
def reader_folder(
    tmp_path: Path,
    home_with_an_encoder: Path,
    triplet_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The reader's working directory: videos, triplets and an encoder."""
    from synthetic_triplets import write_rejected
    from synthetic_videos import write_videos

    write_videos(tmp_path / "my_videos")
    shutil.copytree(triplet_folder, tmp_path / "my_triplets")
    write_rejected(tmp_path / "my_triplets")
    shutil.copytree(home_with_an_encoder.parent / "encoder", tmp_path / "my_encoder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def given() -> dict[str, Any]:
    """Names that every page may use without having made them."""
    import dynaflip

    # Camera images (B, H, W, 3), uint8.
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    encoder = dynaflip.load_encoder("models:/dynaflip-encoder@candidate")
    return {"__name__": "page", "images": images, "encoder": encoder}


def run_block(block: Block, names: dict[str, Any]) -> None:
    """Run a block, or import it where it is a file."""
    if block.file:
        module = importlib.import_module(block.file.removesuffix(".py").replace("/", "."))
        names[module.__name__] = module
        return
    # Line numbers of the page, so that a traceback leads there.
    source = "\n" * (block.line - 1) + block.code
    exec(compile(source, str(block.page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_python_blocks_of_a_page_run(
    page: Path, reader_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(page, reader_folder)
    monkeypatch.syspath_prepend(reader_folder)
    before = set(sys.modules)
    names = given()
    try:
        for block in blocks(page, "python"):
            run_block(block, names)
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(reader_folder)):
                del sys.modules[name]


@pytest.mark.parametrize("script", EXAMPLES, ids=page_name)
def test_an_example_runs(script: Path, reader_folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=reader_folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=page_name)
def test_a_notebook_runs(notebook: Path, reader_folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
        if cell["cell_type"] == "code":
            code = "".join(cell["source"])
            exec(compile(code, f"{notebook.name}, cell {number}", "exec"), names)
