"""The documentation's shell blocks: every command is one that exists, with settings that exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY
from command_lines import OTHER_PROGRAMS, Command, commands, job_of
from pages import Block, blocks, page_name, pages, write_files

from dynaflip.jobs.cli import JOBS

MAKE_TARGETS = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.M))


def commands_of(page: Path) -> list[Command]:
    """All commands of a page's shell blocks."""
    return [
        command
        for block in blocks(page, "bash", "sh", "shell", "console")
        for command in commands(block)
    ]


def parse_errors(lines: list[tuple[str, tuple[str, ...]]], folder: Path) -> list[str | None]:
    """The error of each command line of a job, or None where its work would begin."""
    for name in ("jobs", "infra", "tests"):
        if not (folder / name).exists():
            (folder / name).symlink_to(REPOSITORY / name)
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("parse_commands.py"))],
        input=json.dumps(lines),
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY}:{folder}",
            "DYNAFLIP_HOME": f"{folder}/home",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_the_jobs_of_a_page_are_called_with_settings_that_exist(page: Path, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    given = [(command, job_of(command)) for command in commands_of(page)]
    lines = [(command, job) for command, job in given if job is not None]
    for _, (_, words) in lines:
        for word in words:
            # A file that the reader made by an earlier command or has, e.g. `mine.yaml`.
            if re.fullmatch(r"[\w-]+\.yaml", word) and not (tmp_path / word).exists():
                (tmp_path / word).write_text("{}\n")
            # The reader's own folders: `my_videos`, `my_triplets`.
            elif re.fullmatch(r"my_\w+", word):
                (tmp_path / word).mkdir(exist_ok=True)
    errors = parse_errors([job for _, job in lines], tmp_path)
    wrong = [f"{c}\n    {e}" for (c, _), e in zip(lines, errors, strict=True) if e]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_the_other_commands_of_a_page_exist(page: Path) -> None:
    wrong = []
    for command in commands_of(page):
        program, *words = command.words
        if program == "make":
            targets = [word for word in words if "=" not in word and not word.startswith("-")]
            wrong += [f"{command}: no make target {t}" for t in targets if t not in MAKE_TARGETS]
        elif program.startswith(("infra/", "./infra/")):
            if not os.access(REPOSITORY / program, os.X_OK):
                wrong.append(f"{command}: no such script")
        elif program not in OTHER_PROGRAMS and job_of(command) is None and program != "dynaflip":
            wrong.append(f"{command}: unknown program")
    assert not wrong, "\n".join(wrong)


def block(code: str) -> Block:
    return Block(REPOSITORY / "README.md", 1, "bash", code)


def test_commands_are_taken_apart_as_a_shell_does() -> None:
    text = (
        "# a comment\n"
        "make env && . .venv/bin/activate   # another\n"
        "A=1 python jobs/pretrain.py --config mine.yaml \\\n"
        "    --name 'a b' > out.txt | tail\n"
        "ray job submit --working-dir . -- python jobs/evaluate.py compare A B &\n"
    )
    found = commands(block(text))
    assert [command.words[0] for command in found] == ["make", ".", "python", "tail", "ray"]
    assert job_of(found[2]) == ("pretrain", ("--config", "mine.yaml", "--name", "a b"))
    assert job_of(found[4]) == ("evaluate", ("compare", "A", "B"))
    assert job_of(found[0]) is None


def test_every_job_reads_its_command_line_before_it_works(tmp_path: Path) -> None:
    errors = parse_errors([(job, ("--no_such_flag", "3")) for job in JOBS], tmp_path)
    quiet = [job for job, error in zip(JOBS, errors, strict=True) if not error]
    assert not quiet, "work began before the unknown flag was found"


def test_a_command_line_that_a_job_refuses_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {stepz: 3}\n")
    lines = [
        ("pretrain", ("--train.steps", "3")),
        ("pretrain", ("--train.stepz", "3")),
        ("pretrain", ("--config", "mine.yaml")),
        ("evaluate", ("--suite", "nothing")),
        ("promote", ("--version", "3")),
        ("promote", ("--number", "3")),
        ("demo", ()),
        ("dance", ()),
    ]
    right, *wrong = parse_errors(lines, tmp_path)
    assert right is None
    misspelt, in_file, suite, promote, number, demo, job = wrong
    assert "stepz" in str(misspelt)
    assert "stepz" in str(in_file)
    assert "nothing" in str(suite)
    assert promote is None
    assert "--version" in str(number) or "--number" in str(number)
    assert demo is None
    assert job == "there is no job dance"
