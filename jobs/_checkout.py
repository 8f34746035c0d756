"""Makes a job that is started as a script run the code of the checkout that the script is in.

``python jobs/pretrain.py`` has ``jobs/`` on its search path and not the checkout's root: the
package would be that of whichever checkout is installed, or missing. Each script calls
:func:`use_this_checkout` before its first import of the package; an installed ``dynaflip`` command
never comes here. Ray's workers get the same root from :func:`dynaflip.platform.cluster.start_ray`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import typing

_HERE = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(_HERE)
_OLDEST_PYTHON = (3, 11)
# Every job needs these to read its settings, and they are quick to look for; a job that lacks
# another package names it when it imports it.
_PACKAGES = ("yaml", "pydantic", "numpy")


def use_this_checkout() -> None:
    """Put this checkout's root first on the search path; exit with 2 where packages are missing."""
    # In place of jobs/, whose modules (evaluate, ui) have the names of installable packages.
    if sys.path and os.path.abspath(sys.path[0]) == _HERE:
        del sys.path[0]
    if not os.path.isdir(os.path.join(_ROOT, "dynaflip")):  # a wheel: the package is installed
        return
    sys.path.insert(0, _ROOT)
    if sys.version_info[:2] < _OLDEST_PYTHON:
        _leave("is older than Python 3.11")
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            _leave(f"has no package {package}")


def _leave(why: str) -> typing.NoReturn:
    activate = os.path.join(_ROOT, ".venv", "bin", "activate")
    make = "" if os.path.exists(activate) else f"cd {_ROOT} && make env && "
    print(f"error: {sys.executable} {why}; type {make}. {activate}", file=sys.stderr)
    sys.exit(2)
