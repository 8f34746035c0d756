"""What every job's command line shares.

``--config FILE`` reads settings, ``--section.key VALUE`` (or ``--section.key=VALUE``)
overrides one, ``--print_config`` prints them all; everything else is the job's own.
"""

from __future__ import annotations

import argparse
import locale
import os
import shutil
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dynaflip.errors import UserError
from dynaflip.platform.config_loader import load_config, setting_type
from dynaflip.platform.machine_errors import in_one_line
from dynaflip.platform.passwords import masked
from dynaflip.platform.paths import check_working_directory, home, in_submitted_job
from dynaflip.platform.proxies import bypass_proxies_on_this_machine
from dynaflip.platform.settings_text import commented_yaml, help_text
from dynaflip.renames import current_flags, current_key

C = TypeVar("C")

# Flags that are answered in the terminal: nothing is written, and nothing else is printed.
_ANSWERS = {"-h", "--help", "--print_config"}


class _Parser(argparse.ArgumentParser):
    settings: type | None = None

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """The usual help, then all settings; they are collected when they are asked for."""
        if self.settings is None:
            return super().format_help()
        width = shutil.get_terminal_size().columns - 2
        short = [
            f"  --{name:<35} {', '.join(f'--{key}' for key in keys)}"
            for name, keys in short_flags(self.settings).items()
        ]
        stands_for = ["", "short flags and what they stand for:", *short] if short else []
        lines = [super().format_help(), help_text(self.settings, width), *stands_for, ""]
        return "\n".join(lines)


def job_parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser of a job that has flags and no settings."""
    return _Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def config_parser(description: str, cls: type) -> argparse.ArgumentParser:
    """A parser with ``--config``, ``--print_config`` and a help that explains all settings.

    Flags of the job's own are added by the caller; dotted ones are read by
    :func:`parse_config`.
    """
    parser = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.settings = cls
    parser.add_argument("--config", metavar="FILE", help="YAML file with some of the settings")
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="print all settings as YAML with comments, which --config reads, and do nothing",
    )
    return parser


def parse_config(
    parser: argparse.ArgumentParser,
    cls: type[C],
    argv: list[str],
    aliases: dict[str, str],
    renamed: dict[str, str] | None = None,
    adjust: Callable[[argparse.Namespace, C], C] | None = None,
    below: Mapping[str, Any] | None = None,
) -> tuple[argparse.Namespace, C]:
    """Parse a job's command line into its own flags and its settings.

    With ``--print_config`` it prints the settings and leaves with exit code 0.

    Args:
        parser: from :func:`config_parser`, with the job's own flags added.
        cls: the dataclass of the job's settings.
        argv: the words after the program's name.
        aliases: flag of the job (``source``) to the dotted key it stands for.
        renamed: flag of the job by its old name to its new one; settings list theirs themselves
            (:mod:`dynaflip.renames`).
        adjust: what flags of the job change in its settings, beyond single keys (a variant).
        below: settings that ``--config`` and flags override (a named protocol's).

    Raises:
        UserError: an unknown flag or setting, or a value that does not fit.
    """
    args, rest = parser.parse_known_args(current_flags(argv, renamed or {}))
    overrides: dict[str, Any] = dict(_dotted(rest, cls))
    for flag, key in aliases.items():
        value = getattr(args, flag.replace("-", "_"))
        if value is not None:
            overrides[key] = value
    config = load_config(cls, args.config, overrides, below=below)
    if adjust is not None:
        config = adjust(args, config)
    if args.print_config:
        print(commented_yaml(config), end="")
        raise SystemExit(0)
    return args, config


def run_job(main: Callable[[list[str]], int], *, check_home: bool = True) -> typing.NoReturn:
    """Run a job's ``main`` and leave with its exit code; a user's mistake is one line and 2.

    Args:
        main: takes the words after the program's name.
        check_home: print the home, and refuse one that was copied or moved, before anything is
            done.
    """
    _open_closed_streams()
    _read_utf8()
    argv = sys.argv[1:]
    bypass_proxies_on_this_machine()
    # A job's output is read while it runs, through a pipe as well as on a terminal.
    # Help and settings hold letters that a terminal of another encoding does not have.
    typing.cast(Any, sys.stdout).reconfigure(line_buffering=True, errors="replace")
    code = 1
    try:
        check_working_directory()
        if check_home and not _ANSWERS & set(argv):
            place = " (submitted job)" if in_submitted_job() else ""
            print(f"DYNAFLIP_HOME {home()}{place}")
        code = main(argv)
    except UserError as error:
        print(f"error: {masked(str(error))}", file=sys.stderr)
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
    except Exception as error:
        line = in_one_line(error)
        if line is None:
            raise
        print(f"error: {masked(line)}", file=sys.stderr)
        code = 2
    sys.exit(code)


def _open_closed_streams() -> None:
    """Give a job that was started without output one that goes nowhere.

    The next file that is opened would otherwise get the number of the closed one, and what
    libraries print would be written into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _read_utf8() -> None:
    """Start over in Python's UTF-8 mode where the locale has another encoding.

    Captions, settings and names are UTF-8, whatever the machine's language: read as Latin-1 they
    would be other letters, without an error. Workers inherit the mode; what is printed stays in the
    locale's encoding.
    """
    if "utf" in locale.getpreferredencoding(False).lower():
        return
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:replace")
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def short_flags(cls: type) -> dict[str, tuple[str, ...]]:
    """Short flag of a job → the dotted keys of all settings that it sets.

    A settings dataclass lists them in ``SHORT: ClassVar[dict[str, tuple[str, ...]]]``.
    """
    return getattr(cls, "SHORT", {})


def _dotted(words: list[str], cls: type) -> dict[str, str]:
    overrides: dict[str, str] = {}
    words = list(words)
    short = short_flags(cls)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"command line: {word!r} belongs to no flag")
        key, equals, value = word[2:].partition("=")
        if key not in short and setting_type(cls, current_key(cls, key)) is None:
            # load_config words the error, with the nearest key there is.
            return {key: value}
        if not equals:
            if not words:
                raise UserError(f"command line: --{key} needs a value")
            value = words.pop(0)
        for full in short.get(key, (key,)):
            if full in overrides:
                raise UserError(f"command line: --{full} is given twice")
            overrides[full] = value
    return overrides
