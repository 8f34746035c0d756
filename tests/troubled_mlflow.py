"""A real MLflow server over HTTP that hangs, refuses or is slow when it is told to.

A process of its own: ``with TroubledMlflow(folder) as server: server.be("hang")``. What a file of
the folder says decides how each request is answered; the store behind is MLflow's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from dynaflip.platform.cluster import free_port

WELL, HANG, REFUSE, SLOW = "well", "hang", "refuse", "slow"
SLOW_S = 25.0


class TroubledMlflow:
    """The server's process."""

    def __init__(self, folder: Path) -> None:
        self.mode, self.port = folder / "mode", free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.store = f"sqlite:///{folder / 'mlflow.db'}"
        self.folder = folder

    def __enter__(self) -> TroubledMlflow:
        self.be(WELL)
        words = [sys.executable, __file__, str(self.port), str(self.mode)]
        environment = {
            **os.environ,
            "_MLFLOW_SERVER_FILE_STORE": self.store,
            "_MLFLOW_SERVER_REGISTRY_STORE": self.store,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": (self.folder / "artifacts").as_uri(),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(words, env=environment)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"{self.uri}/version", timeout=5).close()
            except OSError:
                time.sleep(0.2)
            else:
                return self
        raise TimeoutError("the MLflow server did not start")

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def be(self, mode: str) -> None:
        """How requests that come from now on are answered."""
        fresh = self.mode.with_suffix(".new")
        fresh.write_text(mode)
        fresh.replace(self.mode)


def serve(port: int, mode: Path) -> None:
    """Serve MLflow's own application behind the trouble."""
    from mlflow.server import app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *args: Any, **kwargs: Any) -> None:
            """Say nothing."""

    def troubled(environ: Any, start: Any) -> Any:
        how = mode.read_text()
        while how == HANG:
            time.sleep(0.1)
            if mode.read_text() != HANG:  # a request that hung is never answered
                raise ConnectionAbortedError("the server has forgotten the request")
        if how == REFUSE:
            start("503 Service Unavailable", [("Content-Type", "text/plain")])
            return [b"out of order"]
        if how == SLOW:
            time.sleep(float(os.environ.get("SLOW_S", SLOW_S)))
        return app(environ, start)

    make_server("127.0.0.1", port, troubled, threaded=True, request_handler=Quiet).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
