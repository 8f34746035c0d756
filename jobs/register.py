"""Register a fitted policy of an evaluation's run as a version of a model.

    python jobs/register.py runs:/RUN/policies/NAME my-policy
    python jobs/register.py runs:/RUN/policies/NAME my-policy --alias robot

`dynaflip.load_policy("models:/my-policy/1")` loads it with its encoder, and so does
`models:/my-policy@robot`. Nothing is copied: the version names the run's policy. Encoders are
registered by the job that pretrains them.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

from dynaflip.platform.cli import job_parser, run_job


def main(argv: list[str]) -> int:
    """Register the policy and say how to load it."""
    parser = job_parser(__doc__ or "")
    parser.add_argument("uri", metavar="URI", help="runs:/RUN/policies/NAME")
    parser.add_argument("name", metavar="NAME", help="of the registered model; new, or of policies")
    parser.add_argument("--alias", metavar="ALIAS", help="an alias to move to the version")
    args = parser.parse_args(argv)

    from dynaflip.platform.promotion import check_alias
    from dynaflip.platform.tracking.policies import register_policy

    check_alias(args.alias)
    number = register_policy(args.uri, args.name, args.alias)
    print(f'registered: dynaflip.load_policy("models:/{args.name}/{number}")')
    return 0


if __name__ == "__main__":
    run_job(main)
