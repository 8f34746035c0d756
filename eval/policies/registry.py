"""Which policy heads there are, by name. Imports torch only when a head is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.plugins import ExtensionPoint

if TYPE_CHECKING:
    from dynaflip.eval.policies.base import PolicyHead

HEADS = ExtensionPoint(
    "policy_head",
    {
        "behaviour_cloning": "dynaflip.eval.policies.behaviour_cloning:HEAD",
        "diffusion": "dynaflip.eval.policies.diffusion:HEAD",
    },
    contract="dynaflip.eval.policies.base.PolicyHead",
)


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
    kind = policy_head(name).settings
    known = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise UserError(
                f"{setting}.{key}: head {name} has no such setting; it has: {', '.join(known)}"
            )
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{setting}: {error}") from None
