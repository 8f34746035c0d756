"""Names of files: none hides a module of the standard library or an installed one."""

from __future__ import annotations

import importlib.metadata
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from python_files import Breach, Source

# The one folder with a standard module's name; without an __init__.py it hides nothing.
PLATFORM = "platform"


def check_standard_names(sources: list[Source]) -> Iterator[Breach]:
    """Modules and folders that are named like a module of the standard library."""
    for source in sources:
        path = PurePosixPath(source.name)
        if source.is_package and path.parent.name == PLATFORM:
            message = "shadows the standard module platform: no __init__.py here"
            yield Breach("names", source.name, 0, message)
        for name in (*path.parts[:-1], path.stem):
            if name in sys.stdlib_module_names - {PLATFORM, "__init__", "__main__"}:
                message = f"{name} is the name of a standard module"
                yield Breach("names", source.name, 0, message)
        if path.stem == PLATFORM:
            yield Breach("names", source.name, 0, "platform is the name of a standard module")


def check_installed_names(sources: list[Source]) -> Iterator[Breach]:
    """Modules that hide an installed one, from a folder that Python or pytest puts on the path.

    ``python jobs/X.py`` puts ``jobs/`` first; pytest does so with every folder of tests.
    """
    installed = importlib.metadata.packages_distributions()
    for source in sources:
        stem = PurePosixPath(source.name).stem
        if source.folder in ("jobs", "tests", "examples", "infra") and stem in installed:
            message = f"hides the installed module {stem}"
            yield Breach("names", source.name, 0, message)


def check_test_names(sources: list[Source]) -> Iterator[Breach]:
    """Files of tests with the same name: pytest imports them by that name alone."""
    files: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        path = PurePosixPath(source.name)
        if source.folder == "tests" and path.name not in ("conftest.py", "__init__.py"):
            files[path.name].append(source.name)
    for name, places in files.items():
        for place in places[1:]:
            message = f"{name} is also the name of {places[0]}: one of them needs another"
            yield Breach("names", place, 0, message)
