"""Draw the images of the docs from a triplet folder with depth, such as the demo's.

    python infra/docs_images.py TRIPLETS --browser chromium

Writes docs/images/triplets.jpg (four triplets side by side) and, with a browser that takes
`--headless --screenshot`, docs/images/example.jpg (a triplet as the data card shows it).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402

from dynaflip.platform.triplets.folder_index import parquet_files  # noqa: E402
from dynaflip.platform.triplets.place import place_of  # noqa: E402
from dynaflip.platform.triplets.report.example_cards import LEGEND, example  # noqa: E402
from dynaflip.platform.triplets.report.examples import read_examples  # noqa: E402
from dynaflip.platform.triplets.report.html_parts import page  # noqa: E402
from dynaflip.platform.triplets.report.overlays import draw_tracks, sheet  # noqa: E402
from dynaflip.platform.triplets.report.trails import trails_of  # noqa: E402
from dynaflip.platform.triplets.report.view_3d import TURN_SCRIPT  # noqa: E402
from dynaflip.platform.triplets.schema import read_manifest  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SIZE_PX = 1160, 540  # of the browser's window
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 86]


def main() -> None:
    """Parse and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("triplets")
    parser.add_argument("--browser", default="")
    args = parser.parse_args()
    files = parquet_files(place_of(args.triplets), read_manifest(args.triplets))
    rows = read_examples(files, 36)
    moved = [row for row in rows if trails_of(row).differ()]
    captions: dict[str, dict] = {row["caption"]: row for row in reversed(moved or rows)}
    some = list(captions.values())[-4:]
    drawn = sheet([draw_tracks(row) for row in some], [row["caption"] for row in some])
    cv2.imwrite(str(IMAGES / "triplets.jpg"), drawn[..., ::-1], JPEG)
    if args.browser:
        screenshot(args.browser, page("", [LEGEND, example((moved or rows)[0])], TURN_SCRIPT))


def screenshot(browser: str, markup: str) -> None:
    """Write docs/images/example.jpg."""
    with tempfile.TemporaryDirectory() as folder:
        html, shot = Path(folder) / "page.html", Path(folder) / "page.png"
        html.write_text(markup)
        words = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=3000"]
        words += [f"--window-size={SIZE_PX[0]},{SIZE_PX[1]}", f"--screenshot={shot}", html.as_uri()]
        subprocess.run([browser, *words], check=True, stderr=subprocess.DEVNULL)
        cv2.imwrite(str(IMAGES / "example.jpg"), cv2.imread(str(shot)), JPEG)


if __name__ == "__main__":
    main()
