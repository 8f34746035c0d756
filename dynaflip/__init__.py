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
from typing import TYPE_CHECKING, Any

_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_here, "losses")):
    __path__.append(os.path.dirname(_here))

if TYPE_CHECKING:
    from dynaflip.encoders.image import ImageEncoder

__version__ = "0.2.0"


def load_encoder(uri: str, **kwargs: Any) -> ImageEncoder:
    """Load a pretrained image encoder: one RGB image in, one feature vector out.

    Args:
        uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, a version number of
            ``dynaflip-encoder``, or an encoder's folder.
        **kwargs: passed on to :func:`dynaflip.platform.tracking.registry.load_encoder`
            (``device``).

    Raises:
        ValueError: the URI names no encoder; the message says what was looked for.
    """
    from dynaflip.platform.tracking import registry

    return registry.load_encoder(uri, **kwargs)


__all__ = ["__version__", "load_encoder"]
