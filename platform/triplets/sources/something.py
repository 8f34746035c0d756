"""Something-Something V2: webm videos by number, labels in JSON.

As its authors hand it out: ``20bn-something-something-v2/78687.webm`` and
``labels/train.json``, ``labels/validation.json`` (older copies:
``something-something-v2-train.json``) with ``id``, ``label``, ``template`` and
``placeholders``. Labels of the test part are not published.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import normalise_caption
from dynaflip.platform.triplets.sources.captions import CaptionRow
from dynaflip.platform.triplets.sources.folder import FolderSource
from dynaflip.platform.triplets.sources.locations import Location, why_unreadable

_LABELS = re.compile(r"(^|[/-])(train|validation)\.json$")


class SomethingSource(FolderSource):
    """Short videos of hands that do something with something.

    The template of a label ("Putting [something] on [something]") is the task: clips of
    one template show one kind of action. Whether captions mean the same is told by the
    label, which names the objects.
    """

    format = "something-something-v2"
    looks_for = "labels of Something-Something"
    takes_captions = False
    embodiment = "human"
    licence = "Something-Something V2 (research use)"

    @classmethod
    def detect(cls, root: Location, names: list[str]) -> bool:
        """Label files and webm videos."""
        labels = any(_LABELS.search(name) for name in names)
        return labels and any(name.endswith(".webm") for name in names)

    def read_rows(self, names: list[str]) -> list[CaptionRow]:
        """A caption a label; videos without label (the test part) have none."""
        videos = {PurePosixPath(n).stem: n for n in names if n.endswith(".webm")}
        rows = []
        for name in names:
            if not _LABELS.search(name):
                continue
            for label in self._labels(name):
                # A part of the set is often all one has: labels of other videos are no loss.
                if (number := str(label.get("id"))) in videos:
                    rows.append(_row(videos[number], label))
        if not rows:
            raise UserError(f"source.path: no label in {self.root} belongs to a video there")
        return rows

    def _labels(self, name: str) -> list[dict[str, object]]:
        try:
            labels = json.loads((self.root / name).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            why = why_unreadable(self.root / name, error)
            raise UserError(f"{self.root / name}: not readable as JSON ({why})") from None
        if not isinstance(labels, list) or not all(isinstance(one, dict) for one in labels):
            raise UserError(f"{self.root / name}: not a list of labels")
        return labels


def _row(video: str, label: dict[str, object]) -> CaptionRow:
    """The caption of a label, or why it is none."""
    caption, template = label.get("label") or "", label.get("template") or ""
    if not isinstance(caption, str) or not isinstance(template, str):
        name = "template" if isinstance(caption, str) else "label"
        return CaptionRow(video, problem=f"its {name} is {label[name]!r:.100}, not text")
    caption = caption.strip()
    task = normalise_caption(template)
    return CaptionRow(video, caption, task=task, group=normalise_caption(caption))
