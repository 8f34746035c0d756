"""Open sources of recordings by their format, one or several as a mix."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.config_loader import to_dict
from dynaflip.platform.triplets.clips import (
    Clip,
    ClipRejected,
    Recording,
    Source,
    content_hash,
    holds_a_word,
    normalise_caption,
    printable,
)
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.sources import FALLBACK, SOURCES
from dynaflip.platform.triplets.sources.captions import CAPTION_FILES
from dynaflip.platform.triplets.sources.listed_files import ListedFiles
from dynaflip.platform.triplets.sources.locations import Location, location_of

_INFO = "meta/info.json"  # of a LeRobot data set
_SHOWN_SETS = 20
_OF_A_SOURCE = ("format", "name", "list_clips", "open")
_TEXTS = ("camera", "caption_group", "task", "embodiment", "licence", "factors")


def open_source(config: SourceConfig) -> Source:
    """Open the source at ``config.path``, a folder, a file or an ``s3://`` prefix.

    Raises:
        UserError: nothing is there, no format recognises it, or the forced one does not import.
    """
    location = location_of(config.path)
    try:
        if not location.exists():
            raise UserError(f"source.path: there is no folder {location}")
        files = ListedFiles(config.path)
        root, names = files.root, list(files.stamps)
    except OSError as error:
        raise UserError(f"source.path: {location} cannot be read ({error})") from None
    name, source_class = _source_class(config, location, root, names)
    if config.captions and not getattr(source_class, "takes_captions", False):
        raise UserError(
            f"source.captions: {location} is read as {name}, which brings its own captions; leave "
            f"the setting out"
        )
    source: Source = source_class(config)
    if missing := [part for part in _OF_A_SOURCE if not hasattr(source, part)]:
        raise UserError(
            f"source.format: {name} is no source: it has no {' and no '.join(missing)}; it needs "
            f"{', '.join(_OF_A_SOURCE)}, as {SOURCES.contract} has them"
        )
    if isinstance(getattr(source, "files", None), ListedFiles):
        source.files = files  # type: ignore[attr-defined]  # which are listed already
    return source


def _source_class(
    config: SourceConfig, location: Location, root: Location, names: list[str]
) -> tuple[str, Any]:
    """Name and class of the format: the one of the settings, or the first that recognises files."""
    if config.format:
        return config.format, SOURCES.resolve(config.format, "source.format")
    looked_for = []
    for name in _detection_order():
        source_class = SOURCES.resolve(name, "source.format")
        if not hasattr(source_class, "detect"):
            continue
        if name == FALLBACK and not config.captions:
            _refuse_parts_of_lerobot(location, names)
        if source_class.detect(root, names):
            return name, source_class
        looked_for.append(getattr(source_class, "looks_for", f"the files of {name}"))
    raise UserError(
        f"source.path: no video found in {location} (looked for {', '.join(looked_for)}; "
        f"{_what_is_there(names)})"
    )


def _refuse_parts_of_lerobot(location: Location, names: list[str]) -> None:
    """Refuse a folder of LeRobot data sets, or one within a set: its videos hold many episodes.

    Raises:
        UserError: with the path or paths to give instead.
    """
    if any(name in CAPTION_FILES for name in names):
        return
    below = [name.removesuffix(f"/{_INFO}") for name in names if name.endswith(f"/{_INFO}")]
    if len(below) == 1:
        raise UserError(
            f"source.path: {location} holds a LeRobot data set in {below[0]}: give "
            f"{location}/{below[0]}"
        )
    if below:
        some = ", ".join(f"{{path: {location}/{name}}}" for name in below[:_SHOWN_SETS])
        more = ", …" if len(below) > _SHOWN_SETS else ""
        raise UserError(
            f"source.path: {location} holds {len(below)} LeRobot data sets; give each as a source "
            f"of its own, in a file for --config that says sources: [{some}{more}]"
        )
    if isinstance(location, Path):
        for above in location.resolve().parents:
            if (above / _INFO).is_file():
                raise UserError(
                    f"source.path: {location} is part of a LeRobot data set: give {above}"
                )


def _what_is_there(names: list[str]) -> str:
    """The commonest kinds of files, for the error where none of them is read."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in names)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
    return f"found {found}" if found else "it is empty"


def _detection_order() -> Iterator[str]:
    """Names of the formats, those of installed packages before the one that takes any video."""
    yield from (name for name in SOURCES.names() if name != FALLBACK)
    yield FALLBACK


class Mix:
    """Several sources as one, by their names."""

    format = "mix"
    name = "mix"

    def __init__(self, sources: list[Source], configs: list[SourceConfig]) -> None:
        self.sources = {source.name: source for source in sources}
        self.configs = configs
        twice = [n for n, count in Counter(s.name for s in sources).items() if count > 1]
        if twice:
            raise UserError(f"sources: two are named {twice[0]}; give each its own name")

    def list_clips(self) -> Iterator[Clip]:
        """Clips of all sources; content that is there twice is one clip and one rejection."""
        pairs = zip(self.sources.values(), self.configs, strict=True)
        listed = [_clips_of(source, config) for source, config in pairs]
        # The first of each, so that a source that cannot be listed is told before any work.
        firsts = [list(islice(clips, 1)) for clips in listed]
        return mark_duplicates(chain.from_iterable(chain(*zip(firsts, listed, strict=True))))

    def listing_digest(self) -> str:
        """Equal while all files and settings of the sources are; "" if that is not all.

        The sources of this package list the same clips then.
        """
        parts = []
        for source, config in zip(self.sources.values(), self.configs, strict=True):
            files = getattr(source, "files", None)
            if not isinstance(files, ListedFiles):
                return ""
            parts += [json.dumps(to_dict(config), sort_keys=True), files.digest()]
            try:
                parts += [ListedFiles(config.captions).digest()] if config.captions else []
            except OSError:
                return ""  # said where captions are read
        return content_hash(*parts)

    def is_listing_complete(self) -> bool:
        """True where all files that clips were listed from could be read, and were listed."""
        files = [getattr(source, "files", None) for source in self.sources.values()]
        return all(isinstance(one, ListedFiles) and one.complete for one in files)

    def open(self, clip: Clip) -> Recording:
        """Get ready to read a clip of one of the sources.

        Raises:
            ClipRejected: listing it found a problem.
        """
        if clip.problem:
            raise ClipRejected(*clip.problem)
        return self.sources[clip.source].open(clip)

    def about(self) -> dict[str, dict[str, Any]]:
        """Format and weight of each source, for the manifest."""
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


def _with_settings(clip: Clip, config: SourceConfig, captioner: str) -> Clip:
    """A clip with the settings of its source.

    One whose only problem is a missing caption takes that of the template, or of the captioner.
    """
    clip = _with_sound_texts(clip)
    clip = replace(clip, depth=config.depth, flow_window_s=config.flow_window_s)
    if clip.problem is None or clip.problem[0] != "caption":
        return clip
    if config.caption_template:
        caption = _templated(clip, config.caption_template)
        group = clip.caption_group or normalise_caption(caption)
        clip = replace(clip, captions=(caption,), caption_kind="template", problem=None)
        # Names on disk need not be UTF-8, nor hold a word.
        return _with_sound_texts(replace(clip, caption_group=group, task=clip.task or group))
    if captioner:
        prompt = config.captioner_prompt
        return replace(clip, problem=None, caption_kind=captioner, captioner_prompt=prompt)
    return clip


def _with_sound_texts(clip: Clip) -> Clip:
    """A clip whose texts any table can hold, with the problem that they have.

    JSON may hold half a character (a lone surrogate), and a caption may hold no word at all.
    """
    texts: dict[str, Any] = {name: printable(getattr(clip, name)) for name in _TEXTS}
    captions = tuple(map(printable, clip.captions))
    if clip.problem is None:
        if captions != clip.captions or any(getattr(clip, n) != t for n, t in texts.items()):
            problem = ("caption", "its texts are not Unicode: they hold half characters")
            clip = replace(clip, problem=problem)
        elif not all(map(holds_a_word, captions)):
            empty = next(caption for caption in captions if not holds_a_word(caption))
            clip = replace(clip, problem=("caption", f"the caption {empty!r} holds no word"))
    return replace(clip, captions=captions, **texts)


def _templated(clip: Clip, template: str) -> str:
    path = PurePosixPath(clip.path)
    words = {"name": path.stem, "folder": path.parent.name or clip.source, "source": clip.source}
    return template.format(**{k: " ".join(w.replace("_", " ").split()) for k, w in words.items()})


def mark_duplicates(clips: Iterable[Clip]) -> Iterator[Clip]:
    """Mark clips whose content is listed before: they would count twice, and cross the splits."""
    # On disk, so that memory does not grow with the clips; see `ledger`.
    database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
    database.execute("create table seen (clip blob primary key, path blob) without rowid")
    with closing(database):
        for clip in clips:
            if clip.problem is None:
                key = hashlib.sha256(clip.clip_id.encode(errors="surrogatepass")).digest()[:16]
                path = clip.path.encode(errors="surrogatepass")
                new = database.execute("insert or ignore into seen values (?, ?)", (key, path))
                if not new.rowcount:
                    query = "select path from seen where clip = ?"
                    (first,) = database.execute(query, (key,)).fetchone()
                    shown = first.decode(errors="surrogatepass")
                    clip = replace(clip, problem=("list", f"same content as {shown}"))
            yield clip


def _clips_of(source: Source, config: SourceConfig) -> Iterator[Clip]:
    """Clips of a source with its settings.

    Raises:
        UserError: it cannot be read.
    """
    # Once for each source: looking up an installed captioner reads every package.
    captioner = config.captioner_name() if config.captioner else ""
    try:
        for clip in islice(source.list_clips(), config.max_clips or None):
            yield _with_settings(clip, config, captioner)
    except OSError as error:
        raise UserError(f"source.path: {config.path} cannot be read ({error})") from None
