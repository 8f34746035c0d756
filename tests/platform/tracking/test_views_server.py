"""MLflow's own pages open on what the jobs' experiments ask of them: a real server, by its API."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from troubled_mlflow import TroubledMlflow

from dynaflip.platform import tracking
from dynaflip.platform.tracking.store import client
from dynaflip.platform.tracking.views import table_address

pytestmark = pytest.mark.integration


def test_a_server_has_the_view_and_its_pages_read_it(home: Path, tmp_path: Path) -> None:
    run = tracking.open_run("dynaflip-evaluate", "a", {"kind": "policies"})
    score = "success_ever/proprioception/out_of_distribution/trained"
    run.log_metrics({score: 0.5, "something/else": 1.0}, step=0)
    run.end("FINISHED")
    server = TroubledMlflow(tmp_path)
    server.store = client().tracking_uri
    with server:
        name = urllib.parse.urlencode({"experiment_name": "dynaflip-evaluate"})
        api = f"{server.uri}/api/2.0/mlflow"
        experiment = json.loads(_get(f"{api}/experiments/get-by-name?{name}"))["experiment"]
        tags = {tag["key"]: tag["value"] for tag in experiment["tags"]}
        address = table_address(server.uri, experiment["experiment_id"])
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(address).fragment.split("?")[1]))
        view = json.loads(tags[f"mlflow.sharedViewState.{query['viewStateShareKey']}"])
        columns = json.loads(view["state"])["selectedColumns"]
        assert f"metrics.`{score}`" in columns
        assert not any("something/else" in column for column in columns)
        assert len(columns) <= 9, "few columns"
        assert "attributes.`Models`" not in columns, "which no evaluation has"

        # What is set is what this version's pages read.
        page = _get(f"{server.uri}/")
        (script,) = re.findall(r'src="([^"]*main\.[^"]*\.js)"', page)
        code = _get(urllib.parse.urljoin(f"{server.uri}/", script))
        read = {"mlflow.sharedViewState.", "selectedColumns", tags["mlflow.experimentKind"], *query}
        assert {word for word in read if word not in code} == set()
        assert f'"{query["workflowType"]}"' in code


def _get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=120) as answer:
        return str(answer.read(), "utf-8")
