"""What an evaluation suite is: a settings class, and a run with these settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.outcome import Outcome

if TYPE_CHECKING:
    from dynaflip.platform.evaluation.report.tables import Section


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

    def dry_run(self, config: Any, *, gpu_images_per_s: float) -> list[Section]:
        """Tables of what :meth:`run` would do and how long it takes, without doing it.

        Args:
            config: an object of :attr:`settings`.
            gpu_images_per_s: assumed throughput of a GPU's encoder.

        Raises:
            UserError: the suite has no estimate.
        """
        raise UserError(f"--dry-run: {type(self).__name__.lower()} has no estimate")

    def find_finished(self, config: Any) -> Outcome | None:
        """A finished evaluation of the same weights with these settings, for ``--reuse``."""
        return None
