"""All rules of aliases: what each names, who moves it, and when.

- ``latest`` is MLflow's own: it always names the highest version, and nobody moves it.
- ``candidate`` names the version that is tried next. ``jobs/pretrain.py --alias candidate`` moves
  it to the version that it made, and a sweep moves it by :func:`decide_candidate`.
- ``champion`` names the version that others build on. :func:`promote` alone moves it: with
  evidence on the test split, or by force with a reason. Either is recorded with the version.
- Every other alias is the user's own and moves on request (``jobs/pretrain.py --alias NAME``).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynaflip.errors import UserError
from dynaflip.files import file_lock
from dynaflip.platform.paths import home
from dynaflip.platform.promotion_config import OFFLINE, PromotionConfig
from dynaflip.platform.tracking import registry

if TYPE_CHECKING:
    from dynaflip.eval.intervals.cluster_bootstrap import Interval
    from dynaflip.eval.intervals.hierarchical_bootstrap import Rate
    from dynaflip.platform.evaluation.compare import PairedGroup
    from dynaflip.platform.evaluation.rollout_run import FinishedEvaluation

LATEST, CANDIDATE, CHAMPION = "latest", "candidate", "champion"
BASELINE = "initialization"  # a first champion is compared with it
# In distribution the version must not be worse, and its mean not by more than this. (A bound on
# the interval's end instead would refuse, at a hundred initial states, 19 of 20 equal versions.)
MARGIN = 0.05
RUN_TAG = "policies_test_run_id"  # written by the evaluation on the version that it scored
OFFLINE_MARGIN = 0.05  # sigma, as MARGIN
EVIDENCE_TAG = "champion_evidence"


@dataclass(frozen=True)
class Decision:
    """Decision on an alias: whether it moves, and why."""

    promoted: bool
    explanation: str


def check_alias(alias: str | None) -> None:
    """Refuse an alias before a long run that could not move it at its end.

    Raises:
        UserError: it is no name, looks like a version, or takes evidence to move.
    """
    if alias is None or alias == LATEST:
        return
    plain = alias.replace("-", "").replace("_", "")
    if not plain.isalnum() or alias.lower() == LATEST or alias.lower().lstrip("v").isdigit():
        raise UserError(
            f"--alias {alias!r}: use letters, digits, - and _, and not what reads like a version"
        )
    if alias == CHAMPION:
        raise UserError(
            f"--alias {alias}: a champion takes evidence; evaluate the version on test, then run "
            "python jobs/promote.py --version N"
        )


def move_alias(name: str, alias: str | None, version: int) -> None:
    """Move an alias to a version on a user's request; None and ``latest`` move nothing.

    Raises:
        UserError: as :func:`check_alias`.
    """
    check_alias(alias)
    if alias is not None and alias != LATEST:
        registry.set_alias(name, alias, version)


def comparing() -> contextlib.AbstractContextManager[None]:
    """The lock under which versions are compared: jobs that end at once compare in turn."""
    return file_lock(home() / "promote.lock")


def decide_candidate(
    name: str,
    version: int,
    *,
    policy: str,
    confirmed: bool,
    missing_seeds: int,
    gap_to: Callable[[int], tuple[float, float]],
    unit: str = "cm",
) -> Decision:
    """Move ``candidate`` to the version that a sweep registered, if that is better.

    Args:
        name: of the registered model.
        version: the sweep's best.
        policy: ``always``, ``never``, or ``auto``: where it is better beyond noise.
        confirmed: whether other seeds of its setting were trained.
        missing_seeds: of these, those without a result.
        gap_to: version of the present candidate → this one's error less that one's, and the 95 %
            half width.
        unit: of that error.
    """
    decision = _candidate(name, version, policy, confirmed, missing_seeds, gap_to, unit)
    if decision.promoted:
        registry.set_alias(name, CANDIDATE, version)
    return decision


def _candidate(
    name: str,
    version: int,
    policy: str,
    confirmed: bool,
    missing_seeds: int,
    gap_to: Callable[[int], tuple[float, float]],
    unit: str,
) -> Decision:
    if policy != "auto":
        return Decision(policy == "always", f"--promote {policy}")
    if not confirmed:
        return Decision(False, "nothing was confirmed (--confirm 2, or --promote always)")
    if missing_seeds:
        return Decision(False, f"{missing_seeds} seeds of the best setting came to nothing")
    present = registry.version_of_alias(name, CANDIDATE)
    if present is None:
        return Decision(True, "there was none")
    if int(present) == version:
        return Decision(True, "it is this version already")
    gap, half = gap_to(int(present))
    compared = f"{gap:+.2f} ± {half:.2f} {unit} to version {present}, over episodes and seeds"
    return Decision(gap + half < 0, compared)


def promote(
    name: str,
    version: str,
    *,
    force: str | None = None,
    needed: PromotionConfig | None = None,
    environment: str | None = None,
) -> Decision:
    """Move the alias ``champion`` to a version, if the evidence holds.

    Args:
        name: of the registered model.
        version: its number.
        force: a reason for doing it without evidence; it is recorded.
        needed: what the evidence must cover; None: what the headline covers.
        environment: that was evaluated in, where it is a class of the user's own.

    Raises:
        UserError: no such version, or it has not been evaluated on ``test``.
    """
    with comparing():
        return _promote(name, version, force, needed or PromotionConfig(), environment)


def _promote(
    name: str, version: str, force: str | None, needed: PromotionConfig, environment: str | None
) -> Decision:
    registry.check_version(name, version)
    present = registry.version_of_alias(name, CHAMPION)
    if present == version:
        return Decision(True, f"{name} version {version} is the champion already")
    if force is not None:
        if not force.strip():
            raise UserError("--force: give the reason, it is recorded with the version")
        _make_champion(name, version, {"forced": force, "instead_of": present})
        return Decision(True, f"{name} version {version} is champion by force: {force}")
    if needed.suite == OFFLINE:
        if environment is not None:
            raise UserError("--environment: the suite offline has none; leave it out")
        return _promote_offline(name, version, present, needed)
    return _promote_by_rollouts(name, version, present, needed, environment)


def _promote_by_rollouts(
    name: str, version: str, present: str | None, needed: PromotionConfig, environment: str | None
) -> Decision:
    """The rule with success in the simulator."""
    from dynaflip.platform.evaluation.compare import paired_groups, shared_proprioception
    from dynaflip.platform.evaluation.encoders_under_test import TRAINED
    from dynaflip.platform.evaluation.report.rollout_tables import GIVEN
    from dynaflip.platform.evaluation.results import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION

    mine, theirs, rival = _evaluation(name, version, environment), None, BASELINE
    if present is not None:
        theirs, rival = _evaluation(name, present, environment), TRAINED
    theirs = theirs or mine
    given = shared_proprioception(mine, theirs)[0]
    groups = paired_groups(mine, theirs, proprioception=given, second_encoder=rival)
    by_name = {one.name: one for one in groups}
    for group in (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION):
        if group not in by_name:
            raise UserError(f"--version {version}: its evaluation has no episodes {group}")
    inside, outside = by_name[IN_DISTRIBUTION].difference, by_name[OUT_OF_DISTRIBUTION].difference
    _check_coverage(version, mine, theirs, by_name[OUT_OF_DISTRIBUTION], needed)
    against = f"the champion, version {present}" if present else "its own initialisation"
    compared = (
        f"against {against}, on test, {GIVEN[given]}: out of distribution {_points(outside)} "
        f"(must be above 0), in distribution {_points(inside)} "
        f"(must not be below 0, nor its mean below {-100 * MARGIN:.0f})"
    )
    if not (outside.low > 0 and inside.verdict() != "worse" and inside.value > -MARGIN):
        return Decision(False, f"{name} version {version} is not promoted: {compared}")
    evidence = _evidence(mine, present, groups, by_name[OUT_OF_DISTRIBUTION])
    _make_champion(name, version, evidence)
    return Decision(True, f"{name} version {version} is champion: {compared}")


def _promote_offline(
    name: str, version: str, present: str | None, needed: PromotionConfig
) -> Decision:
    """The rule with action error on held-out recordings, in sigma."""
    from dynaflip.platform.evaluation.encoders_under_test import TRAINED
    from dynaflip.platform.evaluation.offline_evidence import (
        check_offline_coverage,
        offline_evidence_of,
        paired_gains,
    )
    from dynaflip.platform.evaluation.results import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION

    mine, digest = offline_evidence_of(name, version)
    check_offline_coverage(version, mine, digest, needed)
    if present is None:
        theirs, rival, other = mine, BASELINE, None
        if mine.of(BASELINE).is_empty():
            raise UserError(
                f"--version {version}: {mine.run_name} lacks {BASELINE}, which a first champion "
                "is compared with; leave it among the baselines"
            )
    else:
        (theirs, other), rival = offline_evidence_of(name, present), TRAINED
    gains = paired_gains((mine, TRAINED, digest), (theirs, rival, other))
    for group in (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION):
        if group not in gains:
            raise UserError(f"--version {version}: its evaluation has no episodes {group}")
    inside, outside = gains[IN_DISTRIBUTION], gains[OUT_OF_DISTRIBUTION]
    against = f"the champion, version {present}" if present else "its own initialisation"
    compared = (
        f"against {against}, on test, action error lower by: perturbed {_sigma(outside)} (must be "
        f"above 0), as recorded {_sigma(inside)} (must not be below 0, nor its mean below "
        f"{-OFFLINE_MARGIN:g})"
    )
    if not (outside.low > 0 and inside.high >= 0 and inside.value > -OFFLINE_MARGIN):
        return Decision(False, f"{name} version {version} is not promoted: {compared}")
    asked = ("source", "head", "seeds", "image_px", "frames_per_episode", "heldout_share")
    evidence: dict[str, object] = {
        "run_id": mine.run_id,
        "test_look": mine.test_evaluation,
        "suite": OFFLINE,
        "protocol": {key: mine.settings.get(key) for key in asked},
        "conditions": sorted(f"{factor}-{level}" for factor, level in mine.conditions() if level),
        "factors": mine.factors,
        "instead_of": present,
        "differences": {group: [g.value, g.low, g.high] for group, g in gains.items()},
    }
    _make_champion(name, version, evidence)
    return Decision(True, f"{name} version {version} is champion: {compared}")


def _sigma(gain: Interval) -> str:
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] sigma"


def _check_coverage(
    version: str,
    mine: FinishedEvaluation,
    theirs: FinishedEvaluation,
    outside: PairedGroup,
    needed: PromotionConfig,
) -> None:
    """Refuse evidence on few tasks, factors or episodes.

    Each evaluation must cover the factors that there were when it was made, so a champion's
    evidence stays valid when a factor is added; compared are those that both could have.
    """
    from dynaflip.platform.evaluation.coverage import missing_coverage

    tasks = needed.tasks or mine.environment.tasks_to_promote_on()
    if needed.tasks:
        tasks = mine.environment.tasks_of(needed.tasks)
    asked = {"level": needed.level, "min_episodes": needed.episodes}
    missing = missing_coverage(
        adaptation=mine.settings["adaptation"],
        episodes=mine.settings["episodes"],
        tasks=outside.tasks,
        needed_tasks=tasks,
        conditions=outside.conditions,
        factors=needed.factors or set(mine.factors) & set(theirs.factors),
        **asked,
    )
    own = mine.episodes.select("factor", "level").unique().iter_rows()
    missing += [
        lack
        for lack in missing_coverage(
            adaptation="frozen",
            episodes=mine.settings["episodes"],
            tasks=outside.tasks,
            needed_tasks=tasks,
            conditions=set(own),
            factors=needed.factors or mine.factors,
            **asked,
        )
        if lack not in missing
    ]
    if missing:
        raise UserError(
            f"--version {version}: evidence covers what the headline does, with frozen encoders; "
            f"{mine.run_name}, and the champion's run where there is one, lack "
            f"{', '.join(missing)}: evaluate with --config jobs/configs/headline.yaml "
            f"--env {mine.environment.name} --tasks '{json.dumps(list(tasks))}'"
        )


def _evaluation(name: str, version: str, environment: str | None) -> FinishedEvaluation:
    """The finished evaluation on test of a version's own weights."""
    import polars as pl

    from dynaflip.platform.evaluation.coverage import MIN_POLICIES
    from dynaflip.platform.evaluation.encoders_under_test import TRAINED, weights_digest
    from dynaflip.platform.evaluation.rollout_run import read_evaluation

    tags = registry.version_tags(name, version)
    if RUN_TAG not in tags:
        raise UserError(
            f"--version {version}: {name} version {version} has not been evaluated on test; run "
            f"python jobs/evaluate.py --suite rollouts --config jobs/configs/headline.yaml "
            f"--encoder models:/{name}/{version}"
        )
    evaluation = read_evaluation(tags[RUN_TAG], environment)
    run_name = evaluation.run_name
    if evaluation.settings["split"] != "test":
        raise UserError(
            f"--version {version}: its tag {RUN_TAG} names {run_name}, an evaluation on "
            f"{evaluation.settings['split']}; a champion takes evidence on test"
        )
    # The run may be of several pretraining seeds: these weights count, and no others.
    digest = weights_digest(f"models:/{name}/{version}")
    own = (pl.col("arm") == TRAINED) & (pl.col("encoder_digest") == digest)
    policies = evaluation.episodes.filter(own)["seed"].unique()
    if policies.is_empty():
        raise UserError(
            f"--version {version}: {run_name} has evaluated other weights than those of "
            f"{name} version {version}; evaluate models:/{name}/{version} on test"
        )
    if len(policies) < MIN_POLICIES:
        raise UserError(
            f"--version {version}: {run_name} has {len(policies)} policy of its weights, "
            f"so policies' own spread is unknown; evaluate models:/{name}/{version} alone on "
            "test, with --seeds 3"
        )
    episodes = evaluation.episodes.filter(pl.col("seed").is_in(policies.implode()))
    return replace(evaluation, episodes=episodes)


def _evidence(
    mine: FinishedEvaluation,
    present: str | None,
    groups: list[PairedGroup],
    outside: PairedGroup,
) -> dict[str, object]:
    """What the decision rests on: the differences, and what was evaluated."""
    differences = {
        group.name: [group.difference.value, group.difference.low, group.difference.high]
        for group in groups
    }
    asked = ("episodes", "horizon_steps", "image_px", "adaptation", "head", "readout")
    return {
        "run_id": mine.run_id,
        "test_look": mine.test_evaluation,
        "protocol": {name: mine.settings.get(name) for name in asked},
        "tasks": outside.tasks,
        "conditions": [f"{factor}-{level}" for factor, level in outside.conditions],
        "factors": mine.factors,
        "instead_of": present,
        "differences": differences,
    }


def _make_champion(name: str, version: str, evidence: dict[str, object]) -> None:
    """Evidence first: a version that is champion has it."""
    from dynaflip.platform.provenance import git_commit

    evidence = {**evidence, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    evidence["git_commit"] = git_commit()
    registry.set_version_tags(name, version, {EVIDENCE_TAG: json.dumps(evidence)})
    registry.set_alias(name, CHAMPION, int(version))


def _points(rate: Rate) -> str:
    return f"{100 * rate.value:+.1f} [{100 * rate.low:+.1f}, {100 * rate.high:+.1f}] points"
