"""``evaluate.py compare`` of evaluations by the suite ``offline``: pairs, and what are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dynaflip.errors import UserError
from dynaflip.jobs import evaluate
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.report.tables import Section

CONFIG = OfflineConfig(source="mine", encoder="encoders/one", seeds=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNAFLIP_HOME", str(folder / "home"))
        yield folder


def finished(
    folder: Path,
    error: float,
    *,
    config: OfflineConfig = CONFIG,
    episodes: range = range(8),
    factors: tuple[str, ...] = ("light", "blur"),
    scale: float = 9.0,
    version: str = "1, images 1",
) -> str:
    """Name of a run whose encoder has this error as recorded, and 0.2 sigma more perturbed.

    Half of the episodes are hard for every encoder, so that pairs tell more than means.
    """
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.offline_evidence import ERRORS_FILE, VERSION_TAG

    rows: list[dict[str, Any]] = []
    noise = np.random.default_rng([int(1000 * error), len(factors), ord(factors[-1][0])])
    for seed in range(config.seeds):
        for factor in ("none", *factors, "all"):
            for episode in episodes:
                found = error + (factor != "none") / 5 + episode % 2 + noise.normal(0, 0.03)
                rows.append(
                    {
                        "encoder": "trained", "encoder_digest": "weights", "seed": seed,
                        "factor": factor, "level": 0 if factor == "none" else config.levels[0],
                        "episode": episode, "recording": f"r{episode}", "moments": 10,
                        "action_error": found, "squared_of_mean": scale + episode,
                    }
                )  # fmt: skip
    tags = {"kind": "offline", VERSION_TAG: version}
    name = f"offline-{len(list(folder.glob('run-*')))}"
    (folder / f"run-{name}").mkdir()
    run = tracking.open_run("dynaflip-evaluate", name, tags)
    run.log_settings(config)
    pl.DataFrame(rows).write_parquet(folder / ERRORS_FILE)
    run.log_file(folder / ERRORS_FILE)
    run.end("FINISHED")
    return name


def compared(first: str, others: list[str], environment: str | None = None) -> list[Section]:
    from dynaflip.platform.evaluation.offline_compare import (
        compare_offline,
        offline_alone,
        read_offline_runs,
    )

    assert offline_alone([first, *others], environment)
    return compare_offline(read_offline_runs(first, others))


def test_runs_are_paired_by_held_out_episode(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynaflip.platform import tracking

    first, worse = finished(store, 0.5), finished(store, 0.6)
    same = finished(store, 0.502, factors=("light", "tint"))
    (section,) = compared(first, [worse, same])
    rows = {(row[0], row[1]): row[2:] for row in section.rows}
    # Alone, the hard episodes hide a gap of 0.1 sigma.
    for group in ("in distribution", "out of distribution"):
        theirs, mine, gap, verdict, together = rows[group, worse]
        assert (verdict, together) == ("better", "better")
        value, low, high = (float(one.strip("[],")) for one in gap.split())
        assert 0.05 < low < value < high < 0.15
        (_, low_theirs, _), (_, _, high_mine) = (
            [float(one.strip("[],")) for one in text.split()] for text in (theirs, mine)
        )
        assert low_theirs < high_mine
    assert rows["in distribution", same][3:] == ["not distinguishable"] * 2
    # Only shared factors are paired; all at once was not the same in both.
    assert ("out of distribution: light", same) in rows
    assert ("all at once", same) not in rows
    assert ("all at once", worse) in rows
    assert sum(run == worse for _, run in rows) == 3
    (turned,) = compared(worse, [first])
    assert {row[5] for row in turned.rows} == {"worse"}
    assert evaluate.main(["compare", first, worse, same]) == 0
    said = capsys.readouterr().out
    page = Path(said.rpartition("report: ")[2].splitlines()[0])
    shown = page.read_text()
    verdict = "held-out episodes as recorded, one has 0.1"
    assert verdict in said
    assert verdict in shown
    assert "Gain by perturbation" in shown
    assert "blur" in shown
    (logged,) = tracking.runs_with_tags({"kind": "compare"})
    assert logged.run_name in said


def test_what_are_no_pairs_is_refused_with_both_values(store: Path) -> None:
    from dynaflip.platform import tracking

    first = finished(store, 0.5)

    def refused(second: str, environment: str | None = None) -> str:
        with pytest.raises(UserError) as error:
            compared(first, [second], environment)
        assert "\n" not in str(error.value)
        return str(error.value)

    fewer = refused(finished(store, 0.5, episodes=range(3, 9)))
    assert "8 held-out episodes and 6, 5 of them in both" in fewer
    other_training = refused(finished(store, 0.5, scale=8.0))
    assert "sums up to 100 and 92;" in other_training
    cloning = replace(CONFIG.behaviour_cloning, steps=7)
    steps = CONFIG.behaviour_cloning.steps
    for config, said in (
        (replace(CONFIG, split="test"), "has split dev, {} test"),
        (replace(CONFIG, levels=(5,)), "has levels [3], {} [5]"),
        (replace(CONFIG, seeds=1), "has seeds 2, {} 1"),
        (
            replace(CONFIG, behaviour_cloning=cloning),
            f"has behaviour_cloning.steps {steps}, {{}} 7",
        ),
    ):
        second = finished(store, 0.5, config=config)
        assert f"{first} {said.format(second)}" in refused(second)
    newer = finished(store, 0.5, version="2, images 1")
    assert f"has version 1, images 1, {newer} 2, images 1" in refused(newer)
    # What is not read may differ.
    unread = replace(CONFIG, diffusion=replace(CONFIG.diffusion, steps=7))
    assert compared(first, [finished(store, 0.5, config=unread)])

    rollouts = tracking.open_run("dynaflip-evaluate", "policies-0", {"kind": "policies"})
    rollouts.end("FINISHED")
    assert "policies-0 of kind policies" in refused("policies-0")
    assert "there is no run gone; newest offline runs: offline-" in refused("gone")
    assert "--environment metaworld" in refused(newer, "metaworld")
