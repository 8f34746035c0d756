"""What a champion's evidence must cover. Imports neither torch nor Ray: ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynaflip.checks import at_least, one_of, within

ROLLOUTS, OFFLINE = "rollouts", "offline"


@dataclass(frozen=True)
class PromotionConfig:
    """The evaluation on test that a champion takes."""

    suite: str = ROLLOUTS
    """The suite whose evidence counts: rollouts, or offline where there is no simulator."""

    tasks: tuple[str, ...] = ()
    """Tasks that must have been rolled out; empty takes those that the environment asks for."""

    factors: tuple[str, ...] = ()
    """Factors that must have been perturbed one at a time; empty takes all that there were when
    the evaluation was made."""

    level: int = 3
    """Strength at which they must have been perturbed, 1…5."""

    episodes: int = 20
    """Fewest episodes: per task, condition and policy in rollouts, or held out in offline."""

    def __post_init__(self) -> None:
        one_of(self, (ROLLOUTS, OFFLINE), "suite")
        within(self, 1, 5, "level")
        at_least(self, 2, "episodes")
        if self.suite == OFFLINE and self.tasks:
            raise ValueError("tasks: the suite offline has none; leave it out")


@dataclass(frozen=True)
class PromoteConfig:
    """Settings of ``jobs/promote.py``."""

    promotion: PromotionConfig = field(default_factory=PromotionConfig)
