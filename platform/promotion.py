"""Candidate to champion: only with evidence on the test split, which stays with the version."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace

import polars as pl

from dynaflip.errors import UserError
from dynaflip.eval.intervals.hierarchical_bootstrap import Rate
from dynaflip.platform import tracking
from dynaflip.platform.evaluation.compare import (
    FinishedEvaluation,
    PairedGroup,
    paired_groups,
    read_evaluation,
    shared_proprioception,
)
from dynaflip.platform.evaluation.coverage import MIN_POLICIES, lacking
from dynaflip.platform.evaluation.encoders_under_test import TRAINED, weights_digest
from dynaflip.platform.evaluation.report.rollout_tables import GIVEN
from dynaflip.platform.evaluation.results import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION
from dynaflip.platform.provenance import git_commit
from dynaflip.platform.tracking import registry

CHAMPION = "champion"
BASELINE = "initialization"  # a first champion is measured against it
# In distribution the version must not be worse, and its mean not by more than this. (A bound on
# the interval's end instead would refuse, at a hundred initial states, 19 of 20 equal versions.)
MARGIN = 0.05
RUN_TAG = "policies_test_run_id"  # written by the evaluation on the version it scored


@dataclass(frozen=True)
class Decision:
    """Whether the alias moved, and why."""

    promoted: bool
    explanation: str


def promote(name: str, version: str, *, force: str | None = None) -> Decision:
    """Move the alias ``champion`` to a version, if the evidence holds.

    Args:
        name: of the registered model.
        version: its number.
        force: a reason for doing it without evidence; it is recorded.

    Raises:
        UserError: no such version, or it has not been evaluated on ``test``.
    """
    registry.check_version(name, version)
    present = registry.version_of_alias(name, CHAMPION)
    if present == version:
        return Decision(True, f"{name} version {version} is the champion already")
    if force is not None:
        if not force.strip():
            raise UserError("--force: give the reason, it is recorded with the version")
        _crown(name, version, {"forced": force, "instead_of": present})
        return Decision(True, f"{name} version {version} is champion by force: {force}")
    mine = _evaluation(name, version)
    theirs, arm = (mine, BASELINE) if present is None else (_evaluation(name, present), TRAINED)
    rival = f"the champion, version {present}" if present else "its own initialisation"
    given = shared_proprioception(mine, theirs)[0]
    groups = paired_groups(mine, theirs, proprioception=given, second_arm=arm)
    found = {group.name: group for group in groups}
    for needed in (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION):
        if needed not in found:
            raise UserError(f"--version {version}: its evaluation has no episodes {needed}")
    inside, outside = found[IN_DISTRIBUTION].difference, found[OUT_OF_DISTRIBUTION].difference
    _check_breadth(version, mine, found[OUT_OF_DISTRIBUTION])
    holds = outside.low > 0 and inside.verdict() != "worse" and inside.value > -MARGIN
    said = (
        f"against {rival}, on test, {GIVEN[given]}: out of distribution {_points(outside)} "
        f"(must be above 0), in distribution {_points(inside)} "
        f"(must not be below 0, nor its mean below {-100 * MARGIN:.0f})"
    )
    if not holds:
        return Decision(False, f"{name} version {version} is not promoted: {said}")
    _crown(name, version, _evidence(mine, present, groups))
    return Decision(True, f"{name} version {version} is champion: {said}")


def _check_breadth(version: str, mine: FinishedEvaluation, outside: PairedGroup) -> None:
    """Refuse evidence that was looked for where it is easily found."""
    missing = lacking(
        adaptation=mine.settings["adaptation"],
        episodes=mine.settings["episodes"],
        tasks=outside.tasks,
        conditions=outside.conditions,
    )
    if missing:
        raise UserError(
            f"--version {version}: evidence covers what the headline does, with frozen encoders; "
            f"{mine.run_name}, and the champion's run where there is one, lack "
            f"{', '.join(missing)}: evaluate with --config jobs/configs/headline.yaml"
        )


def _evaluation(name: str, version: str) -> FinishedEvaluation:
    tags = registry.version_tags(name, version)
    if RUN_TAG not in tags:
        raise UserError(
            f"--version {version}: {name} version {version} has not been evaluated on test; run "
            f"python jobs/evaluate.py --suite metaworld --config jobs/configs/headline.yaml "
            f"--encoder models:/{name}/{version}"
        )
    found = read_evaluation(tags[RUN_TAG])
    if found.settings["split"] != "test":
        raise UserError(
            f"--version {version}: its tag {RUN_TAG} names {found.run_name}, an evaluation on "
            f"{found.settings['split']}; a champion takes evidence on test"
        )
    # The run may be of several pretraining seeds: these weights count, and no others.
    digest = weights_digest(f"models:/{name}/{version}")
    own = (pl.col("arm") == TRAINED) & (pl.col("encoder_digest") == digest)
    policies = found.episodes.filter(own)["seed"].unique()
    if policies.is_empty():
        raise UserError(
            f"--version {version}: {found.run_name} has evaluated other weights than those of "
            f"{name} version {version}; evaluate models:/{name}/{version} on test"
        )
    if len(policies) < MIN_POLICIES:
        raise UserError(
            f"--version {version}: {found.run_name} has {len(policies)} policy of its weights, "
            f"so policies' own spread is unknown; evaluate models:/{name}/{version} alone on "
            "test, with --seeds 3"
        )
    return replace(found, episodes=found.episodes.filter(pl.col("seed").is_in(policies.implode())))


def _evidence(
    mine: FinishedEvaluation, present: str | None, groups: list[PairedGroup]
) -> dict[str, object]:
    """What the decision rests on: the differences, and how much was looked at."""
    differences = {
        group.name: [group.difference.value, group.difference.low, group.difference.high]
        for group in groups
    }
    asked = ("episodes", "horizon_steps", "image_px", "adaptation", "head")
    (outside,) = [group for group in groups if group.name == OUT_OF_DISTRIBUTION]
    return {
        "run_id": mine.run_id,
        "test_look": mine.test_look,
        "protocol": {name: mine.settings.get(name) for name in asked},
        "tasks": outside.tasks,
        "conditions": [f"{factor}-{level}" for factor, level in outside.conditions],
        "instead_of": present,
        "differences": differences,
    }


def _crown(name: str, version: str, evidence: dict[str, object]) -> None:
    """Evidence first: a version that is champion has it."""
    evidence = {**evidence, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    evidence["git_commit"] = git_commit()
    store = tracking.client()
    store.set_model_version_tag(name, version, "champion_evidence", json.dumps(evidence))
    registry.set_alias(name, CHAMPION, int(version))


def _points(rate: Rate) -> str:
    return f"{100 * rate.value:+.1f} [{100 * rate.low:+.1f}, {100 * rate.high:+.1f}] points"
