"""Which environments there are, by name. Imports no simulator.

A built-in environment is a file ``NAME_tasks.py`` in this folder that holds ``ENVIRONMENT``, an
:class:`~dynaflip.eval.envs.base.EnvironmentSpec`: dropping it here is all that registers it.
Others come from installed packages (entry points of the group ``dynaflip.environment``) or as
``class:MODULE:NAME``.
"""

from __future__ import annotations

import pkgutil

from dynaflip.errors import UserError
from dynaflip.eval import envs
from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.plugins import ExtensionPoint

_TASKS = "_tasks"

ENVIRONMENTS = ExtensionPoint(
    "environment",
    {
        module.name.removesuffix(_TASKS): f"{envs.__name__}.{module.name}:ENVIRONMENT"
        for module in pkgutil.iter_modules(envs.__path__)
        if module.name.endswith(_TASKS)
    },
    contract="dynaflip.eval.envs.base.EnvironmentSpec",
)


def environment(name: str, setting: str = "environment") -> EnvironmentSpec:
    """What is known of an environment, without importing its simulator.

    Raises:
        UserError: there is none of that name, or it is no :class:`EnvironmentSpec`.
    """
    spec = ENVIRONMENTS.resolve(name, setting)
    if not isinstance(spec, EnvironmentSpec):
        raise UserError(f"{setting}: {name} is a {type(spec).__name__}, not an EnvironmentSpec")
    return spec


def _default() -> str:
    marked = [name for name in ENVIRONMENTS.table if environment(name).default]
    assert len(marked) == 1, f"one built-in environment is the default, not {marked}"
    return marked[0]


# The environment of settings that name none.
DEFAULT_ENVIRONMENT = _default()
