"""Hand a job to a Ray cluster with the code of this checkout and its commit.

    export RAY_ADDRESS=http://HEAD:8265 RAY_AUTH_MODE=token RAY_AUTH_TOKEN=…
    python jobs/submit.py pretrain --config jobs/configs/demo.yaml
    python jobs/submit.py --no-wait sweep --trials 64

This is `ray job submit --working-dir CHECKOUT -- python jobs/JOB.py …`, which works as well; here
the run also records the commit, and an upload that is refused is one line with the remedy.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from dynaflip.errors import UserError
from dynaflip.jobs.cli import JOBS
from dynaflip.platform.cli import job_parser, run_job
from dynaflip.platform.provenance import git_commit

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str]) -> int:
    """Submit, and follow the job's output; returns the exit code of `ray job submit`."""
    if not (ROOT / "pyproject.toml").is_file():
        raise UserError("submit hands in the code of a checkout: run jobs/submit.py of one")
    parser = job_parser(__doc__ or "", "python jobs/submit.py")
    parser.add_argument("--no-wait", action="store_true", help="leave once the job is accepted")
    parser.add_argument("job", metavar="JOB", help=", ".join(sorted(set(JOBS) - {"submit"})))
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what the job itself is given")
    args = parser.parse_args(argv)
    script = ROOT / "jobs" / f"{args.job}.py"
    if args.job not in JOBS or args.job == "submit" or not script.is_file():
        raise UserError(f"there is no job {args.job} in {script.parent}")
    environment = {"env_vars": {"DYNAFLIP_GIT_COMMIT": git_commit()}}
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    command += ["--working-dir", str(ROOT), "--runtime-env-json", json.dumps(environment)]
    command += ["--no-wait"] * args.no_wait
    command += ["--", "python", f"jobs/{script.name}", *args.words]
    submitted = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert submitted.stderr is not None
    lines = []
    for line in submitted.stderr:  # Ray's own words; a traceback waits for its reason
        lines.append(line)
        if "Traceback" not in "".join(lines):
            print(line, end="", file=sys.stderr, flush=True)
    code = submitted.wait()
    said = "".join(lines)
    if code and "Traceback" in said:
        raise UserError(reason(said))
    return code


def reason(said: str) -> str:
    """Why `ray job submit` failed, with the remedy, from the traceback that it printed."""
    address = os.environ.get("RAY_ADDRESS", "http://127.0.0.1:8265 (RAY_ADDRESS is not set)")
    last = said.strip().splitlines()[-1]
    if "status code 413" in said or "exceeds the maximum size" in said:
        largest = ", ".join(f"{name} ({size / 1e6:.0f} MB)" for size, name in _largest(5))
        return (
            f"the upload of {ROOT} is larger than the 100 MiB that Ray accepts; move data out of "
            f"the checkout or name it in .rayignore. Largest files: {largest}"
        )
    if "AuthenticationError" in said:
        return (
            f"{address} asks for a token that this environment lacks; export RAY_AUTH_MODE=token "
            "and RAY_AUTH_TOKEN, which `ray get-auth-token` prints on the head"
        )
    if "Failed to connect" in said or "ConnectionError" in said:
        return f"no Ray dashboard answers at {address}; export RAY_ADDRESS=http://HEAD:8265"
    print(said, file=sys.stderr)
    return f"`ray job submit` failed: {last}"


def _largest(number: int) -> list[tuple[int, str]]:
    """The largest files that would be uploaded, by Ray's own lists of what it skips."""
    from ray._private.runtime_env import packaging

    found: list[tuple[int, str]] = []

    def note(path: Path) -> None:
        if path.is_file():
            found.append((path.stat().st_size, str(path.relative_to(ROOT))))

    packaging._dir_travel(ROOT, [], note, include_gitignore=True)
    return sorted(found, reverse=True)[:number]


if __name__ == "__main__":
    run_job(main, check_home=False)
