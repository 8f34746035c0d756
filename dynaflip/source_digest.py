"""Version of code that is in no installed package: the digest of its source."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path


def of_module(module: str) -> str:
    """``MODULE source DIGEST`` of the module's file alone, not of what it imports.

    Code without a file (typed into a notebook) has no digest.
    """
    loaded = sys.modules.get(module)
    path = getattr(loaded, "__file__", None)
    if path is None and loaded is None and (spec := importlib.util.find_spec(module)) is not None:
        path = spec.origin
    if path is None or not Path(path).is_file():
        return f"{module} source unknown"
    return f"{module} source {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]}"
