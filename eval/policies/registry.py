"""Policy heads and read-outs by name. Imports torch only when one is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.plugins import ExtensionPoint

if TYPE_CHECKING:
    from dynaflip.eval.policies.base import PolicyHead
    from dynaflip.eval.policies.readouts.base import ReadOut

HEADS = ExtensionPoint(
    "policy_head",
    {
        "behaviour_cloning": "dynaflip.eval.policies.behaviour_cloning:HEAD",
        "diffusion": "dynaflip.eval.policies.diffusion:HEAD",
    },
    contract="dynaflip.eval.policies.base.PolicyHead",
)

READOUTS = ExtensionPoint(
    "readout",
    {
        "pooled": "dynaflip.eval.policies.readouts.base:POOLED_READOUT",
        "attentive": "dynaflip.eval.policies.readouts.attentive:READOUT",
        "spatial_softmax": "dynaflip.eval.policies.readouts.spatial_softmax:READOUT",
    },
    contract="dynaflip.eval.policies.readouts.base.ReadOut",
)


def code_of_policy(head: str, readout: str) -> tuple[str, ...]:
    """Versions of a head and a read-out that are not built in, for digests."""
    return (*HEADS.code_of(head), *READOUTS.code_of(readout))


def policy_head(name: str, setting: str = "head") -> PolicyHead:
    """The head of a name.

    Raises:
        UserError: there is none, or it is no :class:`~dynaflip.eval.policies.base.PolicyHead`.
    """
    from dynaflip.eval.policies.base import PolicyHead

    head = HEADS.resolve(name, setting)
    if not isinstance(head, PolicyHead):
        raise UserError(f"{setting}: {name} is a {type(head).__name__}, not a PolicyHead")
    return head


def head_settings(name: str, values: Mapping[str, Any], setting: str = "head_settings") -> Any:
    """The settings of a head from plain values, of its own dataclass.

    Args:
        name: of the head.
        values: field → value; what is missing has its default.
        setting: dotted name of the setting that holds them.

    Raises:
        UserError: an unknown field, or a value that the dataclass refuses.
    """
    return _settings(policy_head(name).settings, f"head {name}", values, setting)


def read_out(name: str, setting: str = "readout") -> ReadOut:
    """The read-out of a name.

    Raises:
        UserError: there is none, or it is no
            :class:`~dynaflip.eval.policies.readouts.base.ReadOut`.
    """
    from dynaflip.eval.policies.readouts.base import ReadOut

    readout = READOUTS.resolve(name, setting)
    if not isinstance(readout, ReadOut):
        raise UserError(f"{setting}: {name} is a {type(readout).__name__}, not a ReadOut")
    return readout


def readout_settings(
    name: str, values: Mapping[str, Any], setting: str = "readout_settings"
) -> Any:
    """The settings of a read-out from plain values; as :func:`head_settings`."""
    return _settings(read_out(name).settings, f"read-out {name}", values, setting)


def check_reads(head: str, readout: str) -> None:
    """Refuse a head that cannot train a read-out.

    Raises:
        UserError: it is given one.
    """
    if read_out(readout).build is not None and not policy_head(head).trains_readout:
        raise UserError(
            f"readout: head {head} reads pooled features alone (its PolicyHead does not say "
            f"trains_readout), so it cannot be given {readout}"
        )


def _settings(kind: type[Any], owner: str, values: Mapping[str, Any], setting: str) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise UserError(
                f"{setting}.{key}: {owner} has no such setting; it has: "
                f"{', '.join(known) or 'none'}"
            )
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{setting}: {error}") from None
