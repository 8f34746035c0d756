"""Does an encoder help, and how sure is that?

    python jobs/evaluate.py --encoder models:/dynaflip-encoder@candidate
    python jobs/evaluate.py --encoder URI --suite metaworld --tasks r3m5 --seeds 3
    python jobs/evaluate.py --encoder URI --suite imitation --episodes 5 --seeds 1
    python jobs/evaluate.py compare RUN_A RUN_B

Alone: retrieval over held-out transitions, and linear probes from frozen features to
positions, unperturbed and under the dev perturbations, beside the encoder's own
initialisation. With --suite metaworld: policies on the frozen encoder and on its baselines,
rolled out in the simulator (see `--suite metaworld --help`). With --suite imitation: the same
policies held against the expert in what it sees, without a rollout: minutes, for tuning on
dev. `compare` pairs two runs of rollouts.
The score goes to the terminal, to an HTML report and to MLflow.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

from dynaflip.errors import UserError
from dynaflip.platform.cli import config_parser, parse_config, run_job
from dynaflip.platform.evaluation.probe_config import EvaluationConfig
from dynaflip.platform.evaluation.rollout_config import RolloutConfig

SUITES = ("metaworld", "imitation")


def main(argv: list[str]) -> int:
    """Evaluate and print the table."""
    if argv[:1] == ["compare"]:
        return _compare(argv[1:])
    for index, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag == "--suite":
            rest = argv[index + 1 :]
            if not equals:
                value, rest = (rest[0] if rest else ""), rest[1:]
            if value not in SUITES:
                raise UserError(
                    f"--suite: there is no {value or '(nothing)'}; known: " + ", ".join(SUITES)
                )
            return _policies([*argv[:index], *rest], value)
    return _score(argv)


def _score(argv: list[str]) -> int:
    parser = config_parser(__doc__ or "", EvaluationConfig)
    default = EvaluationConfig().encoder
    parser.add_argument(
        "--encoder", metavar="URI", help=f"registered version or folder (default {default})"
    )
    parser.add_argument(
        "--data", metavar="PATH", help="data set with labels (default: data/demo in the home)"
    )
    parser.add_argument(
        "--triplets", metavar="PATH", help="triplet folder (default: triplets/demo in the home)"
    )
    parser.add_argument(
        "--reuse", action="store_true", help="show the score that there is, if nothing changed"
    )
    flags = {name: name for name in ("encoder", "data", "triplets")}
    args, config = parse_config(parser, EvaluationConfig, argv, flags)

    from dynaflip.platform.evaluation.score_cache import find_scored
    from dynaflip.platform.evaluation.suites.probes import evaluate

    scored = find_scored(config) if args.reuse else None
    if scored is not None:
        print("these weights have been scored on these triplets already:")
    _show(scored or evaluate(config))
    return 0


def _policies(argv: list[str], suite: str) -> int:
    parser = config_parser(__doc__ or "", RolloutConfig)
    parser.add_argument(
        "--encoder", metavar="URI[,URI]", help="version or folder; pretraining seeds"
    )
    parser.add_argument(
        "--baselines", metavar="A,B", help="initialization, imagenet, random; or none"
    )
    parser.add_argument("--tasks", metavar="A,B", help="r3m5, mt10, mw15, or tasks")
    parser.add_argument("--seeds", metavar="N", help="policies an arm")
    parser.add_argument("--split", metavar="NAME", help="dev, or test for a headline (counted)")
    flags = ("encoder", "baselines", "tasks", "seeds", "split")
    _, config = parse_config(parser, RolloutConfig, argv, {name: name for name in flags})

    from dynaflip.platform.evaluation.suites.imitation import evaluate_imitation
    from dynaflip.platform.evaluation.suites.rollouts import evaluate_policies

    _show(evaluate_policies(config) if suite == "metaworld" else evaluate_imitation(config))
    return 0


def _compare(argv: list[str]) -> int:
    if len(argv) != 2 or any(word.startswith("-") for word in argv):
        raise UserError("compare: give the names or ids of two runs: compare RUN_A RUN_B")

    from dynaflip.platform.evaluation.compare import compare

    print(f"\n{compare(*argv)}")
    return 0


def _show(outcome) -> None:
    print(f"\n{outcome.table}\n")
    for note in outcome.notes:
        print(note)
    print(f"report: {outcome.report}")
    print(f"MLflow run: {outcome.run_name} ({outcome.run_id})")


if __name__ == "__main__":
    run_job(main)
