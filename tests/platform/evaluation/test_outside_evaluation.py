"""A whole policy evaluation whose simulator, factor and policy head are all from outside.

The pool's actors are run in this process: what is tested is that no step knows the built-in
simulator.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_rollouts import encoder_folder

from dynaflip.errors import UserError
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.evaluation.config import RolloutConfig

OUTSIDE = Path(__file__).parents[2] / "eval"
FOG = "class:outside_environment:FOG"


class InThisProcess:
    """An object whose methods are called as a Ray actor's are."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._worker, name))


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(pool: ActorPool, next_job: Any, submit: Any, **_: Any) -> Iterator[tuple[Any, Any]]:
        actor = InThisProcess(pool._actor_class(*pool._arguments))
        while (job := next_job(0)) is not None:
            yield job, submit(actor, job)

    monkeypatch.setattr(ActorPool, "run", run)
    monkeypatch.syspath_prepend(str(OUTSIDE))
    for module in ("outside_environment", "outside_head", "outside_readout"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def config(encoder: Path) -> RolloutConfig:
    return RolloutConfig(
        encoder=str(encoder),
        baselines=(),
        environment="class:outside_environment:ENVIRONMENT",
        head="class:outside_head:HEAD",
        head_settings={"penalty": 1.0},
        factors=(FOG,),
        all_at_once=False,
        seeds=1,
        episodes=3,
        demonstrations=4,
        image_px=32,
        horizon_steps=20,
        steps_after_success=2,
        environments=3,
        check_harness=True,
    )


@pytest.mark.integration
def test_simulator_factor_and_head_from_outside_go_through_a_whole_evaluation(
    home: Path, tmp_path: Path
) -> None:
    from dynaflip.platform.evaluation.suites.rollouts import Rollouts

    outcome = Rollouts().run(config(encoder_folder(tmp_path / "encoder")))
    episodes = outcome.rows()
    assert {*episodes["task"]} == {"reach"}
    assert {*episodes["factor"]} == {"none", FOG}
    expert = episodes.filter(episodes["arm"].str.contains("expert"))
    assert expert["success_ever"].all()
    assert outcome.report.is_file()
    # Once more: everything is found again, nothing runs.
    before = {path: path.stat().st_mtime_ns for path in (home / "evaluation").rglob("*.json")}
    Rollouts().run(config(tmp_path / "encoder"))
    assert {p: p.stat().st_mtime_ns for p in (home / "evaluation").rglob("*.json")} == before


@pytest.mark.integration
@pytest.mark.parametrize(
    ("readout", "head"),
    [
        ("attentive", "diffusion"),
        ("spatial_softmax", "behaviour_cloning"),
        ("class:outside_readout:READOUT", "behaviour_cloning"),
    ],
)
def test_read_outs_go_through_a_whole_evaluation(
    home: Path, tmp_path: Path, readout: str, head: str
) -> None:
    from dynaflip.eval.policies.config import BehaviourCloningConfig, DiffusionConfig
    from dynaflip.platform.evaluation.suites.rollouts import Rollouts

    settings = replace(
        config(encoder_folder(tmp_path / "encoder")),
        check_harness=False,
        head=head,
        head_settings={},
        behaviour_cloning=BehaviourCloningConfig(hidden_dim=16, layers=1, steps=20),
        diffusion=DiffusionConfig(chunk=2, execute=1, hidden_dim=16, blocks=1, steps=20),
        readout=readout,
        readout_settings={"bottom": True} if readout.startswith("class:") else {},
    )
    outcome = Rollouts().run(settings)
    assert {*outcome.rows()["factor"]} == {"none", FOG}
    assert readout in outcome.report.read_text()
    before = {path: path.stat().st_mtime_ns for path in (home / "evaluation").rglob("*")}
    Rollouts().run(settings)
    assert {p: p.stat().st_mtime_ns for p in (home / "evaluation").rglob("*")} == before


def test_a_head_that_cannot_train_a_read_out_is_refused_before_anything_is_collected(
    home: Path, tmp_path: Path
) -> None:
    from dynaflip.platform.evaluation.plan import prepare

    given = replace(config(encoder_folder(tmp_path / "encoder")), readout="spatial_softmax")
    with pytest.raises(UserError, match=r"readout: head class:outside_head:HEAD reads pooled"):
        prepare(given)
    assert not home.exists()
