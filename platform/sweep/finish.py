"""How a sweep ends: tables and plots on the parent run, a registered version, an alias or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import TrialState
from scipy import stats

from dynaflip.eval.intervals.cluster_bootstrap import paired_difference
from dynaflip.platform import promotion, tracking
from dynaflip.platform.sweep import confirmation, table
from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.confirmation import Confirmed
from dynaflip.platform.sweep.probe_score import FrameErrors, ProbeScore
from dynaflip.platform.sweep.stages import Sweep
from dynaflip.platform.sweep.study import CONFIRM, SEARCH, own_trials
from dynaflip.platform.tracking import registry


@dataclass(frozen=True)
class Winner:
    """What is registered: one trained encoder of the best setting."""

    setting: int
    name: str  # of the trial that trained it
    score_cm: float  # of the setting: over seeds where it was confirmed
    runs: list[str]  # trials of the same setting with other seeds, itself among them


def conclude(sweep: Sweep, confirmed: Sequence[Confirmed]) -> None:
    """Write the report, register the best setting's encoder, and move the alias or say why not."""
    from dynaflip.platform.sweep.plots import log_plots

    text = report(sweep, confirmed)
    print(f"\n{text}\n")
    sweep.parent.log_text(text, "table.txt")
    log_plots(sweep)
    winner = winner_of(sweep, confirmed)
    model = sweep.base.tracking.model_name
    with promotion.comparing():
        version = _registered(sweep, winner)
        decision = promotion.decide_candidate(
            model,
            version,
            policy=sweep.config.promote,
            confirmed=bool(confirmed),
            missing_seeds=confirmed[0].missing if confirmed else 0,
            gap_to=lambda present: _gap_to(sweep, winner, confirmed, present),
        )
    reason = f"{'yes' if decision.promoted else 'no'}: {decision.explanation}"
    tags = {"best_trial": winner.name, "registered_version": version, "promotion": reason}
    sweep.parent.set_tags(tags)
    sweep.parent.log_metrics({"best/score_cm": winner.score_cm}, 0)
    print(f"registered models:/{model}/{version}: {winner.name}, {winner.score_cm:.2f} cm")
    print(f"alias {promotion.CANDIDATE}: {reason}")


def report(sweep: Sweep, confirmed: Sequence[Confirmed]) -> str:
    """All tables of a sweep as text."""
    study, facts, objectives = sweep.study(SEARCH), sweep.facts, sweep.config.objectives
    parts = [
        f"search: {table.summary(study, facts, sweep.config.trials)}",
        table.trial_table(study, facts, sweep.space, objectives),
    ]
    if len(objectives) > 1:
        parts.append("* on the Pareto front")
        parts.append(f"confirmed and registered is what is best by the first one, {objectives[0]}")
    else:
        from dynaflip.platform.sweep.plots import importance_line

        parts.append(importance_line(study))
    if confirmed:
        rows = table.aligned(confirmation.confirmation_table(confirmed))
        parts += ["", "confirmation, with other seeds:", *rows, confirmation.verdict(confirmed)]
    return "\n".join(parts)


def winner_of(sweep: Sweep, confirmed: Sequence[Confirmed]) -> Winner:
    """The best setting, and of its runs the one nearest its mean.

    Not the best run: picking that would be another race, won by luck.
    """
    if confirmed:
        best = confirmed[0]
        mean = best.score_cm.value
        seed = min(best.scores_cm, key=lambda s: abs(best.scores_cm[s] - mean))
        return Winner(best.setting, best.names[seed], mean, list(best.names.values()))
    done = [t for t in own_trials(sweep.study(SEARCH)) if t.state == TrialState.COMPLETE]
    trial = min(done, key=lambda t: t.values[0])
    name = trial.user_attrs["name"]
    return Winner(trial.number - sweep.facts.warm_trials, name, trial.values[0], [name])


def _registered(sweep: Sweep, winner: Winner) -> int:
    """The version of the winner's encoder; the one there is where a killed session made it.

    By its run: names of sweeps are chosen by people, and come again.
    """
    study = sweep.study(CONFIRM if winner.name.startswith(CONFIRM) else SEARCH)
    trial = next(t for t in own_trials(study) if t.user_attrs["name"] == winner.name)
    run = tracking.Run(trial.user_attrs["run_id"], winner.name, sweep.parent.uri)
    child = next(c for c in tracking.child_runs(sweep.parent) if c.run_id == run.run_id)
    version = registry.register(
        sweep.folder() / "trials" / winner.name / "encoder",
        run,
        name=sweep.base.tracking.model_name,
        tags={
            "score_cm": f"{winner.score_cm:.4f}",
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


def _gap_to(
    sweep: Sweep, winner: Winner, confirmed: Sequence[Confirmed], present: int
) -> tuple[float, float]:
    """Winner's mean error less the present candidate's on the same frames, and its 95 % half width.

    Episodes are resampled; the candidate is one seed and the winner the mean of s, so that
    their seeds add σ √(1 + 1/s), with σ pooled over the confirmation.
    """
    from dynaflip.encoders.checkpoint import backbone_name, load_image_encoder

    settings = sweep.config.score
    score = ProbeScore(sweep.folder() / folders.FRAMES, settings.folds, settings.batch_size)
    trials = sweep.folder() / "trials"
    encoders = [trials / name / "encoder" for name in winner.runs]
    ours = [
        score.errors(load_image_encoder(folder, backbone=backbone_name(folder)))
        for folder in encoders
    ]
    theirs = score.errors(
        registry.load_encoder(f"models:/{sweep.base.tracking.model_name}/{present}")
    )
    return gap_with_noise(ours, theirs, *confirmation.seed_noise_cm(confirmed))


def gap_with_noise(
    ours: Sequence[FrameErrors], theirs: FrameErrors, noise_cm: float, freedom: int
) -> tuple[float, float]:
    """Difference of mean errors under perturbation and its 95 % half width, in cm.

    Args:
        ours: of s encoders that differ by their seeds.
        theirs: of the one encoder that is compared with, on the same frames.
        noise_cm: standard deviation between seeds.
        freedom: degrees of freedom behind it.
    """
    here = theirs.perturbed
    mean_cm = np.mean([errors.error_cm for errors in ours], axis=0)
    gap = paired_difference(mean_cm[here], theirs.error_cm[here], theirs.episode[here])
    of_episodes = (gap.high - gap.low) / 2
    of_seeds = math.inf
    if freedom:
        of_seeds = float(stats.t.ppf(0.975, freedom)) * noise_cm * math.sqrt(1 + 1 / len(ours))
    return gap.value, math.hypot(of_episodes, of_seeds)
