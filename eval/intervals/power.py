"""Power of a design: which difference it tells apart, and how many seeds a smaller one takes.

Computed from the variance that was measured, so it is an estimate itself; with three seeds it
may be off by a factor of two. Shapes: S seeds, T tasks, C conditions, E episodes (initial states).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dynaflip.eval.intervals.hierarchical_bootstrap import LEVEL, satterthwaite, variance_parts

POWER = 0.8  # of finding a difference of this size
_OF_USE = 0.2  # asked about where a design tells nothing apart
MOST_SEEDS, MOST_EPISODES = 200, 2000


@dataclass(frozen=True)
class Design:
    """A paired comparison's size and the variance of its mean by source, as measured."""

    seeds: int
    tasks: int
    episodes: int  # initial states of a task
    by_seed: float  # variance of the mean that seeds make; 0 with one seed, where it is unknown
    by_state: float  # that initial states make

    def detectable(self, seeds: int | None = None, episodes: int | None = None) -> float:
        """The difference found with probability 0.8 by an interval of 95 %.

        Args:
            seeds, episodes: of another design, by default of this one.
        """
        seeds, episodes = seeds or self.seeds, episodes or self.episodes
        parts = []
        if self.seeds > 1:
            parts.append((self.by_seed * self.seeds / seeds, seeds - 1))
        if self.episodes > 1:
            by_state = self.by_state * self.episodes / episodes
            parts.append((by_state, self.tasks * (episodes - 1)))
        total = sum(variance for variance, _ in parts)
        if total == 0:
            return 0.0
        freedom = satterthwaite(parts)
        quantiles = stats.t.ppf((1 + LEVEL) / 2, freedom) + stats.t.ppf(POWER, freedom)
        return float(quantiles * np.sqrt(total))

    def sizes_for(self, difference: float) -> tuple[int, int] | None:
        """(seeds, episodes) that tell a difference apart with the fewest episodes in all.

        Episodes are doubled, seeds counted; with one seed its number stays. None where nothing
        does within 200 seeds and 2000 episodes.
        """
        found = []
        episodes = self.episodes
        most = MOST_SEEDS if self.seeds > 1 else 1
        while episodes <= MOST_EPISODES:
            counts = range(self.seeds, most + 1)
            # More seeds always tell smaller differences apart.
            first = bisect.bisect_left(
                counts, -difference, key=lambda count: -self.detectable(count, episodes)
            )
            if first < len(counts):
                found.append((counts[first], episodes))
            episodes *= 2
        return min(found, key=lambda sizes: sizes[0] * sizes[1], default=None)


def design_of(difference: np.ndarray) -> Design:
    """The design behind paired differences (S, T, C, E), after − before."""
    by_state = np.asarray(difference, np.float64).mean(axis=2)
    parts = variance_parts(by_state)
    seeds, tasks, episodes = by_state.shape
    by_seed = parts.pop(0)[0] if seeds > 1 else 0.0
    return Design(seeds, tasks, episodes, by_seed, parts[0][0] if parts else 0.0)


def power_line(difference: np.ndarray) -> str | None:
    """``3 policies and 20 initial states a task tell 8 points apart; 4 take 12 policies``.

    Args:
        difference: paired differences of successes, (S, T, C, E).

    Returns:
        The sentence, or None where the differences do not vary, so that nothing can be said.
    """
    design = design_of(difference)
    now = design.detectable()
    if now == 0:
        return None
    half = now / 2 if now < 1 else _OF_USE
    policies = f"{design.seeds} polic{'y' if design.seeds == 1 else 'ies'}"
    told = f"{_points(now)} points" if now < 1 else "no difference"
    wanted = _points(half) if now < 1 else f"{_points(half)} points"
    line = (
        f"{policies} and {design.episodes} initial states a task tell {told} apart "
        f"({POWER:.0%} power)"
    )
    needed = design.sizes_for(half)
    if needed is None:
        line += f"; {wanted} are out of reach"
    else:
        seeds, episodes = needed
        more = [f"{seeds} policies"] if seeds > design.seeds else []
        more += [f"{episodes} initial states"] if episodes > design.episodes else []
        line += f"; {wanted} take {' and '.join(more)}"
    if design.seeds == 1:
        line += "; how much another pretraining would differ is not in it"
    return line


def _points(share: float) -> str:
    points = 100 * share
    return f"{points:.0f}" if points >= 2 else f"{points:.1f}"
