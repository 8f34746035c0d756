"""What an evaluation suite is: a settings class, and a run with these settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from dynaflip.platform.evaluation.outcome import Outcome


class Suite(ABC):
    """One way to evaluate an encoder; its docstring is the help of ``--suite NAME --help``.

    Its module is imported for ``--help``: torch, Ray and the simulator are imported in
    :meth:`run`.

    Attributes:
        settings: dataclass of the settings, with defaults; each is a flag of ``jobs/evaluate.py``.
    """

    settings: ClassVar[type]

    @abstractmethod
    def run(self, config: Any) -> Outcome:
        """Evaluate with these settings, log an MLflow run, and return what is shown.

        Args:
            config: an object of :attr:`settings`.

        Raises:
            UserError: a setting names what does not exist, or the evaluation cannot run here.
        """

    def find_finished(self, config: Any) -> Outcome | None:
        """A finished evaluation of the same weights with these settings, for ``--reuse``."""
        return None
