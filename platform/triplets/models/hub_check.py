"""Models of the user's, from a folder or a hub."""

from __future__ import annotations

from typing import Any

from dynaflip.errors import UserError


def check_model(setting: str, name: str, auto_class: Any, kind: str) -> None:
    """Refuse early what is neither a folder nor a hub id of a model of this kind.

    Args:
        setting: that names the model, for the message.
        name: folder or hub id.
        auto_class: of transformers; a model of the kind is one that it can load.
        kind: "depth model", say.

    Raises:
        UserError: says what was looked for.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{setting}{name} is neither a folder nor a reachable hub id ({reason})"
        ) from None
    if type(config) not in auto_class._model_mapping:
        raise UserError(f"{setting}{name} is a {config.model_type}, not a {kind}")
