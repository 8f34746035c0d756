"""A preview from its settings to its page."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from dynaflip.platform.cluster import available_cpus
from dynaflip.platform.paths import home
from dynaflip.platform.triplets import preview
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.report.preview_page import (
    Cost,
    Preview,
    clip_line,
    cost_sentence,
    write_page,
)

_MOST_WINDOWS = 12  # left out, shown
_BUSY = 1.5  # processes that want to run, for each CPU


def run_preview(config: PreprocessConfig, count: int, path: Path | None) -> Path:
    """Make clips, print what becomes of each, and write the page.

    Args:
        config: settings, with absolute paths.
        count: how many clips.
        path: of the page; by default in the home, by the source's name.

    Returns:
        The page's path.

    Raises:
        UserError: a source is missing or empty, or a model cannot be loaded.
    """
    source, drawn = preview.open_and_draw(config, count)
    name = " and ".join(source.sources)
    pages = home() / "previews"
    if path is None:
        path = pages / (re.sub(r"[^\w.-]+", "_", name)[:80] or "source") / "preview.html"
    print(f"making {len(drawn.clips)} of {drawn.listed.total():,} clips of {name}")
    pages.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=pages) as folder:
        made = []
        for one in preview.make_clips(drawn.clips, source, config, Path(folder)):
            print(clip_line(one))
            made.append(one)
        workers, where = preview.workers_of_job(config)
        if os.getloadavg()[0] > _BUSY * available_cpus():
            where += ", busy with other work just now"
        found = Preview(
            name,
            config,
            drawn,
            made,
            Cost(*preview.whole_set_s(made, drawn.listed, workers), where),
            preview.rejected_clips(made, source),
            preview.left_out_windows(made, source, _MOST_WINDOWS),
            Path(folder),
        )
        print(cost_sentence(found))
        write_page(found, path)
    return path
