"""All that talks to MLflow: runs here, registered encoders in :mod:`.registry`.

Nothing outside this folder imports ``mlflow`` or holds a client of it.
"""

from dynaflip.platform.tracking.child_runs import child_runs
from dynaflip.platform.tracking.runs import Run, ending, open_run, reopen_run
from dynaflip.platform.tracking.search import (
    RunRecord,
    find_finished,
    find_run,
    newest_run_names,
    read_artifact,
    runs_with_tags,
)
from dynaflip.platform.tracking.store import (
    away_errors,
    first_line,
    is_embedded,
    is_store_error,
    request_timeout,
    store_away,
    store_error,
    tracking_uri,
)

__all__ = [
    "Run",
    "RunRecord",
    "away_errors",
    "child_runs",
    "ending",
    "find_finished",
    "find_run",
    "first_line",
    "is_embedded",
    "is_store_error",
    "newest_run_names",
    "open_run",
    "read_artifact",
    "reopen_run",
    "request_timeout",
    "runs_with_tags",
    "store_away",
    "store_error",
    "tracking_uri",
]
