"""Extension points: one resolver from a name in the settings to the code that it stands for.

A name is looked up in three places, in this order:

1. the room's own table, e.g. ``losses/terms.py``: name → ``module:object``, one line a built-in,
   imported at its first use;
2. the entry points that installed packages declare in the group ``dynaflip.<kind>``
   (``[project.entry-points."dynaflip.backbone"]`` in their ``pyproject.toml``);
3. ``class:MODULE:NAME``, any importable object.

The third is for a user's own settings alone. A name that was read from a file which may have been
downloaded (an encoder's folder, a manifest, a registered model) is resolved with
``trusted=False``, which takes built-ins and installed packages only: whoever writes such a file
must not choose which code runs.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from dynaflip.errors import UserError
from dynaflip.source_digest import of_module

CLASS_PREFIX = "class:"

# Every kind of extension → where its extension point stands. `dynaflip plugins` lists them all.
EXTENSION_POINTS: dict[str, str] = {
    "source": "dynaflip.platform.triplets.sources:SOURCES",
    "tracker": "dynaflip.platform.triplets.flow:TRACKERS",
    "tracker_3d": "dynaflip.platform.triplets.flow:TRACKERS_3D",
    "depth_model": "dynaflip.platform.triplets.models:DEPTH_MODELS",
    "captioner": "dynaflip.platform.triplets.models:CAPTIONERS",
    "loss_term": "dynaflip.losses.terms:TERMS",
    "backbone": "dynaflip.encoders.backbones:BACKBONES",
    "factor": "dynaflip.eval.perturbations:FACTOR_TABLE",
    "policy_head": "dynaflip.eval.policies.registry:HEADS",
    "readout": "dynaflip.eval.policies.registry:READOUTS",
    "environment": "dynaflip.eval.envs.registry:ENVIRONMENTS",
    "suite": "dynaflip.platform.evaluation.suites.registry:SUITES",
}


@dataclass(frozen=True)
class Plugin:
    """One name of an extension point and where it comes from."""

    name: str
    target: str  # module:object
    origin: str  # "built in", or the package that brings it


@dataclass(frozen=True)
class ExtensionPoint:
    """All extensions of one kind.

    Args:
        kind: singular, as in the entry points' group ``dynaflip.<kind>``.
        table: the built-in ones, name → ``module:object``. A name keeps its place: where order
            matters (which format recognises a folder first) it is this table's.
        contract: what an extension must offer, as ``module.Class``, named in errors and lists.
        otherwise: what a name may be beside these, for lists; the caller resolves it.
    """

    kind: str
    table: Mapping[str, str]
    contract: str = ""
    otherwise: str = ""
    _loaded: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def group(self) -> str:
        """The entry points' group."""
        return f"dynaflip.{self.kind}"

    def plugins(self) -> Iterator[Plugin]:
        """The built-in ones in the table's order, then those of installed packages by name."""
        for name, target in self.table.items():
            yield Plugin(name, target, "built in")
        for name, entry in sorted(self._installed().items()):
            if name not in self.table:
                yield Plugin(name, entry.value, _origin(entry))

    def names(self) -> list[str]:
        """All names but ``class:``."""
        return [plugin.name for plugin in self.plugins()]

    def knows(self, name: str) -> bool:
        """True if a name is registered at this point, or has the form ``class:MODULE:NAME``."""
        return name in self.table or name.startswith(CLASS_PREFIX) or name in self._installed()

    def code_of(self, name: str) -> tuple[str, ...]:
        """Version of an extension's code, for digests; nothing where it is built in.

        The digest of the module's file for ``class:MODULE:NAME``, else the installed package with
        its version. A process reads a file once.

        Args:
            name: as of :meth:`resolve`.
        """
        if name in self.table:
            return ()
        if name.startswith(CLASS_PREFIX):
            return (_source_of(name.removeprefix(CLASS_PREFIX).rpartition(":")[0]),)
        return tuple(_origin(entry) for key, entry in self._installed().items() if key == name)

    def check(self, name: str, setting: str) -> None:
        """Refuse an unknown name without importing anything.

        Args:
            name: as the user gave it.
            setting: dotted name of the setting that holds it.

        Raises:
            UserError: it is not known; the message lists what is.
        """
        if name.startswith(CLASS_PREFIX):
            _parts(name, setting)
        elif not self.knows(name):
            raise UserError(f"{setting}: {self.unknown(name)}")

    def unknown(self, name: str) -> str:
        """The message for an unknown name: the known ones, and the nearest of them."""
        near = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        kind, other = self.kind.replace("_", " "), f"; {self.otherwise}" if self.otherwise else ""
        return f"there is no {kind} {name!r}{hint}; known: {', '.join(self.names())}, {OWN}{other}"

    def resolve(self, name: str, setting: str = "", *, trusted: bool = True) -> Any:
        """The object that a name stands for.

        Args:
            name: a built-in's, an installed package's, or ``class:MODULE:NAME``.
            setting: where the name was given, for the error's first word.
            trusted: whether the name is from the user's own settings; False for one that was
                read from a downloaded encoder, manifest or registered model.

        Raises:
            UserError: unknown, not importable, or ``class:`` where that is not allowed.
        """
        setting = setting or self.kind
        if name in self._loaded and (trusted or not name.startswith(CLASS_PREFIX)):
            return self._loaded[name]
        if name in self.table:
            extension = load_object(self.table[name])
        elif name.startswith(CLASS_PREFIX):
            if not trusted:
                raise UserError(
                    f"{setting}: {name!r} was read from a file and would run any code that file "
                    f"names; install a package that declares it as an entry point of "
                    f"{self.group} and use that name, or give it in your own settings"
                )
            module, attribute = _parts(name, setting)
            extension = _import(f"{module}:{attribute}", f"{setting}: cannot import {name}")
        elif (entry := self._installed().get(name)) is not None:
            extension = _import(entry.value, f"{setting}: {_origin(entry)} does not import")
        else:
            raise UserError(f"{setting}: {self.unknown(name)}")
        self._loaded[name] = extension
        return extension

    def _installed(self) -> dict[str, importlib.metadata.EntryPoint]:
        """Entry points of installed packages; reading those of all packages takes some 10 ms."""
        found = _entry_points(self.group, tuple(sys.path))
        return {entry.name: entry for entry in found}


@lru_cache(maxsize=256)
def _source_of(module: str) -> str:
    """The digest of a module's file, which a job that runs for long may see edited meanwhile."""
    return of_module(module)


@lru_cache(maxsize=64)
def _entry_points(group: str, _: tuple[str, ...]) -> importlib.metadata.EntryPoints:
    """Entry points of the installed packages; read once for each value of ``sys.path``."""
    return importlib.metadata.entry_points(group=group)


OWN = f"or {CLASS_PREFIX}MODULE:NAME"


def split_argument(name: str) -> tuple[str, str]:
    """``NAME:ARGUMENT`` as both parts; a plain name and ``class:MODULE:NAME`` have no argument."""
    if name.startswith(CLASS_PREFIX):
        return name, ""
    base, _, argument = name.partition(":")
    return base, argument


def check_name(
    point: ExtensionPoint, field: str, name: str, *, with_argument: tuple[str, ...] = ()
) -> None:
    """Validate a name, with its argument, in a settings dataclass; nothing is imported.

    Args:
        point: what the name is looked up in.
        field: of the dataclass, for the message.
        name: ``NAME``, ``NAME:ARGUMENT`` or ``class:MODULE:NAME``.
        with_argument: names that need an argument; other built-ins take none.

    Raises:
        ValueError: it is not known, or lacks its argument, or has one that it does not take.
    """
    base, argument = split_argument(name)
    try:
        point.check(base, field)
    except UserError as error:
        raise ValueError(str(error)) from None
    if base in with_argument and not argument.strip():
        raise ValueError(f"{field}: {base} needs an argument: {base}:ARGUMENT")
    if argument and base in point.table and base not in with_argument:
        raise ValueError(f"{field}: {base} takes no argument, but {name!r} gives one")


def load_object(target: str) -> Any:
    """The object of ``module:object``, imported now."""
    module, _, attribute = target.partition(":")
    value: Any = importlib.import_module(module)
    for part in attribute.split("."):
        value = getattr(value, part)
    return value


def listing(kinds: Collection[str] | None = None) -> Iterator[str]:
    """Lines that show every extension: its name, where it comes from, and its target.

    Args:
        kinds: to show; all by default.
    """
    for kind, point in sorted(extension_points().items()):
        if kinds is not None and kind not in kinds:
            continue
        plugins = list(point.plugins())
        names = max((len(plugin.name) for plugin in plugins), default=0)
        origins = max((len(plugin.origin) for plugin in plugins), default=0)
        contract = f", contract {point.contract}" if point.contract else ""
        yield f"{kind}: entry points {point.group}{contract}"
        for plugin in plugins:
            yield f"  {plugin.name:<{names}}  {plugin.origin:<{origins}}  {plugin.target}"
        if point.otherwise:
            yield f"  any other name: {point.otherwise}"


def extension_points() -> dict[str, ExtensionPoint]:
    """Every extension point there is, by kind; imports their tables' modules."""
    return {kind: load_object(target) for kind, target in EXTENSION_POINTS.items()}


def _parts(name: str, setting: str) -> tuple[str, str]:
    module, _, attribute = name.removeprefix(CLASS_PREFIX).rpartition(":")
    if not module or not attribute:
        raise UserError(f"{setting}: {name} must be {CLASS_PREFIX}MODULE:NAME")
    return module, attribute


def _import(target: str, failed: str) -> Any:
    try:
        return load_object(target)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{failed} ({error}){_remedy(target, error)}") from None


def _remedy(target: str, error: Exception) -> str:
    """Advice about a module that is not found, or an object that is not in it."""
    module, _, attribute = target.partition(":")
    if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
        return (
            f"; put the folder that holds {error.name} on PYTHONPATH, such as "
            "`export PYTHONPATH=$PWD`, or install it"
        )
    there = vars(sys.modules[module]) if module in sys.modules else {}
    near = difflib.get_close_matches(attribute, there, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _origin(entry: importlib.metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
