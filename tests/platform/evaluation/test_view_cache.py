"""Rendered views of another version of the simulator are rendered anew."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.eval.envs.registry import environment
from dynaflip.platform.evaluation import rendered_views
from dynaflip.platform.evaluation.probe_config import ViewsConfig


def test_only_views_of_the_present_simulator_are_taken(tmp_path: Path) -> None:
    task = "drawer-open-v3"
    (plan, *_) = rendered_views.plan_views(ViewsConfig(), [task], "corner4", (32, 32), "dev")[task]
    path, table = tmp_path / "views.parquet", pa.table({"task": [task]})
    assert not rendered_views._is_current(path, plan)
    for version, current in (
        (environment("metaworld").version(), True),
        ("metaworld 0.1", False),
    ):
        pq.write_table(table.replace_schema_metadata({"simulator": version}), path)
        assert rendered_views._is_current(path, plan) is current
    pq.write_table(table, path)
    assert rendered_views._is_current(path, plan), "of before it was stored"
