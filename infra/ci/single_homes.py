"""Single homes: MLflow's client, the S3 client, the atomic write, the facts of a simulator.

The library and its jobs are checked, not the tests. Calls, attributes and imports count, prose
does not; the facts of one simulator are not named anywhere else, not even in comments.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from python_files import Breach, Source, calls, is_name

# Facts of one simulator: its name, camera, tasks, weights, benchmark and number of actions.
SIMULATOR = re.compile(
    r"metaworld|corner[0-9]|-v3\b|sawyer|r3m5|mt10|ACTION_DIM|ogbench|front_pixels|ur5e|ogb[0-9]"
)
SIMULATOR_MAY_STAND_IN = re.compile(r"eval/envs/(metaworld|ogbench)|jobs/configs/|tests/|infra/ci/")
# The table of environments names each of them, in one line.
TABLE_LINE = re.compile(r'\s*"\w+": "dynaflip\.eval\.envs\.\w+:\w+",')
TRACKING = "platform/tracking/"


def check_simulator(sources: list[Source]) -> Iterator[Breach]:
    """Facts of a simulator outside the files that implement it."""
    for source in sources:
        if SIMULATOR_MAY_STAND_IN.match(source.name):
            continue
        for number, line in enumerate(source.text.splitlines(), 1):
            found = SIMULATOR.search(line)
            if found and not TABLE_LINE.fullmatch(line):
                message = f"{found.group()} belongs to the simulator's files, eval/envs/NAME*.py"
                yield Breach("simulator", source.name, number, message)


def check_tracking(sources: list[Source]) -> Iterator[Breach]:
    """Uses of MLflow, or of its client, outside ``platform/tracking/``."""
    for source in _library(sources):
        if source.name.startswith(TRACKING):
            if source.is_package:
                yield from _exported_clients(source)
            continue
        for line, used in _mlflow_uses(source.tree):
            message = f"{used}: only {TRACKING} uses MLflow; give it a function there"
            yield Breach("tracking", source.name, line, message)


def _exported_clients(source: Source) -> Iterator[Breach]:
    for node in ast.walk(source.tree):
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if alias.name in ("*", "client", "MlflowClient"):
                message = f"{TRACKING} exports no client, and lists what it exports: {alias.name}"
                yield Breach("tracking", source.name, node.lineno, message)


def _mlflow_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="mlflow"), attr=name):
                yield node.lineno, f"mlflow.{name}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="boto3" | "s3"))):
                pass
            case ast.Call(func=ast.Attribute(attr="client")):
                yield node.lineno, ".client(…)"
            case ast.ImportFrom(module=str(module)) if "platform.tracking" in module:
                for alias in node.names:
                    if alias.name in ("client", "MlflowClient"):
                        yield node.lineno, f"import of {alias.name}"
            # A module's name as a string, as in `sys.modules`; mlflow.db is a file.
            case ast.Constant(value=str(text)) if re.fullmatch(r"mlflow(\.(?!db\b)\w+)+", text):
                yield node.lineno, repr(text)


def check_s3_client(sources: list[Source]) -> Iterator[Breach]:
    """More than one ``boto3.client(…)``."""
    yield from _once(
        sources,
        "s3-client",
        "boto3.client(…) is called in more than one place; use the one client of platform/s3.py",
        lambda call, func: func.attr in ("client", "resource") and is_name(func.value, "boto3"),
    )


def check_atomic_write(sources: list[Source]) -> Iterator[Breach]:
    """More than one ``os.replace``, more than one ``.rename(…)``, any ``Path.replace``."""
    advice = "is called in more than one place; use the one atomic write"
    yield from _once(sources, "atomic-write", f"os.replace {advice}", _is_os_replace)
    yield from _once(sources, "atomic-write", f".rename(…) {advice}", _is_rename)
    for source in _library(sources):
        for call, func in calls(source.tree):
            if _is_path_replace(call, func):
                message = "Path.replace; use the one atomic write"
                yield Breach("atomic-write", source.name, call.lineno, message)


def _is_os_replace(call: ast.Call, func: ast.Attribute) -> bool:
    return func.attr == "replace" and is_name(func.value, "os")


def _is_rename(call: ast.Call, func: ast.Attribute) -> bool:
    # A table's columns are renamed with a mapping or by keyword, a file with a path.
    return (
        func.attr in ("rename", "renames")
        and not call.keywords
        and not any(isinstance(word, ast.Dict | ast.DictComp) for word in call.args)
    )


def _is_path_replace(call: ast.Call, func: ast.Attribute) -> bool:
    # `str.replace` takes two words; `dataclasses.replace` takes keywords.
    return (
        func.attr == "replace"
        and len(call.args) == 1
        and not call.keywords
        and not isinstance(call.args[0], ast.Starred)
        and not is_name(func.value, "os", "dataclasses", "copy")
    )


def _once(
    sources: list[Source],
    rule: str,
    message: str,
    counts: Callable[[ast.Call, ast.Attribute], bool],
) -> Iterator[Breach]:
    """Every place that a call stands at, if there are several."""
    places = [
        Breach(rule, source.name, call.lineno, message)
        for source in _library(sources)
        for call, func in calls(source.tree)
        if counts(call, func)
    ]
    if len(places) > 1:
        yield from places


def _library(sources: list[Source]) -> Iterator[Source]:
    return (source for source in sources if source.is_library())
