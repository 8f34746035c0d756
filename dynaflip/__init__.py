"""DynaFLIP: an image-only visual encoder that knows how the world changes under action.

All code is imported as ``dynaflip.<folder>.<module>``. In a checkout, and in a
Ray working directory, the folders (``losses/``, ``encoders/``, ``platform/``,
``eval/``, ``jobs/``) lie beside this package and not inside it, so the
repository's root is appended to this package's search path; in a wheel
setuptools puts them inside. Nothing is ever imported as ``platform`` or
``eval``: the first is a module of Python's standard library.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_here, "losses")):
    __path__.append(os.path.dirname(_here))

if TYPE_CHECKING:
    from dynaflip.encoders.image import ImageEncoder
    from dynaflip.eval.policies.kept_policy import KeptPolicy

__version__ = "0.2.0"


def load_encoder(
    uri: str | int | Path, *, device: str | None = None, backbone: str | None = None
) -> ImageEncoder:
    """Load a pretrained image encoder: one RGB image in, one feature vector out.

    A folder needs torch, numpy and safetensors alone, and transformers where its backbone is one
    of transformers. A registered version needs MLflow.

    Args:
        uri: an encoder's folder, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``,
            ``models:/NAME/latest``, or a version number of ``dynaflip-encoder``.
        device: ``cpu``, ``cuda``, …; the CPU by default.
        backbone: name of the backbone instead of the one that the folder names: a folder may have
            been downloaded, so ``class:MODULE:NAME`` is taken from here alone.

    Raises:
        ValueError: the URI names no encoder; the message names what was looked for.
    """
    text = str(uri).strip()
    folder = Path(text).expanduser().absolute()
    registered = text.isdigit() or "://" in text or text.startswith("models:/")
    if not registered and (folder / "config.json").is_file():
        from dynaflip.encoders.checkpoint import load_for_use

        return load_for_use(folder, text, device=device, backbone=backbone)
    try:
        import mlflow  # noqa: F401

        from dynaflip.platform.tracking import registry
    except ModuleNotFoundError as error:
        from dynaflip.errors import UserError

        if not registered:
            what = "holds no config.json" if folder.is_dir() else "does not exist"
            raise UserError(f"encoder {text}: folder {folder} {what}") from None
        raise UserError(
            f"encoder {text}: a registered version needs {error.name}, which is not installed "
            f"here; type `dynaflip export {text} FOLDER` where it is, and load that folder, or "
            f"pip install 'dynaflip[platform]'"
        ) from None
    return registry.load_encoder(text, device=device, backbone=backbone)


def load_policy(
    uri: str | Path,
    *,
    device: str | None = None,
    backbone: str | None = None,
    head: str | None = None,
    readout: str | None = None,
) -> KeptPolicy:
    """Load a fitted policy with its encoder: ``act(image, proprioception)`` gives actions.

    A folder needs torch, numpy and safetensors alone. A run's policy and a registered one need
    MLflow.

    Args:
        uri: a policy's folder, ``runs:/RUN/policies/NAME`` of an evaluation's run, or
            ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS`` of one that is registered.
        device: of the encoder: ``cpu``, ``cuda``, …; the CPU by default.
        backbone, head, readout: ``class:MODULE:NAME`` of your own class that the folder names: a
            folder may have been downloaded, so it does not choose which code runs.

    Raises:
        ValueError: the URI names no policy, or one that does not fit its encoder; the message
            names what was looked for.
    """
    from dynaflip.eval.policies.policy_loading import load_policy_folder

    text = str(uri).strip()
    own = {"device": device, "backbone": backbone, "head": head, "readout": readout}
    if not text.startswith(("runs:/", "models:/")):
        return load_policy_folder(text, **own)
    try:
        import mlflow  # noqa: F401

        from dynaflip.platform.tracking.policies import fetch_policy
    except ModuleNotFoundError as error:
        from dynaflip.errors import UserError

        raise UserError(
            f"policy {text}: a run's policy needs {error.name}, which is not installed here; type "
            f"`dynaflip export {text} FOLDER` where it is, and load that folder, or pip install "
            f"'dynaflip[platform]'"
        ) from None
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        return load_policy_folder(fetch_policy(text, Path(scratch) / "policy"), **own)


__all__ = ["__version__", "load_encoder", "load_policy"]
