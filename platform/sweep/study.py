"""The Optuna study of a sweep: its database, its sampler and its pruner."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from dynaflip.errors import UserError
from dynaflip.files import file_lock
from dynaflip.platform.passwords import from_environment, masked, refuse_password
from dynaflip.platform.paths import home
from dynaflip.platform.sweep.config import SweepConfig
from dynaflip.platform.sweep.space import Dimension
from dynaflip.platform.sweep.sweep_folder import Facts, default_storage, sweeps

SEARCH, CONFIRM = "search", "confirm"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_WARM = "warm_start"
_HOME = "home"  # user attribute: whose study it is, in a database that many may share

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
# A continued trial reports its last scores again; the study keeps the first ones.
warnings.filterwarnings("ignore", message="The reported value is ignored")
# Trial 0 has the paper's values whether or not the searched range holds them.
warnings.filterwarnings("ignore", message="Fixed parameter .* is out of range")


def study_name(name: str, stage: str) -> str:
    """Name of a stage's study in the database: the sweep's, or the sweep's with ``-confirm``."""
    return name if stage == SEARCH else f"{name}-{stage}"


def open_storage(storage: str) -> optuna.storages.RDBStorage:
    """Open the database of studies; SQLite is created if it is missing.

    Args:
        storage: its URL, or ``env:NAME`` for a variable that holds the URL.

    Raises:
        UserError: there is none at the URL, or its driver is not installed.
    """
    url = from_environment(storage, "sweep.storage")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    options: dict[str, Any] = {}
    if url.startswith("sqlite"):
        # Another sweep's write is waited for.
        options = {"connect_args": {"timeout": 60}}
    import sqlalchemy.exc

    try:
        # Two processes that make one SQLite file at the same time would get in each other's way.
        with file_lock(sweeps() / "studies.lock"):
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        hint = "install the database's driver, for Postgres `pip install 'dynaflip[postgres]'`"
        said = str(error).splitlines()[0]
        raise UserError(f"sweep.storage {masked(url)}: {hint} [{said}]") from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = masked(str(error).splitlines()[0])
        raise UserError(f"sweep.storage {masked(url)}: cannot be opened ({reason})") from None


def storage_of(config: SweepConfig) -> str:
    """The database asked for (a URL or ``env:NAME``), or the home's own.

    Raises:
        UserError: a password in the URL, or a variable that is not set.
    """
    if config.storage is None:
        return default_storage()
    refuse_password(config.storage, "sweep.storage")
    from_environment(config.storage, "sweep.storage")
    return config.storage


def open_study(facts: Facts, stage: str, objectives: Sequence[str]) -> optuna.Study:
    """A stage's study, created if it is missing; all objectives are minimised."""
    study = optuna.create_study(
        storage=open_storage(facts.storage),
        study_name=study_name(facts.name, stage),
        directions=["minimize"] * len(objectives),
        load_if_exists=True,
    )
    if _HOME not in study.user_attrs:
        study.set_user_attr(_HOME, str(home()))
    return study


def new_study(facts: Facts, objectives: Sequence[str]) -> optuna.Study:
    """The search's study, empty: a study that a killed start left under the name is deleted.

    Raises:
        UserError: the database has a study of that name that another home made.
    """
    storage = open_storage(facts.storage)
    left = {study_name(facts.name, stage) for stage in (SEARCH, CONFIRM)}
    for name in sorted(left & set(optuna.get_all_study_names(storage))):
        owner = optuna.load_study(study_name=name, storage=storage).user_attrs.get(_HOME)
        if owner != str(home()) and facts.storage != default_storage():
            raise UserError(
                f"--name {facts.name}: the database holds a study {name} that was made from "
                f"{owner or 'elsewhere'}; give another name"
            )
        optuna.delete_study(study_name=name, storage=storage)
    return open_study(facts, SEARCH, objectives)


def sampler(config: SweepConfig, trial: int) -> optuna.samplers.BaseSampler:
    """The sampler that suggests a trial's values.

    Seeded by the sweep's seed and the trial's number, so that a resumed sweep suggests the same
    values as an uninterrupted one: Optuna's samplers lose their state when a process dies.
    """
    mixed = int(np.random.SeedSequence([config.seed, trial]).generate_state(1)[0])
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=mixed)
    return optuna.samplers.TPESampler(
        seed=mixed,
        n_startup_trials=config.startup_trials,
        multivariate=True,
        constant_liar=True,  # trials that run at the same time get different values
    )


def score_steps(config: SweepConfig, total_steps: int) -> tuple[int, ...]:
    """Steps at which a trial is scored: the scheduler's rungs and the last step."""
    if config.scheduler == "asha":
        first = max(1, total_steps // config.reduction**2)
        rungs = [first, first * config.reduction]
    elif config.scheduler == "median":
        rungs = [total_steps * quarter // 4 for quarter in (1, 2, 3)]
    else:
        rungs = []
    return (*(step for step in rungs if 0 < step < total_steps), total_steps)


def pruner(config: SweepConfig, total_steps: int) -> optuna.pruners.BasePruner:
    """The pruner that stops trials early; its rungs are in the study, which survives a kill."""
    if config.scheduler == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=score_steps(config, total_steps)[0], reduction_factor=config.reduction
        )
    if config.scheduler == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=config.startup_trials)
    return optuna.pruners.NopPruner()


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The sweep's own trials in order, without those of a warm start."""
    return without_warm(study.get_trials(deepcopy=False))


def without_warm(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that were not copied from another sweep."""
    return [t for t in trials if _WARM not in t.user_attrs]


def number_of(trial: FrozenTrial | optuna.Trial, facts: Facts, stage: str) -> int:
    """A trial's number within its stage."""
    return trial.number - (facts.warm_trials if stage == SEARCH else 0)


def trial_name(stage: str, number: int) -> str:
    """Name of a trial: ``trial-003`` of the search, ``confirm-003`` of the confirmation."""
    return f"{'trial' if stage == SEARCH else stage}-{number:03d}"


def warm_trials(
    config: SweepConfig, space: Sequence[Dimension], digests: dict[str, str]
) -> list[FrozenTrial]:
    """Finished trials of another sweep, for a warm start.

    Args:
        config: its ``warm_start`` is the other sweep.
        space: of the new one.
        digests: of frames and settings, which make scores comparable.

    Raises:
        UserError: it does not exist, or its scores are not comparable.
    """
    assert config.warm_start is not None
    name = config.warm_start
    try:
        study = optuna.load_study(study_name=name, storage=open_storage(storage_of(config)))
    except KeyError:
        raise UserError(f"sweep.warm_start: the database has no study {name}") from None
    for key, value in digests.items():
        if study.user_attrs.get(key) != value:
            raise UserError(
                f"sweep.warm_start {name}: its scores are not comparable, {key} differs "
                f"({study.user_attrs.get(key)}, here {value})"
            )
    if len(study.directions) != len(config.objectives):
        raise UserError(
            f"sweep.warm_start {name}: has {len(study.directions)} objectives, here are "
            f"{len(config.objectives)}"
        )
    if study.user_attrs.get("space") != [d.text() for d in space]:
        raise UserError(
            f"sweep.warm_start {name}: searches {' '.join(study.user_attrs.get('space', []))}"
        )
    finished = study.get_trials(states=[TrialState.COMPLETE])
    return [
        optuna.trial.create_trial(
            state=TrialState.COMPLETE,
            params=t.params,
            distributions=t.distributions,
            values=t.values,
            user_attrs={_WARM: name},
        )
        for t in finished
    ]
