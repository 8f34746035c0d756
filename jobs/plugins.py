"""Show every extension there is: its name, where it comes from, and the code it stands for.

    python jobs/plugins.py              # all kinds
    python jobs/plugins.py backbone     # one kind

Beside these names each setting takes `class:MODULE:NAME`, a class of your own.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

from dynaflip.platform.cli import job_parser, run_job
from dynaflip.plugins import EXTENSION_POINTS, listing


def main(argv: list[str]) -> int:
    """Print the extensions by kind."""
    parser = job_parser(__doc__ or "")
    parser.add_argument("kind", nargs="?", choices=sorted(EXTENSION_POINTS), help="default: all")
    args = parser.parse_args(argv)
    print("\n".join(listing([args.kind] if args.kind else None)))
    return 0


if __name__ == "__main__":
    run_job(main)
