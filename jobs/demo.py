"""From nothing to a registered encoder and its first score: ``make demo``.

Runs four jobs as a user would type them (demonstrations, triplets, pretraining, score) and prints
how long each took. From a fresh clone it took 7 minutes on 2 quiet CPU cores, including the
environment; other work on the machine makes it longer. It needs no GPU, no account, no server and
6 GB of disk. A second call reuses what is done.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

import subprocess
import sys
import time
from pathlib import Path

from dynaflip.platform.cli import job_parser, run_job
from dynaflip.platform.paths import home

JOBS = Path(__file__).resolve().parent
ENCODER = "models:/dynaflip-encoder@candidate"
STAGES = {
    "demonstrations": ["collect.py", "--config", "configs/demo_collect.yaml"],
    "triplets": ["preprocess.py", "--config", "configs/demo_triplets.yaml"],
    "pretraining": [
        "pretrain.py",
        "--config",
        "configs/demo.yaml",
        "--alias",
        "candidate",
        "--reuse",
    ],
    "score": ["evaluate.py", "--encoder", ENCODER, "--views.episodes_per_task", "3", "--reuse"],
}

# `make` starts the demo right after it made the environment; an older one took no time today.
_JUST_MADE_S = 30


def main(argv: list[str]) -> int:
    """Run the stages in turn; the first that fails ends the demo with its exit code."""
    job_parser(__doc__ or "").parse_args(argv)
    print("about 6 minutes on 2 quiet CPU cores from here; what is done already is reused")
    seconds: dict[str, float] = {}
    installed = Path(sys.prefix) / ".installed"
    if installed.is_file() and time.time() - installed.stat().st_mtime < _JUST_MADE_S:
        seconds["environment"] = float(installed.read_text().strip() or 0)
    for stage, (job, *words) in STAGES.items():
        words = [str(JOBS / w) if w.startswith("configs/") else w for w in words]
        print(f"\n=== {stage}: python jobs/{job} {' '.join(words)}", flush=True)
        began = time.monotonic()
        code = subprocess.run([sys.executable, str(JOBS / job), *words], check=False).returncode
        seconds[stage] = time.monotonic() - began
        if code:
            print(f"\n{stage} failed with exit code {code}; see above", file=sys.stderr)
            return code
    print("\nTime by stage")
    for stage, took in seconds.items():
        print(f"  {stage:<32}{took:7.0f} s")
    print(f"  {'all':<32}{sum(seconds.values()):7.0f} s")
    print(f"\nEverything is in {home()}. Look at the runs: make ui")
    print(f'Use the encoder: dynaflip.load_encoder("{ENCODER}")')
    return 0


if __name__ == "__main__":
    run_job(main)
