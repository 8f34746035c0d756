"""Write docs/settings.md, the reference of all settings, from the dataclasses.

python infra/ci/settings_reference.py            # write it
python infra/ci/settings_reference.py --check    # leave with 1 where it is out of date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dynaflip.platform.settings_docs import Section, Setting, sections  # noqa: E402
from dynaflip.plugins import load_object  # noqa: E402

PAGE = ROOT / "docs" / "settings.md"

# Words of a command line to the class of its settings.
JOBS = {
    "collect": "dynaflip.platform.demonstrations.config:CollectConfig",
    "preprocess": "dynaflip.platform.triplets.config:PreprocessConfig",
    "pretrain": "dynaflip.platform.training.config:PretrainConfig",
    "evaluate": "dynaflip.platform.evaluation.probe_config:ProbeSuiteConfig",
    "evaluate --suite rollouts": "dynaflip.platform.evaluation.config:RolloutConfig",
    "evaluate --suite offline": "dynaflip.platform.evaluation.offline_config:OfflineConfig",
    "promote": "dynaflip.platform.promotion_config:PromoteConfig",
    "sweep": "dynaflip.platform.sweep.config:SweepJobConfig",
    "ablate": "dynaflip.platform.ablation:AblationConfig",
}

INTRODUCTION = """\
# Settings

<!-- Written by `make docs` from the settings' dataclasses: change it there. -->

Every job takes settings from a YAML file (`--config FILE`) and from dotted flags
(`--train.steps 500`), which override the file. `--help` shows them with what they mean,
`--print_config` prints them all as YAML with comments, which `--config` reads back:

```bash
python jobs/pretrain.py --train.steps 500 --print_config > mine.yaml
python jobs/pretrain.py --config mine.yaml
```

A setting that does not exist, a value of the wrong type and a value out of range are errors that
name the setting. A list is written `[a, b]`, or `a,b` on the command line; `none` is no value.
"""


def page() -> str:
    """The whole reference."""
    places: dict[type, list[tuple[str, Section]]] = {}
    for job, target in JOBS.items():
        for section in sections(load_object(target)):
            places.setdefault(section.cls, []).append((job, section))
    parts = [INTRODUCTION]
    parts += [_described(found) for found in places.values() if found[0][1].settings]
    return "\n".join(parts)


def _described(places: list[tuple[str, Section]]) -> str:
    """A class's settings as a table, with the places where it stands."""
    job, first = places[0]
    title = f"`{first.key}` of `{job}`" if first.key else f"`{job}`"
    lines = [f"## {title}", "", first.meaning]
    others = [f"`{key}` of `{other}`" for other, key in _keys(places[1:])]
    if others:
        lines += ["", f"Also {', '.join(others)}."]
    lines += ["", "| setting | type | default | meaning |", "|---|---|---|---|"]
    lines += [_row(setting) for setting in first.settings]
    for other, section in places[1:]:
        if changed := _other_defaults(first, section):
            lines += ["", f"Other defaults in `{other}`: {', '.join(changed)}."]
    return "\n".join(lines) + "\n"


def _keys(places: list[tuple[str, Section]]) -> list[tuple[str, str]]:
    return [(job, section.key) for job, section in places if section.key]


def _row(setting: Setting) -> str:
    kind = ", ".join(f"`{choice}`" for choice in setting.choices) or setting.type
    facts = "; ".join(filter(None, (kind, setting.limits)))
    cells = (f"`{setting.key}`", facts, f"`{setting.default}`", setting.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _other_defaults(first: Section, section: Section) -> list[str]:
    pairs = zip(first.settings, section.settings, strict=True)
    return [f"`{here.key}` `{here.default}`" for one, here in pairs if one.default != here.default]


def main() -> int:
    """Write or check the page; 1 where the check fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    words = parser.parse_args()
    if not words.check:
        PAGE.write_text(page(), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.relative_to(ROOT)} is out of date: run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
