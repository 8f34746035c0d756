"""Passwords in URLs: masked in all that is printed or recorded, and kept out of files.

A setting that needs one names an environment variable instead (``env:NAME``), which stands in no
file, no MLflow run and no list of processes.
"""

from __future__ import annotations

import os
import re

from dynaflip.errors import UserError

ENVIRONMENT = "env:"
MASK = "***"

# scheme://user:password@host. People type passwords with / @ ? in them unescaped, as SQLAlchemy
# takes them, and so the password reaches to the last @ of the word: rather too much than too
# little. A path before the colon (s3://bucket/key:1@2) is no user.
_USER = re.compile(r"(\w://[^\s:/?]*:)\S+@")
# …?password=…&sslpassword=…, whatever the service calls it.
_QUERY = re.compile(
    r"([?&;][\w-]*(?:password|passwd|pwd|secret|token|api_?key|access_?key|signature)[\w-]*=)"
    r"[^\s&;#]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """A text with ``***`` for each password in its URLs (``user:…@``, ``?password=…``)."""
    if "://" not in text:
        return text
    text = _USER.sub(rf"\1{MASK}@", text)
    return re.sub(r"\w://\S+", lambda url: _QUERY.sub(rf"\1{MASK}", url.group()), text)


def has_password(url: str) -> bool:
    """True if a URL holds a password that is not masked."""
    return masked(url) != url


def from_environment(value: str, setting: str) -> str:
    """A setting's value, read from the environment where it is ``env:NAME``.

    Args:
        value: as typed or saved.
        setting: its dotted name, for the error.

    Raises:
        UserError: the variable is not set.
    """
    if not value.startswith(ENVIRONMENT):
        return value
    name = value.removeprefix(ENVIRONMENT)
    found = os.environ.get(name)
    if not found:
        raise UserError(
            f"{setting} {value}: the environment variable {name or '?'} is not set here"
        )
    return found


def refuse_password(value: str, setting: str) -> None:
    """Refuse a password in a setting that is written to files and shown by ``ps``.

    Raises:
        UserError: with the ways that leave no trace.
    """
    if has_password(value):
        raise UserError(
            f"{setting} {masked(value)}: a password here would stand in files and in the list of "
            f"processes; put the URL into an environment variable and give {ENVIRONMENT}NAME, or "
            f"leave the password out (Postgres reads PGPASSWORD and ~/.pgpass)"
        )
