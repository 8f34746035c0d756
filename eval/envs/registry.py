"""Environments by name. Imports no simulator.

A built-in environment is a file ``NAME_tasks.py`` in this folder that holds ``ENVIRONMENT``, an
:class:`~dynaflip.eval.envs.base.EnvironmentSpec`: dropping it here is all that registers it.
Others come from installed packages (entry points of the group ``dynaflip.environment``), as
``class:MODULE:NAME``, an :class:`~dynaflip.eval.envs.base.EnvironmentSpec` or a class of
``gymnasium.Env``, or by a Gymnasium id, ``gym:ID``: see
:mod:`dynaflip.eval.envs.gymnasium_spec`.
"""

from __future__ import annotations

import pkgutil
import shlex
from dataclasses import replace
from typing import Any

from dynaflip.errors import UserError
from dynaflip.eval import envs
from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.plugins import CLASS_PREFIX, ExtensionPoint

_TASKS = "_tasks"
_GYMNASIUM = "gym:"

ENVIRONMENTS = ExtensionPoint(
    "environment",
    {
        module.name.removesuffix(_TASKS): f"{envs.__name__}.{module.name}:ENVIRONMENT"
        for module in pkgutil.iter_modules(envs.__path__)
        if module.name.endswith(_TASKS)
    },
    contract="dynaflip.eval.envs.base.EnvironmentSpec",
    otherwise=f"{_GYMNASIUM}ID, any Gymnasium environment that renders images",
)

# What was found of environments that are not built in, by name: (the object found, its spec).
_outside: dict[str, tuple[Any, EnvironmentSpec]] = {}


def environment(name: str, setting: str = "environment") -> EnvironmentSpec:
    """The description of an environment; a built-in one's simulator is not imported.

    Args:
        name: of the user's own settings: a built-in or installed one's, ``class:MODULE:NAME`` or
            ``gym:ID``, the latter two with options in brackets where they are Gymnasium's.
        setting: dotted name of the setting, for errors.

    Raises:
        UserError: there is none of that name, or it is no environment.
    """
    if name in ENVIRONMENTS.table:
        spec: EnvironmentSpec = ENVIRONMENTS.resolve(name, setting)
        return spec
    from dynaflip.eval.envs.gymnasium_spec import from_name, is_gymnasium_class, split_options

    base, options = split_options(name)
    found: Any
    if base.startswith(_GYMNASIUM):
        found = [word.strip() for word in base.removeprefix(_GYMNASIUM).split(",") if word.strip()]
        if not found:
            raise UserError(f"{setting}: {name} names no id; give {_GYMNASIUM}ID")
    else:
        found = ENVIRONMENTS.resolve(base, setting)
    known, spec_of_before = _outside.get(name, (None, None))
    if spec_of_before is not None and known == found:
        return spec_of_before
    if base.startswith(_GYMNASIUM) or is_gymnasium_class(found):
        made = from_name(name, found, options, setting)
    elif not isinstance(found, EnvironmentSpec):
        kind = f"a {type(found).__name__}"
        raise UserError(
            f"{setting}: {name} is {kind}, not an EnvironmentSpec or a class of gymnasium.Env"
        )
    elif options:
        raise UserError(f"{setting}: {base} is an EnvironmentSpec, which takes no options")
    else:
        made = replace(found, origin=(*found.origin, *_origin(base, found)))
    _outside[name] = found, made
    return made


def recorded_environment(stored: str, named: str | None, record: str) -> EnvironmentSpec:
    """The environment that a store's record names; only the user's word runs code of their own.

    Args:
        stored: the name in the record.
        named: what the user gave as ``--environment``; None: nothing.
        record: what the record is, for errors.

    Raises:
        UserError: the user named another one, or must name this one.
    """
    if named is not None and named != stored:
        raise UserError(f"--environment: {record} ran in {stored}, not in {named}")
    base = stored.partition("[")[0]
    module_of_id = base.startswith(_GYMNASIUM) and ":" in base.removeprefix(_GYMNASIUM)
    if named is None and (base.startswith(CLASS_PREFIX) or module_of_id):
        raise UserError(
            f"environment: {record} ran in {stored}, and a stored name must not choose which code "
            f"runs here; if it is yours, add --environment {shlex.quote(stored)}"
        )
    return environment(stored)


def _origin(name: str, spec: EnvironmentSpec) -> tuple[str, ...]:
    """The version of what is not built in: its package's, or its source's digest."""
    from dynaflip.source_digest import of_module

    if not name.startswith(CLASS_PREFIX):
        origins = {plugin.name: plugin.origin for plugin in ENVIRONMENTS.plugins()}
        return (origins[name],)
    made_in = spec.make.partition(":")[0] if isinstance(spec.make, str) else spec.make.__module__
    modules = dict.fromkeys((name.removeprefix(CLASS_PREFIX).rpartition(":")[0], made_in))
    own = [module for module in modules if not module.startswith("dynaflip.")]
    return tuple(of_module(module) for module in own)


def _default() -> str:
    marked = [name for name in ENVIRONMENTS.table if environment(name).default]
    assert len(marked) == 1, f"one built-in environment is the default, not {marked}"
    return marked[0]


# The environment of settings that name none.
DEFAULT_ENVIRONMENT = _default()
