"""Open the MLflow UI on the runs under DYNAFLIP_HOME: ``make ui``."""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

import contextlib
import os
import signal
import socket
import subprocess
import sys
from types import FrameType

from dynaflip.errors import UserError
from dynaflip.platform.cli import job_parser, run_job
from dynaflip.platform.paths import mlflow_folder
from dynaflip.platform.tracking.views import add_views, table_address

# The server ends its own workers on SIGTERM; one that does not is killed after this.
_STOP_S = 10.0


def main(argv: list[str]) -> int:
    """Serve until a signal or the server itself ends it; returns the exit code."""
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
    address = f"http://127.0.0.1:{args.port}"
    print(f"MLflow UI on {address}/#/experiments?workflowType=machine_learning (Ctrl-C ends it)")
    for name, experiment in add_views().items():
        print(f"  {name}: {table_address(address, experiment)}", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(args.port), "--workers", "1"]
    # In the environment, not in the command: the process list would show a database's password.
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": store or f"sqlite:///{database}",
        # Job execution would start seven more processes that a UI does not need.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return _run_until_stopped(command, environment)


def _run_until_stopped(command: list[str], environment: dict[str, str]) -> int:
    """Run a server in a process group of its own and end all of the group with this process."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return server.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(_STOP_S)
            os.killpg(server.pid, signal.SIGKILL)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    run_job(main)
