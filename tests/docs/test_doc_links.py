"""The documentation's links lead somewhere and the files that it names exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from checkout import REPOSITORY
from pages import anchors, blocks, links, named_files, page_name, pages


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            broken.append(
                f"{link}: no such heading; there are {', '.join(sorted(anchors(target)))}"
            )
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    missing = [name for name in named_files(page) if not (REPOSITORY / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_every_yaml_block_of_a_page_is_yaml(page: Path) -> None:
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block.code), block.place


def test_pages_are_read_as_markdown_means_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title: `code` & more\n"
        "See [there](other.md#part) and [out](https://example.org), or `jobs/pretrain.py`.\n"
        "## Twice\n"
        "## Twice\n"
        "````text\n```bash\nnot a block [no](link)\n```\n````\n"
        "* in a list\n\n"
        "  ```python\n  # mine.py\n  if True:\n      pass\n  ```\n"
    )
    assert links(page) == ["other.md#part"]
    assert named_files(page) == ["jobs/pretrain.py"]
    assert anchors(page) == {"a-title-code--more", "twice", "twice-1"}
    (block,) = blocks(page, "python")
    assert block.code == "# mine.py\nif True:\n    pass"
    assert block.file == "mine.py"
