"""Pretrain every variant of the ablation with several seeds, and rank them by policies.

    python jobs/ablate.py --config jobs/configs/ablate.yaml
    python jobs/ablate.py --variants '[full, no_negatives]' --seeds '[0, 1]'

An interrupted ablation resumes: finished encoders and evaluation jobs are reused. The table is in
the paper's order, with the rank correlation to it.
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
