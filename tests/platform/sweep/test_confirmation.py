"""What the confirmation says where not every seed came to something."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState, create_trial

from dynaflip.platform.sweep.confirmation import confirmation_table, confirmed_of


def test_a_setting_of_which_only_the_lucky_seed_survived_does_not_win() -> None:
    study = optuna.create_study()
    scores = {0: [5.0, 5.2, 5.4], 7: [4.9, None, None]}
    for setting, values in scores.items():
        for seed, value in enumerate(values):
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            attributes = {"setting": setting, "seed": seed, "name": f"confirm-{setting}-{seed}"}
            study.add_trial(create_trial(state=state, value=value, user_attrs=attributes))
    found = confirmed_of(study.get_trials(), [0, 7])
    assert [(c.setting, c.missing) for c in found] == [(0, 0), (7, 2)]
    assert confirmation_table(found)[-1][:2] == ["trial-007", "1 of 3"]
