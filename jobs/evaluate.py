"""Score a trained encoder beside its own initialisation.

    python jobs/evaluate.py --encoder models:/dynaflip-encoder@candidate

Retrieval over held-out transitions, and linear probes from frozen features to positions,
unperturbed and under the dev perturbations. The score goes to the terminal, to an HTML
report and to MLflow.
"""

from __future__ import annotations

from dynaflip.platform import home
from dynaflip.platform.cli import config_parser, parse_config, run_job
from dynaflip.platform.evaluation.config import EvaluationConfig


def main(argv: list[str]) -> int:
    """Evaluate and print the table."""
    parser = config_parser(__doc__ or "", EvaluationConfig)
    default = EvaluationConfig().encoder
    parser.add_argument(
        "--encoder", metavar="URI", help=f"registered version or folder (default {default})"
    )
    parser.add_argument(
        "--data", metavar="PATH", help=f"data set with labels (default {home.default_data()})"
    )
    parser.add_argument(
        "--triplets", metavar="PATH", help=f"triplet folder (default {home.default_triplets()})"
    )
    flags = {name: name for name in ("encoder", "data", "triplets")}
    _, config = parse_config(parser, EvaluationConfig, argv, flags)

    from dynaflip.platform.evaluation.score import evaluate

    outcome = evaluate(config)
    print(f"\n{outcome.table}\n")
    for note in outcome.notes:
        print(note)
    print(f"report: {outcome.report}")
    print(f"MLflow run: {outcome.run_name} ({outcome.run_id})")
    return 0


if __name__ == "__main__":
    run_job(main)
