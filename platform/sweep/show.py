"""``sweep.py show NAME``: the state of a sweep, from its folder and its studies."""

from __future__ import annotations

from dynaflip.platform import tracking
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.config import SweepJobConfig, pretrain_part
from dynaflip.platform.sweep.confirmation import confirmed_of
from dynaflip.platform.sweep.finish import report
from dynaflip.platform.sweep.space import parse_space
from dynaflip.platform.sweep.stages import Sweep, chosen_settings, space_of
from dynaflip.platform.sweep.study import CONFIRM, open_storage, study_name
from dynaflip.platform.sweep.table import summary, trial_table


def open_to_read(name: str, flag: str) -> Sweep:
    """Open a sweep for reading.

    Raises:
        UserError: there is no such sweep.
    """
    facts = folders.read_facts(name, flag)
    job = load_config(SweepJobConfig, str(folders.folder_of(name) / folders.CONFIG), {}, saved=True)
    parent = tracking.Run(facts.run_id, name, tracking.tracking_uri())
    return Sweep(job.sweep, pretrain_part(job), parse_space(facts.space), facts, parent)


def show(name: str) -> str:
    """Tables of the search and, once it has started, of the confirmation."""
    import optuna

    sweep = open_to_read(name, "show")
    known = optuna.get_all_study_names(open_storage(sweep.facts.storage))
    if study_name(name, CONFIRM) not in known:
        return report(sweep, [])
    study = sweep.study(CONFIRM)
    space, objectives = space_of(sweep, CONFIRM), sweep.config.objectives
    table = trial_table(study, sweep.facts, space, objectives, mark_best=False)
    confirmed = confirmed_of(study, chosen_settings(sweep))
    head = f"confirmation: {summary(study, sweep.facts, len(study.trials))}"
    return f"{report(sweep, confirmed)}\n\n{head}\n{table}"
