"""The end of a sweep: report and plots on the parent run, a registered version, the alias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import TrialState
from scipy import special

from dynaflip.platform import promotion, tracking
from dynaflip.platform.sweep import confirmation
from dynaflip.platform.sweep.config import SCORE_NAME, UNITS
from dynaflip.platform.sweep.confirmation import Confirmed
from dynaflip.platform.sweep.opened_sweep import Sweep
from dynaflip.platform.sweep.study import CONFIRM, SEARCH
from dynaflip.platform.sweep.trial_score import Errors, trial_score
from dynaflip.platform.tracking import registry


@dataclass(frozen=True)
class Winner:
    """The encoder that is registered: one of the best setting's."""

    setting: int
    name: str  # of the trial that trained it
    score: float  # of the setting: over seeds where it was confirmed
    runs: list[str]  # trials of the same setting with other seeds, itself among them


def finish(sweep: Sweep, confirmed: Sequence[Confirmed]) -> None:
    """Register the best setting's encoder, decide about the alias, and write the report."""
    from dynaflip.platform.sweep.importance import keep_importances
    from dynaflip.platform.sweep.page import Registered, log_report
    from dynaflip.platform.sweep.report import report_of

    keep_importances(sweep)
    report = report_of(sweep, confirmed, finished=True)
    print(f"\n{report.text()}\n")
    winner = winner_of(sweep, confirmed)
    model, objective = sweep.base.tracking.model_name, sweep.config.objectives[0]
    unit = UNITS[objective]
    with promotion.comparing():
        version = _registered(sweep, winner)
        decision = promotion.decide_candidate(
            model,
            version,
            policy=sweep.config.promote,
            confirmed=bool(confirmed),
            missing_seeds=confirmed[0].missing if confirmed else 0,
            gap_to=lambda present: _difference_to(sweep, winner, confirmed, present),
            unit=unit,
        )
    reason = f"{'yes' if decision.promoted else 'no'}: {decision.explanation}"
    tags = {"best_trial": winner.name, "registered_version": version, "promotion": reason}
    sweep.parent.set_tags(tags)
    sweep.parent.log_metrics({f"best/{SCORE_NAME[objective]}": winner.score}, 0)
    registered = Registered(model, version, winner.name, winner.score, unit, reason)
    print(f"registered models:/{model}/{version}: {registered.best()}")
    print(f"alias {promotion.CANDIDATE}: {reason}")
    path = log_report(report, registered)
    print(f"report: {path} (and on the sweep's MLflow run)")


def winner_of(sweep: Sweep, confirmed: Sequence[Confirmed]) -> Winner:
    """The best setting, and the one of its runs that is closest to its mean.

    Not its best run: choosing that would select for luck again.
    """
    if confirmed:
        best = confirmed[0]
        mean = best.score.value
        seed = min(best.scores, key=lambda s: abs(best.scores[s] - mean))
        return Winner(best.setting, best.names[seed], mean, list(best.names.values()))
    done = [t for t in sweep.trials(SEARCH) if t.state == TrialState.COMPLETE]
    trial = min(done, key=lambda t: t.values[0])
    name = trial.user_attrs["name"]
    return Winner(trial.number - sweep.facts.warm_trials, name, trial.values[0], [name])


def _registered(sweep: Sweep, winner: Winner) -> int:
    """The registered version of the winner's encoder; one that a killed session made is reused.

    It is looked up by its run, because users may reuse the name of a sweep.
    """
    stage = CONFIRM if winner.name.startswith(CONFIRM) else SEARCH
    trial = next(t for t in sweep.trials(stage) if t.user_attrs["name"] == winner.name)
    run = tracking.Run(trial.user_attrs["run_id"], winner.name, sweep.parent.uri)
    child = next(c for c in tracking.child_runs(sweep.parent) if c.run_id == run.run_id)
    version = registry.register(
        sweep.folder() / "trials" / winner.name / "encoder",
        run,
        name=sweep.base.tracking.model_name,
        tags={
            SCORE_NAME[sweep.config.objectives[0]]: f"{winner.score:.4f}",
            "score_digest": sweep.facts.score_digest,
            "data_digest": sweep.facts.data_digest,
            "config_digest": child.tags.get("config_digest", ""),
            "setting": f"trial-{winner.setting:03d}",
            "sweep": sweep.facts.name,
            "trial": winner.name,
        },
    )
    run.end("FINISHED")
    return version


def _difference_to(
    sweep: Sweep, winner: Winner, confirmed: Sequence[Confirmed], present: int
) -> tuple[float, float]:
    """Winner's mean error minus the candidate's on the same frames, and its 95 % half width.

    Both in the score's unit. Episodes or recordings are resampled; the candidate is one seed and
    the winner the mean of s seeds, which adds a standard deviation of σ √(1 + 1/s), with σ pooled
    over the confirmation.
    """
    from dynaflip.encoders.checkpoint import allowed_backbone, backbone_name, load_image_encoder

    score, objective = trial_score(sweep.config, sweep.folder()), sweep.config.objectives[0]
    trials = sweep.folder() / "trials"
    encoders = [trials / name / "encoder" for name in winner.runs]
    ours = [
        score.ranking_errors(load_image_encoder(folder, backbone=backbone_name(folder)), objective)
        for folder in encoders
    ]
    folder = registry.resolve(f"models:/{sweep.base.tracking.model_name}/{present}")
    # A class of the user's own is taken from the sweep's settings, never from the version.
    own = allowed_backbone(folder, sweep.base.model.image.name)
    theirs = score.ranking_errors(registry.load_encoder(str(folder), backbone=own), objective)
    return difference_with_noise(ours, theirs, *confirmation.seed_noise(confirmed))


def difference_with_noise(
    ours: Sequence[Errors], theirs: Errors, noise: float, freedom: int
) -> tuple[float, float]:
    """Difference of mean errors and its 95 % half width, in their unit.

    Args:
        ours: of s encoders that differ by their seeds.
        theirs: of the encoder that it is compared with, on the same frames.
        noise: standard deviation between seeds.
        freedom: degrees of freedom of that standard deviation.
    """
    gap = theirs.gap_of(ours)
    of_episodes = (gap.high - gap.low) / 2
    of_seeds = math.inf
    if freedom:
        of_seeds = float(special.stdtrit(freedom, 0.975)) * noise * math.sqrt(1 + 1 / len(ours))
    return gap.value, math.hypot(of_episodes, of_seeds)
