"""Version of each stage that makes triplets: a folder is reused while all of them are equal.

Raise a stage's version when the same input gives other triplets, and add a line to the section
"Triplet stage versions" of CHANGELOG.md. ``tests/platform/triplets/test_stage_versions.py``
compares each stage with committed outputs and fails where a change lacks its new version. A new
stage starts at 1, which is also what a manifest without it counts as.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STAGE_VERSIONS: dict[str, int] = {
    "sources": 2,  # which clips a source has: ids, captions, groups, tasks
    "decode": 3,  # frames, times, depth and cameras of a recording
    "windows": 3,  # R3M's draw and the flow window's ends
    "split": 1,  # train or heldout
    "filters": 1,  # scores of cuts and blur, and the tests against their thresholds
    "grid": 1,  # where the points lie on frame t
    "tracking": 1,  # 2D tracks, and which frames are tracked
    "lifting": 1,  # back-projection to 3D, and the flow's steps
    "static_points": 1,
    "rgbd_alignment": 1,  # surface patches, and their alignment with later frames
    "rigid_smoothing": 1,
    "dragged_points": 2,  # points that a moving object drags along
    "camera_motion": 2,
    "tracker_3d": 1,  # flow from the tracks of a 3D tracker
    "simulator_flow": 1,  # flow_source: simulator
    "depth_models": 1,  # depth of a model, and its alignment with recorded depth
    "captions": 2,  # captions of a template or a captioner
    "images": 1,  # sizes and JPEG of the stored images
    "rows": 2,  # columns of a triplet and its id
}

# Before there were versions, manifests held a hash of the code's files; this was the last one.
_CODE_OF_FIRST_VERSIONS = "f3990ab7e8307b9bb7777e807bf5c9feb77f770a122c5d140fc2dcbe288783a7"


def versions_of(made_from: Mapping[str, Any]) -> dict[str, int] | None:
    """Stage versions that a manifest's triplets were made by; None: by code without versions."""
    versions = made_from.get("stages")
    if versions is None and made_from.get("code") == _CODE_OF_FIRST_VERSIONS:
        versions = {}
    if versions is None:
        return None
    return {stage: versions.get(stage, 1) for stage in {**STAGE_VERSIONS, **versions}}
