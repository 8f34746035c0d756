"""Commands of the documentation's shell blocks, one by one."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from pages import Block

# Programs that the pages may start besides the jobs, `dynaflip` and `make`.
OTHER_PROGRAMS = frozenset(
    (
        *("cd", "export", "unset", ".", "source", "echo", "wait", "mkdir", "cp", "mv", "ls", "cat"),
        *(
            "pip",
            "python",
            "python3",
            "torchrun",
            "pytest",
            "ruff",
            "mypy",
            "pre-commit",
            "jupyter",
        ),
        *("git", "ray", "docker", "kubectl", "helm", "curl", "aws", "ssh", "scp", "rsync", "bash"),
        *("nvidia-smi", "tar", "unzip", "createdb", "psql", "mlflow"),
    )
)


@dataclass(frozen=True)
class Command:
    """One command."""

    place: str  # page and line of its block
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def commands(block: Block) -> list[Command]:
    """The commands of a shell block; what comes after a pipe or into a file is left out."""
    text = block.code.replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        for part in _parts(line):
            while part and re.fullmatch(r"[A-Z_]+=.*", part[0]):
                part = part[1:]
            if part:
                found.append(Command(block.place, tuple(part)))
    return found


def _parts(line: str) -> list[list[str]]:
    """The line's commands between ``&&``, ``||``, ``;``, ``|`` and ``&``, as words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.commenters = "#"
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    words = list(lexer)
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in ("&&", "||", ";", "|", "&"):
            parts.append([])
        elif word in (">", ">>", "<", "2>", "&>"):
            skip = True
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def job_of(command: Command) -> tuple[str, tuple[str, ...]] | None:
    """The job that a command starts and its arguments, on this machine or a cluster."""
    words = command.words
    if words[:3] == ("ray", "job", "submit") and "--" in words:
        words = words[words.index("--") + 1 :]
    if words[0] == "dynaflip":
        return (words[1], words[2:]) if len(words) > 1 else None
    if words[0] in ("python", "python3", "torchrun", ".venv/bin/python"):
        for index, word in enumerate(words):
            script = re.fullmatch(r"(?:\./)?jobs/(\w+)\.py", word)
            if script:
                return script.group(1), words[index + 1 :]
    return None
