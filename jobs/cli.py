"""The ``dynaflip`` command of an installed package: ``dynaflip pretrain --help``.

Each word is a job of this folder; in a checkout ``python jobs/pretrain.py`` is the same.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

import importlib
import sys
import typing
from pathlib import Path

JOBS = {
    "collect": "scripted demonstrations, written as a LeRobot v3.0 data set",
    "preprocess": "videos to image-language-3D-flow triplets",
    "pretrain": "pretrain an encoder on triplets and register it; or without Ray, under torchrun",
    "pretrain_plain": "old name of pretrain --backend in_process",
    "ablate": "pretrain every variant of the ablation and rank them",
    "sweep": "search the weights, confirm the best, register its encoder",
    "evaluate": "score encoders: probes, imitation, or policies in a simulator",
    "promote": "make a version the champion, with evidence",
    "register": "register a fitted policy, which loads as models:/NAME/VERSION",
    "export": "write an encoder as a plain folder, or for transformers, ONNX or torch.export",
    "plugins": "every extension there is, and where it comes from",
    "submit": "hand a job to a Ray cluster with this checkout's code",
    "home": "where all state lives; adopt a home that was copied or moved",
    "ui": "the MLflow UI on your runs",
    "demo": "all of it, small, from nothing",
}


def main() -> typing.NoReturn:
    """Run the job that the first word names."""
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        for name, summary in JOBS.items():
            print(f"dynaflip {name:<14} {summary}")
        sys.exit(0 if sys.argv[1:] in ([], ["-h"], ["--help"]) else 2)
    try:
        from dynaflip.platform.cli import run_job
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: jobs need {error.name}, which is not installed here; "
            "pip install 'dynaflip[platform]'"
        )
    job = importlib.import_module(f"dynaflip.jobs.{sys.argv[1]}")
    _note_another_checkout(sys.argv[1])
    sys.argv = [f"dynaflip {sys.argv[1]}", *sys.argv[2:]]
    run_job(job.main, check_home=sys.argv[0].split()[1] not in ("home", "submit"))


def _note_another_checkout(job: str) -> None:
    """Tell who types the command in a checkout that it runs the code of the installed one."""
    here, code = Path.cwd(), Path(__file__).resolve().parents[1]
    if (here / "jobs" / f"{job}.py").is_file() and here.resolve() not in (code, code.parent):
        print(
            f"note: `dynaflip` runs the code installed from {code}; `python jobs/{job}.py` runs "
            "that of this checkout",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
