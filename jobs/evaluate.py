"""Evaluate an encoder: does it help, and how sure is that?

    python jobs/evaluate.py --encoder models:/dynaflip-encoder@candidate
    python jobs/evaluate.py --suite rollouts --encoder URI --seeds 3
    python jobs/evaluate.py --suite imitation --encoder URI --episodes 5 --seeds 1
    python jobs/evaluate.py --protocol few_demos --encoder URI --dry-run
    python jobs/evaluate.py protocols
    python jobs/evaluate.py compare RUN_A RUN_B [RUN_C …]

A suite is one way to evaluate: `probes` (the default) scores the encoder beside its own
initialisation in about a minute, `rollouts` measures success of policies in the simulator, and
`imitation` the same policies' action error without rollouts. `--suite NAME --help` shows a
suite's settings; `--suite class:MODULE:NAME` runs your own. `--protocol NAME` takes the settings
of a named protocol (`protocols` lists them), which `--config` and flags override. `compare` pairs
runs of rollouts, or of the suite `offline`, with the first of them, episode by episode. Results go
to the terminal, to an HTML report, to one Parquet table and to MLflow.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

import argparse
import inspect
from typing import Any

from dynaflip.errors import UserError
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT
from dynaflip.platform.cli import config_parser, job_parser, parse_config, run_job
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.protocols import (
    change_lines,
    described,
    label_of,
    protocol_names,
    read_protocol,
    settings_below,
)
from dynaflip.platform.evaluation.suites.base import Suite
from dynaflip.platform.evaluation.suites.registry import DEFAULT, SUITES, open_suite
from dynaflip.renames import current_word

# Rollouts were named after their simulator.
RENAMED_SUITES = {DEFAULT_ENVIRONMENT: "rollouts"}


def main(argv: list[str]) -> int:
    """Evaluate with a suite, or compare two runs, and print the table."""
    if argv[:1] == ["compare"]:
        return _compare(argv[1:])
    if argv[:1] == ["protocols"]:
        return _protocols(argv[1:])
    protocol_name = _protocol_name(argv)
    protocol = None if protocol_name is None else read_protocol(protocol_name)
    name = _suite_name(argv, DEFAULT if protocol is None else protocol.suite)
    suite = open_suite(name)
    parser = config_parser(_description(suite), suite.settings)
    _add_suite(parser)
    _add_protocol(parser)
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="show a finished evaluation of these weights with these settings, if there is one",
    )
    _add_dry_run(parser)
    settings: Any = suite.settings
    below = None
    if protocol is not None and protocol_name is not None:
        if not issubclass(settings, RolloutConfig):
            raise UserError(f"--protocol: {protocol_name} has settings of {protocol.suite}")
        below = settings_below(protocol, protocol_name)
    args, config = parse_config(parser, settings, argv, aliases={}, below=below)
    if isinstance(config, RolloutConfig) and config.protocol:
        print("\n".join([f"protocol {label_of(config, name)}", *change_lines(config, name)]))
    if args.dry_run:
        _show_cost(suite, config, args.gpu_images_per_s)
        return 0
    finished = suite.find_finished(config) if args.reuse else None
    if finished is not None:
        print("these weights have been evaluated with these settings already:")
    _show(finished or suite.run(config))
    return 0


def _suite_name(argv: list[str], usual: str) -> str:
    """The suite that a command line asks for; all other flags depend on it."""
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_suite(chooser)
    name = chooser.parse_known_args(argv)[0].suite
    return current_word("--suite", usual if name is None else name, RENAMED_SUITES)


def _protocol_name(argv: list[str]) -> str | None:
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_protocol(chooser)
    name: str | None = chooser.parse_known_args(argv)[0].protocol
    return name


def _add_suite(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(SUITES.names())
    parser.add_argument(
        "--suite", metavar="NAME", nargs="?", const="",
        help=f"{names}, or class:MODULE:NAME (default {DEFAULT}, or the protocol's)",
    )  # fmt: skip


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol", metavar="NAME", nargs="?", const="",
        help=f"settings of a named protocol: {', '.join(protocol_names())}, or a YAML file",
    )  # fmt: skip


def _description(suite: Suite) -> str:
    """The job's help, followed by the suite's own."""
    return f"{__doc__}\nThis suite:\n\n{inspect.getdoc(type(suite)) or ''}"


def _compare(argv: list[str]) -> int:
    parser = job_parser(
        "Pair runs of rollouts, or of the suite offline, episode by episode.", "evaluate.py compare"
    )
    parser.add_argument("first", metavar="RUN_A", help="name or id of an MLflow run")
    parser.add_argument("others", metavar="RUN_B", nargs="+", help="runs that it is compared with")
    parser.add_argument(
        "--environment", "--env", metavar="NAME",
        help="the environment that rollouts ran in, where it is a class of your own",
    )  # fmt: skip
    args = parser.parse_args(argv)

    from dynaflip.platform.evaluation.compare import read_runs
    from dynaflip.platform.evaluation.offline_compare import offline_alone, read_offline_runs
    from dynaflip.platform.evaluation.report.compare_report import report_comparison
    from dynaflip.platform.evaluation.report.offline_compare_page import report_offline_comparison

    if offline_alone([args.first, *args.others], args.environment):
        _show(report_offline_comparison(read_offline_runs(args.first, args.others)))
        return 0
    _show(report_comparison(read_runs(args.first, args.others, args.environment)))
    return 0


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true",
        help="list what would run, what is cached and how long it takes on 2 cores, on 16 and with "
        "a GPU, and do nothing; unit costs are measured once per machine",
    )  # fmt: skip
    parser.add_argument(
        "--gpu_images_per_s", type=float, default=5000.0, metavar="N",
        help="with --dry-run: images a second that a GPU is assumed to encode (default 5000, which "
        "nobody has measured)",
    )  # fmt: skip


def _show_cost(suite: Suite, config: Any, gpu_images_per_s: float) -> None:
    from dynaflip.platform.evaluation.report.tables import as_text
    from dynaflip.platform.evaluation.report.terminal import show_sections

    if not gpu_images_per_s > 0:
        raise UserError(f"--gpu_images_per_s must be above 0, not {gpu_images_per_s:g}")
    sections = suite.dry_run(config, gpu_images_per_s=gpu_images_per_s)
    show_sections(sections, as_text(sections))
    print("nothing was run")


def _protocols(argv: list[str]) -> int:
    job_parser("List the named protocols.", "evaluate.py protocols").parse_args(argv)
    for name in protocol_names():
        print("\n".join(described(read_protocol(name))))
    return 0


def _show(outcome: Outcome) -> None:
    from dynaflip.platform.evaluation.report.terminal import show_sections

    show_sections(outcome.sections, outcome.table)
    for line in outcome.verdict:
        print(line)
    for note in outcome.notes:
        print(note)
    if outcome.report is not None:
        print(f"report: {outcome.report}")
    if outcome.results is not None:
        print(f"results: {outcome.results}")
    print(f"MLflow run: {outcome.run_name} ({outcome.run_id})")


if __name__ == "__main__":
    run_job(main)
