"""Pretrain every arm of the ablation with several seeds, and rank the arms by policies.

    python jobs/ablate.py --config jobs/configs/ablate.yaml
    python jobs/ablate.py --arms '[full, no_negatives]' --seeds '[0, 1]'

May be stopped and started again: finished encoders and evaluation cells are reused. The table
stands in the paper's order, with the rank correlation to it.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

from dynaflip.platform.ablation import AblationConfig
from dynaflip.platform.cli import config_parser, parse_config, run_job


def main(argv: list[str]) -> int:
    """Ablate and print the table."""
    parser = config_parser(__doc__ or "", AblationConfig)
    _, config = parse_config(parser, AblationConfig, argv, aliases={})

    from dynaflip.platform.ablation import ablate

    done = ablate(config)
    print(f"\n{done.table}\n")
    print(f"MLflow run: {done.run_name} ({done.run_id})")
    return 0


if __name__ == "__main__":
    run_job(main)
