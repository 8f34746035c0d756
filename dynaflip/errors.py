"""The one exception that means: the user can put this right."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake: one clear line that says what is wrong, where, and what to do.

    Jobs print it as ``error: …`` and leave with exit code 2, without a traceback.
    """


class StoreError(UserError):
    """A disk, a bucket or a server refuses or does not answer; no setting is wrong."""


class RefusedError(StoreError):
    """A store that answers and does not let us in: waiting does not help, other rights do."""
