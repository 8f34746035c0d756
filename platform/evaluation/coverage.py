"""What an evaluation must cover before a champion may be promoted on it."""

from __future__ import annotations

from collections.abc import Collection

# As the headline's: every factor at its level, as many episodes per job.
LEVEL = 3
MIN_EPISODES = 20
# One policy does not show how much another one of the same weights would differ.
MIN_POLICIES = 2


def missing_coverage(
    *,
    adaptation: str,
    episodes: int,
    tasks: Collection[str],
    needed_tasks: Collection[str],
    conditions: Collection[tuple[str, int]],
    factors: Collection[str],
    level: int = LEVEL,
    min_episodes: int = MIN_EPISODES,
) -> list[str]:
    """Tasks, factors and episodes that an evaluation lacks, in words; empty where it covers enough.

    Args:
        adaptation: of the encoder in the policies.
        episodes: per job.
        tasks: that were evaluated.
        needed_tasks: that must be among them: the environment's for promotion.
        conditions: (factor, level) that were evaluated.
        factors: that must be among the conditions: those that there were at the time.
        level: at which they must have been perturbed.
        min_episodes: fewest per job.
    """
    missing = [] if adaptation == "frozen" else ["frozen encoders"]
    missing += sorted(set(needed_tasks) - set(tasks))
    missing += [f"{name}-{level}" for name in sorted(factors) if (name, level) not in conditions]
    if episodes < min_episodes:
        missing.append(f"{min_episodes} episodes per job")
    return missing
