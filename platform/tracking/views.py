"""What MLflow's pages open on: the machine-learning view, and the runs' table with few columns.

MLflow 3 shows an experiment as one of models or of agents. Its address says which
(``workflowType``), as a tag of the experiment did before. Columns of the runs' table are kept by
the browser; a saved view, which is a tag of the experiment, brings its own.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from dynaflip.platform.tracking.store import client

if TYPE_CHECKING:
    from mlflow import MlflowClient

_KIND = ("mlflow.experimentKind", "custom_model_development")
_VIEW = "dynaflip"
_VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_PREFIX = "dynaflip"  # names of the jobs' experiments
_SUCCESS = "success_ever/proprioception/out_of_distribution"
# Of all jobs: a table shows those that its runs have.
_COLUMNS = (
    "attributes.`Description`",
    "attributes.`Dataset`",
    "attributes.`Models`",
    "tags.`kind`",
    "tags.`encoder`",
    "tags.`perturbation_split`",
    f"metrics.`{_SUCCESS}/trained`",
    f"metrics.`{_SUCCESS}/initialization/trained_minus_this`",
    "metrics.`agreement/proprioception/out_of_distribution/trained`",
    "metrics.`action_error/out_of_distribution/trained`",
    "metrics.`heldout/retrieval/all/top1`",
)
# Evaluations log neither, and each takes the room of three scores.
_NOT_EVALUATIONS = ("attributes.`Dataset`", "attributes.`Models`")
_EVALUATIONS = "-evaluate"


def view_tags(experiment: str) -> dict[str, str]:
    """Tags of an experiment, by its name, that make its page as it is described above."""
    evaluates = experiment.endswith(_EVALUATIONS)
    columns = [column for column in _COLUMNS if not (evaluates and column in _NOT_EVALUATIONS)]
    state = json.dumps({"selectedColumns": columns})
    now_ms = int(time.time() * 1000)
    view = {"name": "What matters", "createdAt": now_ms, "updatedAt": now_ms, "state": state}
    return {_KIND[0]: _KIND[1], _VIEW_TAG: json.dumps(view)}


def add_views(store: MlflowClient | None = None) -> dict[str, str]:
    """Give the jobs' experiments of before their view; one that has a view keeps it.

    Returns:
        Name of an experiment → its id.
    """
    store = store or client()
    found = {}
    for experiment in store.search_experiments():
        if not experiment.name.startswith(_PREFIX):
            continue
        found[experiment.name] = str(experiment.experiment_id)
        if _VIEW_TAG in experiment.tags:
            continue
        for key, value in view_tags(experiment.name).items():
            if key not in experiment.tags:
                store.set_experiment_tag(experiment.experiment_id, key, value)
    return found


def table_address(ui: str, experiment: str) -> str:
    """Address of the runs' table of an experiment, with its view.

    Args:
        ui: address of MLflow's pages.
        experiment: its id.
    """
    query = f"workflowType=machine_learning&viewStateShareKey={_VIEW}"
    return f"{ui}/#/experiments/{experiment}/runs?{query}"
