"""The MLflow runs of a sweep's trials, as the store has them."""

from __future__ import annotations

from dataclasses import dataclass

from dynaflip.platform import tracking


@dataclass(frozen=True)
class Child:
    """A run below a sweep's."""

    run: tracking.Run
    status: str
    tags: dict[str, str]
    metrics: dict[str, float]  # the last value of every curve


def children(parent: tracking.Run) -> list[Child]:
    """The runs below a parent, oldest first."""
    store = parent.client()
    experiment = store.get_run(parent.run_id).info.experiment_id
    found: list[Child] = []
    token = None
    while True:
        page = store.search_runs(
            [experiment],
            f"tags.`{tracking.PARENT}` = '{parent.run_id}'",
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        found += [
            Child(
                tracking.Run(run.info.run_id, run.info.run_name, parent.uri),
                run.info.status,
                dict(run.data.tags),
                dict(run.data.metrics),
            )
            for run in page
        ]
        token = page.token
        if not token:
            return found
