"""Open sources of recordings by what lies in them, one or several as a mix.

A new format is one file with a class like those below (:class:`Source`, and ``detect``)
and its name in :data:`FORMATS`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import Clip, Recording, Source, normalise_caption
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.models.captioner import KIND
from dynaflip.platform.triplets.sources.ego4d import Ego4DSource
from dynaflip.platform.triplets.sources.folder import FolderSource
from dynaflip.platform.triplets.sources.lerobot import LeRobotSource
from dynaflip.platform.triplets.sources.locations import location_of, root_and_files
from dynaflip.platform.triplets.sources.rlds import RLDSSource
from dynaflip.platform.triplets.sources.something import SomethingSource

# The first that recognises itself is taken, so the most particular come first.
FORMATS: tuple[Any, ...] = (LeRobotSource, RLDSSource, SomethingSource, Ego4DSource, FolderSource)


def open_source(config: SourceConfig) -> Source:
    """The source that lies at ``config.path``, a folder, a file or an ``s3://`` prefix.

    Raises:
        UserError: there is nothing, or nothing that any format recognises.
    """
    place = location_of(config.path)
    try:
        if not place.exists():
            raise UserError(f"source.path: there is no folder {place}")
        root, names = root_and_files(config.path)
    except OSError as error:
        raise UserError(f"source.path: {place} cannot be read ({error})") from None
    for kind in FORMATS:
        if kind.detect(root, names):
            if config.captions and kind is not FolderSource:
                raise UserError(
                    f"source.captions: {place} is read as {kind.format}, which brings its own "
                    f"captions; leave the setting out"
                )
            return kind(config)
    raise UserError(
        f"source.path: no video found in {place} (looked for LeRobot's meta/info.json, "
        f"*.tfrecord, labels of Something-Something, narration.json, and video files)"
    )


class Mix:
    """Several sources as one, by their names."""

    format = "mix"
    name = "mix"

    def __init__(self, sources: list[Source], configs: list[SourceConfig]) -> None:
        self.sources = {source.name: source for source in sources}
        self.configs = configs
        twice = [n for n, count in Counter(s.name for s in sources).items() if count > 1]
        if twice:
            raise UserError(f"sources: two are named {twice[0]}; give each a name of its own")

    def list_clips(self) -> list[Clip]:
        """Clips of all sources; content that is there twice is one clip and one rejection."""
        clips: list[Clip] = []
        for source, config in zip(self.sources.values(), self.configs, strict=True):
            try:
                listed = source.list_clips()
            except OSError as error:
                raise UserError(f"source.path: {config.path} cannot be read ({error})") from None
            listed = listed[: config.max_clips] if config.max_clips else listed
            clips += [_with_settings(clip, config) for clip in listed]
        return mark_duplicates(clips)

    def open(self, clip: Clip) -> Recording:
        """Get ready to read a clip of one of the sources."""
        return self.sources[clip.source].open(clip)

    def about(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of each source: its format and its weight."""
        return {
            source.name: {"format": source.format, "weight": config.weight}
            for source, config in zip(self.sources.values(), self.configs, strict=True)
        }


def open_sources(config: PreprocessConfig) -> Mix:
    """All sources of a configuration.

    Raises:
        UserError: one of them is missing, or two have one name.
    """
    configs = list(config.all_sources())
    return Mix([open_source(one) for one in configs], configs)


def _with_settings(clip: Clip, config: SourceConfig) -> Clip:
    """A clip with what its source is to be treated by.

    One whose only problem is that nobody said what happens in it takes the template's caption,
    or waits for the captioner.
    """
    clip = replace(clip, depth=config.depth, flow_window_s=config.flow_window_s)
    if clip.problem is None or clip.problem[0] != "caption":
        return clip
    if config.caption_template:
        caption = _templated(clip, config.caption_template)
        group = clip.caption_group or normalise_caption(caption)
        clip = replace(clip, captions=(caption,), caption_kind="template", problem=None)
        return replace(clip, caption_group=group, task=clip.task or group)
    if config.captioner:
        kind, prompt = KIND + config.captioner, config.captioner_prompt
        return replace(clip, problem=None, caption_kind=kind, captioner_prompt=prompt)
    return clip


def _templated(clip: Clip, template: str) -> str:
    path = PurePosixPath(clip.path)
    words = {"name": path.stem, "folder": path.parent.name or clip.source, "source": clip.source}
    return template.format(**{k: " ".join(w.replace("_", " ").split()) for k, w in words.items()})


def mark_duplicates(clips: list[Clip]) -> list[Clip]:
    """Equal content under a second name would count twice, and cross the splits unseen."""
    seen: dict[str, str] = {}
    out = []
    for clip in clips:
        if clip.problem is None:
            if clip.clip_id in seen:
                clip = replace(clip, problem=("list", f"same content as {seen[clip.clip_id]}"))
            seen.setdefault(clip.clip_id, clip.path)
        out.append(clip)
    return out
