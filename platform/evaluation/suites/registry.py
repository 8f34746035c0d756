"""The evaluation suites by name."""

from __future__ import annotations

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.suites.base import Suite
from dynaflip.plugins import ExtensionPoint

SUITES = ExtensionPoint(
    "suite",
    {
        "probes": "dynaflip.platform.evaluation.suites.probes:Probes",
        "rollouts": "dynaflip.platform.evaluation.suites.rollouts:Rollouts",
        "imitation": "dynaflip.platform.evaluation.suites.imitation:Imitation",
        "offline": "dynaflip.platform.evaluation.suites.offline:Offline",
    },
    contract="dynaflip.platform.evaluation.suites.base.Suite",
)

DEFAULT = "probes"


def open_suite(name: str) -> Suite:
    """The suite of a name, an installed package's name, or ``class:MODULE:NAME``.

    Raises:
        UserError: there is none, or it is no :class:`Suite`.
    """
    suite_class = SUITES.resolve(name, "--suite")
    if not (isinstance(suite_class, type) and issubclass(suite_class, Suite)):
        raise UserError(f"--suite: {name} is no subclass of {SUITES.contract}")
    return suite_class()
