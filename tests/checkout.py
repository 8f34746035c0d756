"""Where the tests' own checkout is, and what lies beside it."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_CLIPS = REPOSITORY.parent / "shared" / "clips"
