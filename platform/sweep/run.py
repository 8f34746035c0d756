"""Start or resume a sweep: search, confirmation, registration.

Each stage can be killed at any moment and resumed by the sweep's name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.files import file_lock
from dynaflip.platform import cluster, tracking
from dynaflip.platform.config_loader import config_digest, flatten, load_config, to_dict, to_yaml
from dynaflip.platform.passwords import masked
from dynaflip.platform.paths import default_triplets, input_path, new_run_name
from dynaflip.platform.sweep import frames as labelled
from dynaflip.platform.sweep import requests
from dynaflip.platform.sweep import study as studies
from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.config import (
    FLOW_PROBE,
    POLICY,
    SweepConfig,
    SweepJobConfig,
    pretrain_part,
)
from dynaflip.platform.sweep.flow_score import make_flow_frames
from dynaflip.platform.sweep.opened_sweep import Sweep
from dynaflip.platform.sweep.policy_score import policy_score
from dynaflip.platform.sweep.resources import Fit, fit_trials
from dynaflip.platform.sweep.space import Dimension, paper_values, parse_space
from dynaflip.platform.sweep.stages import confirm, search
from dynaflip.platform.sweep.study import SEARCH
from dynaflip.platform.sweep.sweep_folder import Facts
from dynaflip.platform.sweep.trial_score import needs_labelled_frames
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.pretrained import pin_models

if TYPE_CHECKING:
    from dynaflip.platform.training.data.index import TripletIndex

# Settings that may change when a sweep is resumed, because they change no trial.
CHANGEABLE = ("trials", "concurrent", "promote", "confirm", "confirm_seeds", "max_failures")

_INTERRUPTED = 130


def start(job: SweepJobConfig) -> str:
    """Run a new sweep; returns its name.

    Raises:
        UserError: a setting or resource does not fit; checked before the first trial.
    """
    space, base = parse_space(job.sweep.search), pretrain_part(job)
    papers = paper_values(space, base)
    name = job.sweep.name or new_run_name("sweep")
    studies.storage_of(job.sweep)  # refuses a password or a missing variable before any work
    if (folders.folder_of(name) / folders.FILE).exists():
        raise UserError(f"--name {name}: this sweep exists; continue it with --resume {name}")
    base = dataclasses.replace(base, triplets=input_path(base.triplets, default_triplets()))
    # The hub is asked once: all trials, also of later sessions, start from the same weights.
    base = dataclasses.replace(base, model=pin_models(base.model, log=print))
    job = dataclasses.replace(job, triplets=base.triplets, model=base.model)
    with sweep_lock(name):
        fit = join_cluster(base, job.sweep.concurrent)
        work = _prepare(base, name)
        if POLICY in job.sweep.objectives:
            policy_score(job.sweep.score.policy)  # checks and collects now, not after a trial
        score_digest = _make_score_data(job.sweep, name, work.index)
        folders.write_config(name, job)
        sweep = open_sweep(
            job,
            name,
            space,
            papers,
            data=(str(base.triplets), work.index.digest),
            score_digest=score_digest,
            length=(work.length.total_steps, work.length.steps_per_epoch),
        )
        _search_confirm_finish(sweep, work, fit)
    return name


def resume(name: str, typed: dict[str, Any]) -> str:
    """Resume a sweep that was stopped or killed; returns its name.

    Args:
        name: of the sweep.
        typed: dotted settings that were given beside the name; only those that change no
            trial (:data:`CHANGEABLE`) may differ from those of the first session.

    Raises:
        UserError: there is no such sweep, it runs already, or a setting differs.
    """
    facts = folders.read_facts(name, "--resume")
    saved = load_config(
        SweepJobConfig, str(folders.folder_of(name) / folders.CONFIG), {}, saved=True
    )
    job = with_changes(name, saved, typed)
    base = pretrain_part(job)
    with sweep_lock(name):
        _resume(job, base, facts)
    return name


def _resume(job: SweepJobConfig, base: PretrainConfig, facts: Facts) -> None:
    name = facts.name
    fit = join_cluster(base, job.sweep.concurrent)
    work = _prepare(base, name)
    if work.index.digest != facts.data_digest:
        raise UserError(
            f"--resume {name}: the triplets in {base.triplets} are not those it began with "
            f"(digest {work.index.digest}, then {facts.data_digest}); start a new sweep"
        )
    folders.write_config(name, job)  # with the changed settings
    parent = tracking.reopen_run(facts.run_id)
    parent.log_text(masked(to_yaml(job)), "config-resumed.yaml")  # params cannot be changed
    sweep = Sweep(job.sweep, base, parse_space(facts.space), facts, parent)
    _search_confirm_finish(sweep, work, fit)


def join_cluster(base: Any, concurrent: int) -> Fit:
    """Join or start Ray, and check that the trials fit its resources."""
    # A trial has about seven processes; Ray would warn of each beyond three a CPU.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    # An early stop needs the State API, which is the dashboard's.
    cluster.start_ray(dashboard=True)
    import ray

    from dynaflip.platform.training.backends import ray_train

    cluster.wait_for(ray_train.bundles_of(base, concurrent), base.train.wait_s)
    cpus = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    smallest = min((count for count in cpus if count), default=1.0)
    return fit_trials(base, concurrent, ray.cluster_resources(), smallest)


def open_sweep(
    job: SweepJobConfig,
    name: str,
    space: tuple[Dimension, ...],
    papers: dict[str, Any],
    *,
    data: tuple[str, str],
    score_digest: str,
    length: tuple[int, int],
) -> Sweep:
    """Create a sweep: its study with trial 0, its parent run, and at last ``sweep.json``.

    Args:
        job: the settings.
        name: of the sweep.
        space: what is searched.
        papers: values of trial 0.
        data: (folder, digest) of the triplets.
        score_digest: of all that decides a score.
        length: (steps of a trial, steps of an epoch).
    """
    base, config = pretrain_part(job), job.sweep
    digests = {
        "score_digest": score_digest,
        "data_digest": data[1],
        "base_digest": config_digest(dataclasses.replace(base, triplets=None)),
    }
    warm = studies.warm_trials(config, space, digests) if config.warm_start else []
    parent = tracking.open_run(
        config.experiment,
        name,
        {"kind": "sweep", "sweep": name, "triplets": data[0], **digests},
    )
    parent.log_settings(job)
    parent.log_dataset(Path(data[0]).name, data[1], data[0])
    facts = Facts(
        name=name,
        run_id=parent.run_id,
        space=[d.text() for d in space],
        papers=papers,
        total_steps=length[0],
        steps_per_epoch=length[1],
        storage=studies.storage_of(config),
        warm_trials=len(warm),
        **digests,
    )
    study = studies.new_study(facts, config.objectives)
    for key, value in {**digests, "space": facts.space}.items():
        study.set_user_attr(key, value)
    study.add_trials(warm)
    study.enqueue_trial(papers, user_attrs={"papers": True})
    folders.folder_of(name).mkdir(parents=True, exist_ok=True)
    folders.write_facts(facts)
    return Sweep(config, base, space, facts, parent)


def _make_score_data(config: SweepConfig, name: str, index: TripletIndex) -> str:
    """Write what trials are scored on, and the digest of all that decides a score.

    Scores with equal digests are comparable.
    """
    folder, parts = folders.folder_of(name), []
    if needs_labelled_frames(config):
        frames = labelled.make_frames(config.score, index.folder)
        print(
            f"score: probes on {len(frames)} frames, "
            f"{(frames.condition == labelled.TRAIN).sum()} of them to fit on"
        )
        labelled.write_frames(frames, folder / folders.FRAMES)
        parts.append(f"{labelled.digest_of(frames)}-{config.score.folds}")
    if FLOW_PROBE in config.objectives:
        flow = make_flow_frames(index, config.score.flow_probe, folder)
        held = flow.windows.heldout
        print(
            f"score: flow of {held.sum()} held-out windows, with {(~held).sum()} training windows "
            "to fit on"
        )
        parts.append(f"flow-{flow.digest()}-{config.score.flow_probe.folds}")
    if POLICY in config.objectives:
        parts.append(config_digest(config.score.policy.recipe()))
    return "-".join(parts)


def sweep_lock(name: str) -> contextlib.AbstractContextManager[None]:
    """The lock that a sweep's process holds, by which others know that it runs."""
    lock = folders.folder_of(name) / folders.LOCK
    return file_lock(lock, f"sweep {name} is running in another process")


def _search_confirm_finish(sweep: Sweep, work: Any, fit: Fit) -> None:
    from dynaflip.platform.sweep.finish import finish

    name = sweep.facts.name
    with saying_how_to_continue(name), tracking.ending(sweep.parent):
        requests.forget_stop(name)
        print(f"sweep {name} (MLflow run {sweep.facts.run_id}); continue it with --resume {name}")
        print(fit.text())
        began = time.monotonic()
        search(sweep, work, fit)
        print(f"search took {time.monotonic() - began:.0f} s")
        if not any(t.values for t in studies.own_trials(sweep.study(SEARCH))):
            raise UserError(f"sweep {name}: no trial finished; `show {name}` has the reasons")
        began = time.monotonic()
        confirmed = confirm(sweep, work, fit)
        if confirmed:
            print(f"confirmation took {time.monotonic() - began:.0f} s")
        finish(sweep, confirmed)


@contextlib.contextmanager
def saying_how_to_continue(name: str) -> Iterator[None]:
    """Make the command to continue the last line, where a user or a signal stops the sweep."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        requests.forget_stop(name)
        # As other programs end: 130 on Ctrl-C, 128 + its number on another signal.
        code = stop.code if isinstance(stop, SystemExit) else _INTERRUPTED
        print(
            f"stopped: {name}; continue with: {folders.resume_command(name)}",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(code) from None


def _prepare(base: PretrainConfig, name: str) -> Any:
    from dynaflip.platform.training.run import prepare

    return prepare(base, folders.folder_of(name) / "trials")


def with_changes(name: str, saved: SweepJobConfig, typed: dict[str, Any]) -> SweepJobConfig:
    """A sweep's saved settings with the changes that a resumed session may make.

    Raises:
        UserError: another setting differs from that of the first session.
    """
    before = flatten(to_dict(saved))
    free = {f"sweep.{key}" for key in CHANGEABLE}
    for key, value in typed.items():
        if key in free or key == "sweep.name" or before[key] == value:
            continue
        if key == "sweep.search":
            if parse_space(value) == parse_space(before[key]):
                continue
            raise UserError(
                f"--resume {name}: the sweep began with another space, "
                f"{' '.join(before[key])}; leave --search out, or start a new sweep"
            )
        raise UserError(
            f"--resume {name}: it began with {key} {before[key]}; leave it out, or start a new "
            f"sweep"
        )
    changes = {key.removeprefix("sweep."): typed[key] for key in typed if key in free}
    return dataclasses.replace(saved, sweep=dataclasses.replace(saved.sweep, **changes))
