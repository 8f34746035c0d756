"""What an evaluation must cover before a champion may rest on it."""

from __future__ import annotations

from collections.abc import Collection

from dynaflip.eval.envs.metaworld_task_sets import tasks_of
from dynaflip.eval.envs.metaworld_tasks import KNOWN_TASKS
from dynaflip.eval.perturbations import FACTORS

# The headline's: its tasks, every factor at its level, as many episodes a cell.
TASKS = frozenset(tasks_of(("r3m5",), KNOWN_TASKS))
LEVEL = 3
MIN_EPISODES = 20
# Of one policy nothing says how much another of the same weights would differ.
MIN_POLICIES = 2


def lacking(
    *,
    adaptation: str,
    episodes: int,
    tasks: Collection[str],
    conditions: Collection[tuple[str, int]],
) -> list[str]:
    """What is missing, in words; empty where evidence is not looked for where it is easily found.

    Args:
        adaptation: of the encoder in the policies.
        episodes: of a cell.
        tasks: that were evaluated.
        conditions: (factor, level) that were evaluated.
    """
    missing = [] if adaptation == "frozen" else ["frozen encoders"]
    missing += sorted(TASKS - set(tasks))
    missing += [f"{kind}-{LEVEL}" for kind in sorted(FACTORS) if (kind, LEVEL) not in conditions]
    if episodes < MIN_EPISODES:
        missing.append(f"{MIN_EPISODES} episodes a cell")
    return missing
