"""Open the MLflow UI on the runs under DYNAFLIP_HOME: ``make ui``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from dynaflip.errors import UserError
from dynaflip.platform.cli import job_parser, run_job
from dynaflip.platform.paths import mlflow_folder


def main(argv: list[str]) -> int:
    """Serve until the user stops it; returns the server's exit code."""
    parser = job_parser(__doc__ or "")
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default 5000)")
    args = parser.parse_args(argv)
    database = mlflow_folder() / "mlflow.db"
    store = os.environ.get("MLFLOW_TRACKING_URI")
    if store and store.startswith(("http://", "https://")):
        raise UserError(f"MLFLOW_TRACKING_URI: the runs are on a server; open {store} in a browser")
    if not store and not database.is_file():
        raise UserError(f"there are no runs yet in {mlflow_folder()}; type `make demo` first")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", args.port)) == 0:
            raise UserError(f"--port: something answers on port {args.port} already; give another")
    print(f"MLflow UI on http://127.0.0.1:{args.port} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(args.port), "--workers", "1"]
    command += ["--backend-store-uri", store or f"sqlite:///{database}"]
    # Job execution would start seven more processes that a UI does not need.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    run_job(main)
