"""Trials of a stored study, for those who only read: SQLite is read without SQLAlchemy.

Optuna opens a database through SQLAlchemy and Alembic, whose import alone takes a second; `show`
is to answer within one. Other databases, and schemas of other versions, are read by Optuna.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from dynaflip.platform.passwords import from_environment

_SQLITE = "sqlite:///"
_SCHEMA = 12  # of Optuna's tables
_TIMEOUT_S = 60.0  # another process's write is waited for
_VALUES = {"FINITE": None, "INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}


def read_trials(storage: str, study: str) -> list[FrozenTrial] | None:
    """All trials of a study, by number; None where the database has no such study.

    Args:
        storage: URL of the database, or ``env:NAME``.
        study: its name.

    Raises:
        UserError: the database cannot be opened.
    """
    url = from_environment(storage, "sweep.storage")
    path = Path(url.removeprefix(_SQLITE))
    if url.startswith(_SQLITE) and "?" not in url and path.is_file():
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_TIMEOUT_S)
        ) as database:
            if _schema(database) == _SCHEMA:
                return _read(database, study)
    return _read_by_optuna(storage, study)


def _read_by_optuna(storage: str, study: str) -> list[FrozenTrial] | None:
    import optuna

    from dynaflip.platform.sweep.study import open_storage

    opened = open_storage(storage)
    if study not in optuna.get_all_study_names(opened):
        return None
    return optuna.load_study(study_name=study, storage=opened).get_trials(deepcopy=False)


def _schema(database: sqlite3.Connection) -> int | None:
    try:
        row = database.execute("SELECT schema_version FROM version_info").fetchone()
    except sqlite3.OperationalError:  # no table: not a database of Optuna's
        return None
    return row[0] if row else None


def _read(database: sqlite3.Connection, study: str) -> list[FrozenTrial] | None:
    database.execute("BEGIN")  # all tables as they are at one moment
    row = database.execute("SELECT study_id FROM studies WHERE study_name = ?", (study,)).fetchone()
    if row is None:
        return None

    def of_trials(table: str, columns: str, order: str) -> dict[int, list[Any]]:
        """Trial's id → its rows of a table."""
        found: dict[int, list[Any]] = defaultdict(list)
        query = (
            f"SELECT trial_id, {columns} FROM {table} JOIN trials USING (trial_id) "
            f"WHERE study_id = ? ORDER BY {order}"
        )
        for trial_id, *values in database.execute(query, row):
            found[trial_id].append(values)
        return found

    attributes = "key, value_json"
    user = of_trials("trial_user_attributes", attributes, "trial_user_attribute_id")
    system = of_trials("trial_system_attributes", attributes, "trial_system_attribute_id")
    params = of_trials("trial_params", "param_name, param_value, distribution_json", "param_id")
    values = of_trials("trial_values", "value, value_type", "objective")
    steps = of_trials(
        "trial_intermediate_values", "step, intermediate_value, intermediate_value_type", "step"
    )
    found = []
    for trial_id, number, state, start, end in database.execute(
        "SELECT trial_id, number, state, datetime_start, datetime_complete FROM trials "
        "WHERE study_id = ? ORDER BY number",
        row,
    ):
        spaces = {name: json_to_distribution(text) for name, _, text in params[trial_id]}
        found.append(
            FrozenTrial(
                number=number,
                state=TrialState[state],
                value=None,
                values=[_number(*entry) for entry in values[trial_id]] or None,
                datetime_start=_time(start),
                datetime_complete=_time(end),
                params={
                    name: spaces[name].to_external_repr(value)
                    for name, value, _ in params[trial_id]
                },
                distributions=spaces,
                user_attrs={key: json.loads(text) for key, text in user[trial_id]},
                system_attrs={key: json.loads(text) for key, text in system[trial_id]},
                intermediate_values={
                    step: _number(value, kind) for step, value, kind in steps[trial_id]
                },
                trial_id=trial_id,
            )
        )
    return found


def _number(value: float | None, kind: str) -> float:
    special = _VALUES[kind]
    if special is not None:
        return special
    assert value is not None
    return value


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
