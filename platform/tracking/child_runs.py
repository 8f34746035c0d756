"""The runs below another one: a sweep's trials."""

from __future__ import annotations

from dynaflip.platform.tracking.runs import PARENT, Run
from dynaflip.platform.tracking.search import RunRecord, record_of
from dynaflip.platform.tracking.store import client

_PAGE = 1000  # runs a call; the server gives no more


def child_runs(parent: Run) -> list[RunRecord]:
    """The runs below a parent, oldest first."""
    store = client(parent.uri)
    experiment = store.get_run(parent.run_id).info.experiment_id
    children: list[RunRecord] = []
    token = None
    while True:
        page = store.search_runs(
            [experiment],
            f"tags.`{PARENT}` = '{parent.run_id}'",
            max_results=_PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        children += [record_of(run, parent.uri) for run in page]
        token = page.token
        if not token:
            return children
