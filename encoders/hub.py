"""The one place that reaches a hub: models of transformers by folder or hub id.

Every failure is one line that names the setting or the model and what to give instead. Weights
are read from safetensors alone: nothing is unpickled, and no code of a model's folder is run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from dynaflip.errors import UserError


def require_transformers(purpose: str) -> None:
    """Refuse early where transformers is not installed.

    Args:
        purpose: what needs it, for the message.

    Raises:
        UserError: it is missing.
    """
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            f"{purpose} needs transformers: pip install 'dynaflip[transformers]'"
        ) from None


def load_config(name: str) -> Any:
    """The configuration of a model by folder or hub id.

    Raises:
        UserError: not there, or not a transformers model.
    """
    require_transformers(f"model {name!r}")
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable(name, error) from None


def load_model(auto_class: Any, name: str, config: Any) -> nn.Module:
    """A pretrained model of one of transformers' Auto classes, in float32.

    Raises:
        UserError: weights missing or unreadable.
    """
    import torch
    from transformers.utils import logging

    # A bar for loading a local file is noise in a job's own progress.
    logging.disable_progress_bar()
    try:
        return auto_class.from_pretrained(
            name, config=config, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unreachable(name, error) from None


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a text model by folder or hub id.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model {name!r}: no tokenizer ({_first_line(error)})") from None


def processor_settings(name: str) -> dict[str, Any]:
    """``preprocessor_config.json`` of a model that can be reached; empty where it has none."""
    path = _file(name, "preprocessor_config.json")
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def licence_of(name: str) -> str:
    """The licence in the front matter of a model's README.md, or an empty string."""
    path = _file(name, "README.md")
    if path is None:
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    if not lines or lines[0] != "---":
        return ""
    for line in lines[1:]:
        if line == "---":
            break
        key, _, value = line.partition(":")
        if key == "license":
            return value.strip().strip("'\"")
    return ""


def check_model(setting: str, name: str, auto_class: Any, kind: str) -> None:
    """Refuse early what is neither a folder nor a hub id of a model of this kind.

    Args:
        setting: that names the model, for the message.
        name: folder or hub id.
        auto_class: of transformers; a model of the kind is one that it can load.
        kind: for the message, e.g. "depth model".

    Raises:
        UserError: the name, and why it does not do: nothing there, of another kind, or a folder
            whose weights are pickled.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}{name} is neither a folder nor a reachable hub id ({_first_line(error)})"
        ) from None
    if type(config) not in auto_class._model_mapping:
        raise UserError(f"{setting}{name} is a {config.model_type}, not a {kind}")
    folder = Path(name)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{setting}{name} has no weights as safetensors, and pickled weights can run code; "
            "load them where you trust them and write them with `model.save_pretrained(FOLDER)`"
        )


def _file(name: str, file: str) -> str | None:
    from transformers.utils import cached_file

    return cached_file(name, file, _raise_exceptions_for_missing_entries=False)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unreachable(name: str, error: Exception) -> UserError:
    kind = "folder" if os.path.isdir(name) else "hub id"
    return UserError(
        f"model {name!r}: this {kind} cannot be loaded ({_first_line(error)}); give a folder with "
        "config.json and weights, or a hub id while online"
    )
