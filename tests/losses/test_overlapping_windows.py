"""Overlapping windows of a clip as negatives, against plain loops over the definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.contrastive import ContrastiveTerm
from dynaflip.losses.contrastive import contrastive_loss as loss_of_examples
from dynaflip.losses.examples import Examples, Windows
from dynaflip.losses.objective import Objective

NUM, DIM = 7, 5
CLIP = torch.tensor([0, 0, 0, 1, 1, 0, 2])
START_S = torch.tensor([0.0, 0.2, 0.4, 0.0, 0.5, 0.1, 0.0]).double()
END_S = START_S + 0.5
# By hand. The windows of rows 3 and 4 only touch, and those of row 6 are in another clip.
OVERLAPPING = {(0, 1), (0, 2), (0, 5), (1, 2), (1, 5), (2, 5)}
GROUP = torch.tensor([0, 0, 0, 1, 1, 0, 1])
MODALITIES = ("language", "image", "flow")


def overlap(i: int, j: int) -> bool:
    return (min(i, j), max(i, j)) in OVERLAPPING


def points(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(MODALITIES), NUM, DIM, generator=generator).double()
    return {n: F.normalize(z, dim=-1) for n, z in zip(MODALITIES, drawn, strict=True)}


def examples(z: dict[str, Tensor], first_id: int = 0) -> Examples:
    windows = Windows(CLIP, torch.stack([START_S, END_S], 1))
    return Examples(z, GROUP, first_id + torch.arange(NUM), windows)


def energy(config: ObjectiveConfig, language: Tensor, image: Tensor, flow: Tensor) -> Tensor:
    u, v = image - language, flow - language
    area = 0.5 * ((u @ u) * (v @ v) - (u @ v) ** 2).clamp(min=1e-300).sqrt()
    return config.volume * area - config.cosine * (language @ flow)


def info_nce(matched: Tensor, negatives: list[Tensor]) -> Tensor:
    return torch.logsumexp(torch.stack([matched, *negatives]), 0) - matched


def by_hand(
    config: ObjectiveConfig, z: dict[str, Tensor], past: dict[str, Tensor] | None = None
) -> Tensor:
    """Mean over the sets of negatives of the mean over the examples, from the definition.

    ``past`` holds other examples with the same windows.
    """

    def score(rows: dict[str, Tensor]) -> Tensor:
        return -energy(config, **rows) / config.temperature

    def counts(anchor: str, i: int, j: int) -> bool:
        same_caption = anchor in config.mask_same_caption and bool(GROUP[i] == GROUP[j])
        return i != j and not overlap(i, j) and not same_caption

    def others(anchor: str, i: int) -> list[Tensor]:
        return [
            score({n: z[n][i] if n == anchor else columns[n][j] for n in MODALITIES})
            for columns in ([z] if past is None else [z, past])
            for j in range(NUM)
            if counts(anchor, i, j)
        ]

    def swapped(anchor: str, i: int) -> list[Tensor]:
        return [
            score({n: z[n][j] if n == anchor else z[n][i] for n in MODALITIES})
            for j in range(NUM)
            if counts(anchor, i, j)
        ]

    def shuffled(i: int) -> list[Tensor]:
        found = []
        for shuffle in range(1, config.shuffles + 1):
            rows = (i, (i + shuffle) % NUM, (i + 2 * shuffle) % NUM)
            one_group = len({int(GROUP[row]) for row in rows}) == 1
            masked = one_group and "language" in config.mask_same_caption
            alike = all(overlap(a, b) for a, b in itertools.combinations(rows, 2))
            if len(set(rows)) == 3 and not masked and not alike:
                mixture = dict(zip(MODALITIES, rows, strict=True))
                found.append(score({n: z[n][row] for n, row in mixture.items()}))
        return found

    sets = []
    for i in range(NUM):
        matched = score({n: z[n][i] for n in MODALITIES})
        for anchor in config.anchored():
            if "others" in config.negatives:
                sets.append(info_nce(matched, others(anchor, i)))
            if "swapped" in config.negatives:
                sets.append(info_nce(matched, swapped(anchor, i)))
        if "shuffled" in config.negatives:
            sets.append(info_nce(matched, shuffled(i)))
    return torch.stack(sets).mean()


@pytest.mark.parametrize("negatives", ["others", "swapped", "shuffled"])
@pytest.mark.parametrize("mask_same_caption", [("language",), ()])
def test_loss_and_gradient_are_those_of_the_definition(
    negatives: str, mask_same_caption: tuple[str, ...]
) -> None:
    config = ObjectiveConfig(
        modalities=MODALITIES,
        negatives=(negatives,),
        shuffles=4,
        temperature=0.4,
        mask_same_caption=mask_same_caption,
    )
    # Before they are normalised: off the sphere the two forms of the volume differ.
    leaves = [(2 * value).requires_grad_() for value in points().values()]
    z = {n: F.normalize(x, dim=-1) for n, x in zip(MODALITIES, leaves, strict=True)}
    batch = examples(z)
    loss = loss_of_examples(config, batch, batch)["loss"]
    expected = by_hand(config, z)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    found = torch.autograd.grad(loss, leaves, retain_graph=True)
    for mine, other in zip(
        found, torch.autograd.grad(expected, leaves, retain_graph=True), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
    without = Examples(z, GROUP, torch.arange(NUM))
    kept = loss_of_examples(config, without, without)["loss"]
    # Three windows that overlap are of one clip, so of one caption.
    masked_already = negatives == "shuffled" and "language" in mask_same_caption
    assert (kept.item() == pytest.approx(loss.item(), rel=1e-4)) == masked_already


def test_the_past_of_an_overlapping_window_is_no_negative_either() -> None:
    config = ObjectiveConfig(modalities=MODALITIES, temperature=0.4)
    z, past = points(), points(1)
    loss = loss_of_examples(config, examples(z), examples(z), memory=examples(past, NUM))["loss"]
    # Not even the window itself, drawn again as another example.
    torch.testing.assert_close(loss, by_hand(config, z, past), rtol=1e-6, atol=1e-9)


def test_pairwise_alignment_leaves_overlapping_windows_out() -> None:
    config = ObjectiveConfig(
        modalities=MODALITIES, alignment="pairwise", temperature=0.4, mask_same_caption=()
    )
    z = points()
    parts = loss_of_examples(config, examples(z), examples(z))
    rows = [
        info_nce(
            z["flow"][i] @ z["language"][i] / 0.4,
            [
                z["flow"][i] @ z["language"][j] / 0.4
                for j in range(NUM)
                if j != i and not overlap(i, j)
            ],
        )
        for i in range(NUM)
    ]
    torch.testing.assert_close(parts["flow_to_language"], torch.stack(rows).mean())


def batch_of() -> dict[str, Tensor]:
    return {
        "group": GROUP,
        "clip": CLIP,
        "triplet": torch.arange(NUM),
        "window_start_s": START_S,
        "window_end_s": END_S,
    }


def term_of(**settings: Any) -> ContrastiveTerm:
    term = Objective(ObjectiveConfig(**settings), DIM).double().terms["contrastive"]
    assert isinstance(term, ContrastiveTerm)
    return term


def test_the_setting_keeps_them_and_the_curve_says_how_many_they_are() -> None:
    outputs = {f"z_{name}": z for name, z in points().items()}
    masked, metrics = term_of()(outputs, batch_of())
    assert metrics["overlapping_share"].item() == pytest.approx(2 * len(OVERLAPPING) / NUM**2)
    ids = {name: value for name, value in batch_of().items() if not name.startswith("window")}
    kept, metrics = term_of(overlapping_negatives="keep")(outputs, ids)
    assert "overlapping_share" not in metrics
    plain = Examples(points(), GROUP, torch.arange(NUM))
    torch.testing.assert_close(kept, loss_of_examples(ObjectiveConfig(), plain, plain)["loss"])
    assert masked < kept
    with pytest.raises(ValueError, match="window_start_s"):
        term_of()(outputs, ids)
    with pytest.raises(ValueError, match="overlapping_negatives"):
        ObjectiveConfig(negatives=(), overlapping_negatives="keep")


def test_the_memory_bank_knows_the_windows_of_its_examples() -> None:
    term = term_of(queue_size=NUM, temperature=0.4)
    first = {f"z_{name}": z for name, z in points(1).items()}
    second = {f"z_{name}": z for name, z in points().items()}
    term.train()(first, batch_of())
    later = batch_of() | {"triplet": NUM + torch.arange(NUM)}
    config = ObjectiveConfig(modalities=MODALITIES, temperature=0.4)
    value, _ = term(second, later)
    torch.testing.assert_close(value, by_hand(config, points(), points(1)), rtol=1e-5, atol=1e-6)
    # A checkpoint from before banks knew them: its examples are nobody's siblings.
    term.train()(first, batch_of())
    state = {k: v for k, v in term.state_dict().items() if not k.endswith(("clip", "window_s"))}
    resumed = term_of(queue_size=NUM, temperature=0.4)
    resumed.load_state_dict(state)
    assert math.isfinite(float(resumed(second, later)[0]))
    assert resumed.memory_bank is not None
    assert not math.isclose(float(resumed(second, later)[0]), float(value), rel_tol=1e-6)
