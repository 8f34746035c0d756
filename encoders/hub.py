"""The one place that reaches a hub: models of transformers by folder or hub id.

A hub id may name a revision: ``facebook/dinov2-base@REVISION``, a commit, tag or branch. Jobs ask
the hub once for the commit of an id without one (:func:`pinned`), so that all workers, and the run
when it is resumed, take the same weights. A machine's first process downloads a pinned model, the
others wait and read the local cache; none of them asks the hub again.

Every failure is one line that names the setting or the model and what to give instead. Weights
are read from safetensors alone: nothing is unpickled, and no code of a model's folder is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.files import file_lock, write_file

if TYPE_CHECKING:
    from torch import nn

_COMMIT = re.compile(r"[0-9a-f]{40}")
# Files of a repository that a model is loaded from; copies of its weights in other formats stay.
_WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md")
# Files of a folder that decide what a model computes.
_DECIDING = (".safetensors", ".json", ".txt", ".model")
_CHUNK_BYTES = 1 << 22


def split_revision(name: str) -> tuple[str, str | None]:
    """Hub id and revision of ``OWNER/NAME@REVISION``; a folder has none, whatever its name."""
    if os.path.isdir(name):
        return name, None
    base, _, revision = name.partition("@")
    return base, revision or None


def pinned(name: str) -> str:
    """``OWNER/NAME@COMMIT`` of a hub id; a folder, and an id with a commit, as they are.

    The hub is asked for the commit; where it cannot be reached, the local cache is.

    Raises:
        UserError: neither knows the model.
    """
    base, revision = split_revision(name)
    if os.path.isdir(name) or (revision and _COMMIT.fullmatch(revision)):
        return name
    require_transformers(f"model {name!r}")
    try:
        commit = _hub_file(base, revision, "config.json").parent.name
    except (OSError, ValueError) as error:
        raise _unreachable(name, error) from None
    return f"{base}@{commit}"


def local_folder(name: str) -> str:
    """The folder of a model's files on this machine; of a hub id they are downloaded once.

    Raises:
        UserError: not there and not to be had.
    """
    if os.path.isdir(name):
        return name
    base, commit = split_revision(pinned(name))
    try:
        with _alone(base):
            folder = _complete(base, commit)
            return str(folder or _download(base, commit))
    except (OSError, ValueError) as error:
        raise _unreachable(name, error) from None


def identity(name: str, digest_of: Callable[[Path], str] | None = None) -> str:
    """Identity of a model's weights: a folder's content, or a hub id's commit.

    Args:
        name: folder or hub id.
        digest_of: of a folder; :func:`content_digest`, or what remembers it.

    Raises:
        UserError: an id without a commit, and the hub does not know it.
    """
    if os.path.isdir(name):
        return f"content {(digest_of or content_digest)(Path(name))}"
    return f"commit {split_revision(pinned(name))[1]}"


def content_digest(folder: Path) -> str:
    """Digest of a model folder's weights, settings and vocabulary: it reads them all."""
    digest = hashlib.blake2b(digest_size=16)
    for path in deciding_files(folder):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def deciding_files(folder: Path) -> list[Path]:
    """The files of a folder that decide what its model computes."""
    return sorted(p for p in folder.iterdir() if p.suffix in _DECIDING and p.is_file())


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
        return AutoConfig.from_pretrained(_config_folder(name))
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable(name, error) from None


def load_model(auto_class: Any, name: str, config: Any) -> nn.Module:
    """A pretrained model of one of transformers' Auto classes, in float32.

    Raises:
        UserError: weights missing or unreadable.
    """
    return load_model_and_unfilled(auto_class, name, config)[0]


def load_model_and_unfilled(auto_class: Any, name: str, config: Any) -> tuple[nn.Module, list[str]]:
    """As :func:`load_model`, with the names of weights that the files do not hold.

    These are random: a caller whose result depends on one of them must refuse the model.
    """
    import torch
    from transformers.utils import logging

    # A bar for loading a local file is noise in a job's own progress.
    logging.disable_progress_bar()
    try:
        model, found = auto_class.from_pretrained(
            local_folder(name),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
        return model, sorted(found["missing_keys"])
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unreachable(name, error) from None


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a text model by folder or hub id.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(local_folder(name))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model {name!r}: no tokenizer ({_first_line(error)})") from None


def processor_settings(name: str) -> dict[str, Any]:
    """``preprocessor_config.json`` of a model that can be reached; empty where it has none."""
    path = _file(name, "preprocessor_config.json")
    return {} if path is None else json.loads(path.read_text(encoding="utf-8"))


def licence_of(name: str) -> str:
    """The licence in the front matter of a model's README.md, or an empty string."""
    path = _file(name, "README.md")
    if path is None:
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0] != "---":
        return ""
    said: dict[str, str] = {}
    for line in lines[1:]:
        if line == "---":
            break
        key, _, value = line.partition(":")
        said[key] = value.strip().strip("'\"")
    licence = said.get("license", "")
    return said.get("license_name") or licence if licence == "other" else licence


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
        config = AutoConfig.from_pretrained(_config_folder(name))
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


def _config_folder(name: str) -> str:
    """A folder with a model's config.json, without its weights.

    Raises:
        OSError, ValueError: it cannot be reached.
    """
    if os.path.isdir(name):
        return name
    return str(_hub_file(*split_revision(name), "config.json").parent)


def _file(name: str, file: str) -> Path | None:
    """A file of a model on this machine; None where the model has none."""
    base, revision = split_revision(name)
    folder = Path(name) if os.path.isdir(name) else _complete(base, revision)
    if folder is not None:
        return folder / file if (folder / file).is_file() else None
    try:
        return _hub_file(base, revision, file)
    except (OSError, ValueError):
        return None


def _hub_file(base: str, revision: str | None, file: str) -> Path:
    """A file of a repository in the local cache; downloaded where it is not there.

    Of a commit that the cache has, the hub is not asked.
    """
    from huggingface_hub import hf_hub_download

    with _alone(base), _no_lines_of_retries():
        return Path(hf_hub_download(base, file, revision=revision))


@contextlib.contextmanager
def _no_lines_of_retries() -> Iterator[None]:
    """Keep the hub's warning before each retry out of the output: the failure is one line."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _download(base: str, commit: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        folder = snapshot_download(
            base, revision=commit, allow_patterns=list(_WANTED), ignore_patterns=["*/*"]
        )
    except (OSError, ValueError):
        # Offline, with a cache that another program filled: what is missing is missed at loading.
        return Path(hf_hub_download(base, "config.json", revision=commit)).parent
    names = [path.name for path in Path(folder).iterdir()]
    with contextlib.suppress(OSError):  # a cache that cannot be written
        write_file(_marker(base, commit), json.dumps(names))
    return Path(folder)


def _complete(base: str, commit: str | None) -> Path | None:
    """The folder of a commit in the local cache, where all of its files were downloaded."""
    if commit is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        names = json.loads(_marker(base, commit).read_text())
        config = try_to_load_from_cache(base, "config.json", revision=commit)
    except (OSError, ValueError):
        return None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if all((folder / name).exists() for name in names) else None


def _marker(base: str, commit: str | None) -> Path:
    return _own_folder() / f"{base.replace('/', '--')}--{commit}.json"


def _own_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ".dynaflip"


@contextlib.contextmanager
def _alone(base: str) -> Iterator[None]:
    """One process of this machine at a time: the first downloads, the others find its files."""
    lock = _own_folder() / f"{base.replace('/', '--')}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError:  # a cache that cannot be written holds all that there will be
        yield
        return
    with file_lock(lock):
        yield


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unreachable(name: str, error: Exception) -> UserError:
    kind = "folder" if os.path.isdir(name) else "hub id"
    return UserError(
        f"model {name!r}: this {kind} cannot be loaded ({_first_line(error)}); give a folder with "
        "config.json and weights, or a hub id while online"
    )
