"""The documentation as data: pages, their code blocks, links and headings.

Conventions that the pages follow:

* A block whose first line is a comment with a file's name (``# my_terms.py``, ``# mix.yaml``) is
  that file: later blocks of the page import it or pass it to a job.
* ``bash`` blocks hold commands that work as they stand, in the checkout; ``text`` blocks hold
  everything else (output, trees of files, commands for another machine).
* ``python`` blocks of one page run one after another in one namespace, which begins with
  ``images`` (two camera images, uint8) and ``encoder`` (a loaded one). The working directory is an
  empty folder with ``my_videos`` (videos and captions.csv), ``my_triplets`` (triplets) and
  ``my_encoder`` (an encoder's folder); an encoder is registered, with the alias candidate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from checkout import REPOSITORY

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>\w*)[^\n]*$")
_FILE_NAME = re.compile(r"# ([\w-]+(?:/[\w.-]+)*\.(?:py|yaml|toml|csv|json))\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    line: int  # of its first line of code, from 1
    language: str
    code: str

    @property
    def place(self) -> str:
        """Page and line, as an editor opens it."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, where its first line gives one."""
        found = _FILE_NAME.match(self.code.split("\n", 1)[0])
        return found.group(1) if found else None


def pages() -> list[Path]:
    """All Markdown pages for users and contributors."""
    named = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    rest = [*(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "examples").rglob("*.md")]
    return [page for page in (*named, *sorted(rest)) if page.is_file()]


def page_name(page: Path) -> str:
    """A page's path below the checkout, as a test's id."""
    return page.relative_to(REPOSITORY).as_posix()


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's fenced blocks in these languages (all, if none is given), in their order."""
    found = []
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        number += 1
        if not fence:
            continue
        first = number
        while lines[number].strip() != fence["ticks"]:
            number += 1
        code = "\n".join(line.removeprefix(fence["indent"]) for line in lines[first:number])
        number += 1
        if not languages or fence["language"] in languages:
            found.append(Block(page, first + 1, fence["language"], code))
    return found


def write_files(page: Path, folder: Path) -> None:
    """Write the page's blocks that are files into a folder."""
    for block in blocks(page):
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.code + "\n")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    text = page.read_text()
    for block in blocks(page):
        text = text.replace(block.code, "", 1)
    return text


def links(page: Path) -> list[str]:
    """Targets of the page's links and images that stay within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    result = set()
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", prose(page), flags=re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        times = found.get(anchor, 0)
        found[anchor] = times + 1
        result.add(f"{anchor}-{times}" if times else anchor)
    return result


def named_files(page: Path) -> list[str]:
    """Paths of this repository that the page names as inline code."""
    folders = "losses|encoders|platform|eval|jobs|infra|tests|docs|examples|dynaflip"
    return re.findall(rf"`((?:{folders})/[\w./-]+)`", prose(page))
