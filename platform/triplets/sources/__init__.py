"""Sources of recordings: one file for each format.

A source is a class with the methods of :class:`dynaflip.platform.triplets.clips.Source`, made with
its :class:`~dynaflip.platform.triplets.config.SourceConfig`. ``source.format`` is a name of the
table below, of an installed package's entry point in the group ``dynaflip.source``, or
``class:MODULE:NAME``; empty, it is the first format that recognises the files.
"""

from __future__ import annotations

from dynaflip.plugins import ExtensionPoint

_HERE = "dynaflip.platform.triplets.sources"
# In the order in which they are asked whether they recognise a folder's files: FALLBACK takes
# whatever holds a video, so formats of installed packages are asked before it.
SOURCES = ExtensionPoint(
    "source",
    {
        "lerobot": f"{_HERE}.lerobot:LeRobotSource",
        "rlds": f"{_HERE}.rlds:RLDSSource",
        "something-something-v2": f"{_HERE}.something:SomethingSource",
        "ego4d": f"{_HERE}.ego4d:Ego4DSource",
        "folder": f"{_HERE}.folder:FolderSource",
    },
    contract="dynaflip.platform.triplets.clips.Source",
)
FALLBACK = "folder"
