"""Settings as text: the list in ``--help`` and the commented YAML of ``--print_config``."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from dynaflip.platform.config_loader import to_dict
from dynaflip.platform.settings_docs import Section, Setting, meaning_of, sections

# Width of the YAML's comments.
YAML_WIDTH = 96


def help_text(cls: type, width: int) -> str:
    """All settings of a job, grouped by section, with what each means.

    Args:
        cls: the dataclass of the job's settings.
        width: columns of the terminal.
    """
    lines = ["settings (dotted keys; in a YAML file the parts before the dots are sections):"]
    for section in sections(cls):
        if section.key:
            lines += ["", *_wrapped(f"{section.key}: {section.meaning}", width, "")]
        for setting in section.settings:
            flag = f"  --{setting.key}"
            lines += _wrapped(f"{flag:<38}  {setting.facts()}", width, " " * 10, first="")
            lines += _wrapped(setting.meaning, width, " " * 6)
    return "\n".join(lines)


def commented_yaml(config: Any) -> str:
    """Resolved settings as YAML with comments, which ``--config`` reads back as they are.

    Args:
        config: settings, an instance of a dataclass with sections.
    """
    values = to_dict(config)
    lines = _comment(meaning_of(type(config)), "")
    for section in sections(type(config)):
        lines += ["", *_section_lines(section, values)]
    return "\n".join(lines) + "\n"


def _section_lines(section: Section, values: dict[str, Any]) -> list[str]:
    parts = section.key.split(".") if section.key else []
    for part in parts:
        values = values[part]
    indent = "  " * len(parts)
    lines: list[str] = []
    if parts:
        lines += _comment(section.meaning, indent[2:])
        lines.append(f"{indent[2:]}{parts[-1]}:{'' if values else ' {}'}")
    for setting in section.settings:
        lines += _comment(setting.meaning, indent)
        lines += _comment(f"[{setting.facts()}]", indent)
        lines += _entry(setting, values[setting.name], indent)
    return lines


def _entry(setting: Setting, value: Any, indent: str) -> list[str]:
    """``key: value`` in one line; a list of sections below its key."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        text = yaml.safe_dump({setting.name: value}, sort_keys=False, allow_unicode=True)
        return [indent + line for line in text.rstrip("\n").split("\n")]
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    text = text.removesuffix("...\n").strip()  # the end mark of a document of one scalar
    return [f"{indent}{setting.name}: {text}"]


def _comment(text: str, indent: str) -> list[str]:
    return _wrapped(text, YAML_WIDTH, f"{indent}# ") if text else []


def _wrapped(text: str, width: int, indent: str, first: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        max(40, width),
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
