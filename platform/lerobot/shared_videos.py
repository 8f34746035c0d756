"""Which frames of a shared video are an episode's, by the lengths of the episodes in it.

LeRobot v3.0 puts many episodes into one video. Where an episode's frames lie is stated twice: by
``from_timestamp`` and by the lengths of the episodes before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from dynaflip.platform.lerobot.metadata import Episode


@dataclass(frozen=True)
class Place:
    """Where an episode lies among the frames of its video.

    Args:
        before: frames of earlier episodes in the file.
        total: frames of all episodes in the file.
        episodes: how many there are.
    """

    before: int
    total: int
    episodes: int


def places_in_videos(
    episodes: list[tuple[Episode, str, float]],
) -> Mapping[int, Place]:
    """Places of the episodes of one camera, by episode index.

    Args:
        episodes: each with the path of its video and its start there, in seconds.

    Returns:
        Nothing for the episodes of a file where a length is not stated.
    """
    files: dict[str, list[tuple[float, int, Episode]]] = defaultdict(list)
    for episode, path, start_s in episodes:
        files[path].append((start_s, episode.index, episode))
    places: dict[int, Place] = {}
    for several in files.values():
        lengths = [episode.length for _, _, episode in several]
        if any(length is None for length in lengths):
            continue
        total, before = sum(length or 0 for length in lengths), 0
        for _, index, episode in sorted(several, key=lambda one: one[:2]):
            places[index] = Place(before, total, len(several))
            before += episode.length or 0
    return places
