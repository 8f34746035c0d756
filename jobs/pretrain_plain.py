"""Old name of `jobs/pretrain.py --backend in_process`; it works for one more minor version."""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

import os

from dynaflip.jobs import pretrain
from dynaflip.platform.cli import run_job
from dynaflip.platform.training.backends import IN_PROCESS
from dynaflip.renames import UNTIL, warn_once


def main(argv: list[str]) -> int:
    """Run the job of today, with one warning line, also under torchrun."""
    if os.environ.get("RANK", "0") == "0":
        warn_once(
            f"pretrain_plain is now pretrain --backend {IN_PROCESS}; the old name works until "
            f"{UNTIL}"
        )
    return pretrain.main(["--backend", IN_PROCESS, *argv])


if __name__ == "__main__":
    run_job(main)
