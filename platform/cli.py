"""What every job's command line shares.

``--config FILE`` reads settings, ``--section.key VALUE`` (or ``--section.key=VALUE``)
overrides one; everything else is the job's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dynaflip.errors import UserError
from dynaflip.platform.config_loader import flat_fields, load_config
from dynaflip.platform.paths import home, home_folder, in_submitted_job
from dynaflip.renames import current_flags, current_key

C = TypeVar("C")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def job_parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser of a job that has flags and no settings."""
    return _Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def config_parser(description: str, cls: type) -> argparse.ArgumentParser:
    """A parser with ``--config`` and a help that lists the dotted settings.

    Flags of the job's own are added by the caller; dotted ones are read by
    :func:`parse_config`.
    """
    lines = [f"  --{key:<34} {_shown(default)}" for key, default in _defaults(cls)]
    places = ", ".join(_places(cls))
    return _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"settings and their defaults (dotted keys of the YAML file; what each means is "
        f"written beside it in {places}):\n" + "\n".join(lines),
        allow_abbrev=False,
    )


def parse_config(
    parser: argparse.ArgumentParser,
    cls: type[C],
    argv: list[str],
    aliases: dict[str, str],
    renamed: dict[str, str] | None = None,
) -> tuple[argparse.Namespace, C]:
    """Parse a job's command line into its own flags and its settings.

    Args:
        parser: from :func:`config_parser`, with the job's own flags added.
        cls: the dataclass of the job's settings.
        argv: the words after the program's name.
        aliases: flag of the job (``source``) to the dotted key it stands for.
        renamed: flag of the job by its old name to its new one; settings list theirs themselves
            (:mod:`dynaflip.renames`).

    Raises:
        UserError: an unknown flag or setting, or a value that does not fit.
    """
    parser.add_argument("--config", metavar="FILE", help="YAML file with some of the settings")
    args, rest = parser.parse_known_args(current_flags(argv, renamed or {}))
    overrides: dict[str, Any] = dict(_dotted(rest, cls))
    for flag, key in aliases.items():
        value = getattr(args, flag.replace("-", "_"))
        if value is not None:
            overrides[key] = value
    return args, load_config(cls, args.config, overrides)


def run_job(main: Callable[[list[str]], int], *, check_home: bool = True) -> typing.NoReturn:
    """Run a job's ``main`` and leave with its exit code; a user's mistake is one line and 2.

    Args:
        main: takes the words after the program's name.
        check_home: refuse a home that was copied or moved before anything is done.
    """
    argv = sys.argv[1:]
    # A job's output is read while it runs, through a pipe as well as on a terminal.
    typing.cast(Any, sys.stdout).reconfigure(line_buffering=True)
    code = 1
    try:
        if not {"-h", "--help"} & set(argv):
            place = " (submitted job)" if in_submitted_job() else ""
            print(f"DYNAFLIP_HOME {home() if check_home else home_folder()}{place}")
        code = main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "dynaflip"):
            raise
        print(
            f"error: the package {missing} is not installed in {sys.prefix}; in a checkout "
            f"`make env && . .venv/bin/activate` installs all of them, elsewhere "
            f"`pip install 'dynaflip[platform]'`",
            file=sys.stderr,
        )
        code = 2
    except KeyboardInterrupt:
        print("stopped by the user", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def _dotted(words: list[str], cls: type) -> dict[str, str]:
    known = dict(flat_fields(cls))
    overrides: dict[str, str] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"command line: {word!r} belongs to no flag")
        key, equals, value = word[2:].partition("=")
        if current_key(cls, key) not in known:
            # load_config words the error, with the nearest key there is.
            return {key: value}
        if not equals:
            if not words:
                raise UserError(f"command line: --{key} needs a value")
            value = words.pop(0)
        if key in overrides:
            raise UserError(f"command line: --{key} is given twice")
        overrides[key] = value
    return overrides


def _defaults(cls: Any, prefix: str = "") -> list[tuple[str, Any]]:
    types = typing.get_type_hints(cls)
    found: list[tuple[str, Any]] = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(types[field.name]):
            found += _defaults(types[field.name], f"{prefix}{field.name}.")
        elif field.default is not dataclasses.MISSING:
            found.append((prefix + field.name, field.default))
        elif field.default_factory is not dataclasses.MISSING:
            found.append((prefix + field.name, field.default_factory()))
        else:
            found.append((prefix + field.name, "(required)"))
    return found


def _places(cls: Any) -> list[str]:
    """The files that hold a settings class and its sections, below the checkout."""
    types = typing.get_type_hints(cls)
    classes = [cls, *(types[field.name] for field in dataclasses.fields(cls))]
    modules = {c.__module__ for c in classes if dataclasses.is_dataclass(c)}
    root = Path(__file__).resolve().parents[1]
    files = [Path(str(sys.modules[name].__file__)).resolve() for name in modules]
    return sorted(str(file.relative_to(root)) for file in files)


def _shown(value: Any) -> str:
    """A default as it can be typed."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
