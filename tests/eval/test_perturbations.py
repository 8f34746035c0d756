"""The declared factors: three splits that never meet, and draws that depend on the seed alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from dynaflip.errors import UserError
from dynaflip.eval.envs.mujoco_factors import DISTRACTORS_AT_LEVEL
from dynaflip.eval.perturbations import (
    FACTORS,
    LAYOUT_SEEDS,
    LEVELS,
    SPLITS,
    belongs_to,
    layout_seed,
    magnitude_ranges,
    physical,
    sample,
    seen_factors,
    texture_names,
    unseen_factors,
)

PAIRS = list(itertools.combinations(SPLITS, 2))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_splits_share_no_magnitude_texture_or_seed(one: str, other: str) -> None:
    for low, high in magnitude_ranges(one):
        for start, stop in magnitude_ranges(other):
            assert high < start or stop < low
    for factor in ("table_texture", "floor"):
        assert not {*texture_names(one, factor)} & {*texture_names(other, factor)}
    # What is on the floor in one split is not on the table in another either.
    assert not {*texture_names(one, "table_texture")} & {*texture_names(other, "floor")}
    assert not {*LAYOUT_SEEDS[one]} & {*LAYOUT_SEEDS[other]}


@pytest.mark.parametrize("split", SPLITS)
def test_draws_belong_to_their_own_split_alone(split: str) -> None:
    allowed = seen_factors() if split == "pretrain" else FACTORS
    for factor in allowed:
        for level in LEVELS:
            for seed in range(40):
                values = sample(split, seed, [factor], level)
                assert [s for s in SPLITS if belongs_to(values, s)] == [split], values


def test_layout_seeds_belong_to_one_split() -> None:
    for split in SPLITS:
        for index in (0, 1, 999_999, 1_000_000, 2**40):
            values = {"layout_seed": layout_seed(split, index)}
            assert [s for s in SPLITS if belongs_to(values, s)] == [split]


def test_draws_are_json_and_depend_on_the_arguments_alone() -> None:
    values = sample("dev", 7, level=4)
    assert json.loads(json.dumps(values)) == values == sample("dev", 7, level=4)
    assert values != sample("dev", 8, level=4)
    # A factor's value does not depend on which others are drawn with it.
    assert sample("dev", 7, ["floor"], level=4)["floor"] == values["floor"]


def test_pretraining_never_draws_the_unseen_kinds() -> None:
    assert {*sample("pretrain", 0)} == {*seen_factors()}
    assert {"floor", "object_colour", "distractors"} <= {*unseen_factors()}
    for factor in unseen_factors():
        with pytest.raises(ValueError, match="unseen"):
            sample("pretrain", 0, [factor])
        assert not belongs_to({factor: {"u": 0.1}}, "pretrain")


@pytest.mark.parametrize("factor", FACTORS)
def test_physical_values_grow_with_the_level(factor: str) -> None:
    def strength(u: float) -> float:
        value = physical(factor, {"u": u, "sign": 1})
        return next(iter(value.values()))

    magnitudes = [(low + high) / 2 for low, high in magnitude_ranges("dev")]
    strengths = [strength(u) for u in magnitudes]
    assert strengths == sorted(strengths)
    assert strengths[0] < strengths[-1]
    neutral = 1.0 if factor == "light_gain" else 0.0
    assert strength(0.0) == neutral


def test_dev_and_test_have_the_same_number_of_distractors_at_a_level() -> None:
    for level, count in DISTRACTORS_AT_LEVEL.items():
        for split in ("dev", "test"):
            for seed in range(20):
                value = sample(split, seed, ["distractors"], level)["distractors"]
                assert physical("distractors", value)["count"] == count


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", 0), "no split train"),
        (("dev", 0, ["fog"]), "no factor 'fog'"),
        (("dev", 0, ["floor"], 6), "level must be"),
    ],
)
def test_mistakes_are_named(arguments: tuple, said: str) -> None:
    with pytest.raises((UserError, ValueError), match=said):
        sample(*arguments)


def test_draws_are_those_of_the_first_edition() -> None:
    """Cached evaluations and recorded data hold them: a change would quietly devalue both."""
    golden = json.loads((Path(__file__).parent / "golden_draws.json").read_text())
    for name, values in golden.items():
        split, seed, level = name.split("/")
        assert sample(split, int(seed), level=int(level)) == values, name
