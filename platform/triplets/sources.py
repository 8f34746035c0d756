"""Open a source of recordings by what lies in its folder."""

from __future__ import annotations

from pathlib import Path

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import Source
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.folder import FolderSource
from dynaflip.platform.triplets.lerobot import LeRobotSource


def open_source(config: SourceConfig) -> Source:
    """A LeRobot v3.0 data set (``meta/info.json``) or a folder with ``captions.csv``.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(config.path)
    if not root.exists():
        raise UserError(f"source.path: there is no folder {root}")
    if not root.is_dir():
        raise UserError(f"source.path: {root} is a file; give the folder it is in")
    if (root / "meta" / "info.json").is_file():
        return LeRobotSource(config)
    return FolderSource(config)
