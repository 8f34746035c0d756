"""Every stage makes what its version stands for, and a new version is in the changelog.

After an intended change: raise the stage in platform/triplets/versions.py, add its line to
CHANGELOG.md, and run this file with ``PYTHONPATH=.:tests``, which writes the outputs of stages
whose version has changed.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_outputs import OUTPUTS, summarised

from dynaflip.platform.triplets.versions import STAGE_VERSIONS

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).with_name("stage_outputs.json")
_WRITE = f"PYTHONPATH=.:tests python {Path(__file__).relative_to(ROOT)}"
# Other processors round differently, which now and then tips a point over a threshold.
_RELATIVE, _MOST_TIPPED = 1e-3, 0.04
# By the end of an output's name. Colours (of 255) are those of another libjpeg, swscale or x264;
# what is fitted iteratively to blurred images (in metres) varies most, as do its misfits.
_ABSOLUTE = {
    "_m": 1e-4,
    "_px": 0.03,
    "_fitted": 5e-3,
    "misfit": 0.03,
    "brightness": 1.5,
    "colours": 2.0,
    "kilobytes": 0.05,
}
_ABSOLUTE_OF_OTHERS = 2e-3


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def differences(outputs: dict[str, list[Any]], known: dict[str, list[Any]]) -> list[str]:
    """Names of outputs that differ by more than rounding."""
    names = [name for name in {**known, **outputs} if (name in known) != (name in outputs)]
    for name in known.keys() & outputs.keys():
        ours, theirs = outputs[name], known[name]
        if isinstance(theirs[0], str) or len(ours) != len(theirs):
            same = ours == theirs
        else:
            a, b = np.array(ours, np.float64), np.array(theirs, np.float64)
            ends = (value for end, value in _ABSOLUTE.items() if name.endswith(end))
            absolute = next(ends, _ABSOLUTE_OF_OTHERS)
            close = np.isclose(a, b, rtol=_RELATIVE, atol=absolute, equal_nan=True)
            same = bool((~close).mean() <= _MOST_TIPPED)
        names += [] if same else [name]
    return sorted(names)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=[pytest.mark.sim] if stage == "simulator_flow" else [])
        for stage in STAGE_VERSIONS
    ],
)
def test_a_stage_makes_what_its_version_stands_for(stage: str, tmp_path: Path) -> None:
    known = golden().get(stage, {})
    assert known.get("version") == STAGE_VERSIONS[stage], (
        f"stage_outputs.json holds version {known.get('version')} of {stage}: run {_WRITE}"
    )
    changed = differences(summarised(OUTPUTS[stage](tmp_path)), known["outputs"])
    assert not changed, (
        f"{stage} makes other triplets than version {STAGE_VERSIONS[stage]} did "
        f"({', '.join(changed)}): bump STAGE_VERSIONS[{stage!r}] in "
        f"platform/triplets/versions.py and add a line to CHANGELOG.md, section "
        f"'Triplet stage versions', then run {_WRITE}"
    )


def test_every_version_has_a_line_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    section = text.split("Triplet stage versions", 1)[-1]
    for stage, version in STAGE_VERSIONS.items():
        for number in range(1, version + 1):
            line = f"`{stage}` {number}"
            assert re.search(rf"{line}\b", section), (
                f"CHANGELOG.md, section 'Triplet stage versions', lacks {line}"
            )


def test_other_numbers_and_texts_are_differences() -> None:
    known = {"flow_m": [3, 1.0, 2.0, "nan"], "names": ["a", "b"]}
    rounded = {"flow_m": [3, 1.0, 2.0005, "nan"], "names": ["a", "b"]}
    assert differences(rounded, known) == []
    assert differences({**known, "flow_m": [3, 1.0, 2.1, "nan"]}, known) == ["flow_m"]
    assert differences({**known, "flow_m": [2, 1.0, 2.0]}, known) == ["flow_m"]
    assert differences({**known, "names": ["a", "c"]}, known) == ["names"]
    assert differences({"flow_m": known["flow_m"]}, known) == ["names"]


def write() -> None:
    """Write the outputs of stages whose version has changed; others stay as they are."""
    known = golden() if GOLDEN.exists() else {}
    for stage, version in STAGE_VERSIONS.items():
        if known.get(stage, {}).get("version") != version:
            with tempfile.TemporaryDirectory() as folder:
                outputs = summarised(OUTPUTS[stage](Path(folder)))
            known[stage] = {"version": version, "outputs": outputs}
    lines = [f"{json.dumps(stage)}: {json.dumps(known[stage])}" for stage in STAGE_VERSIONS]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write()
