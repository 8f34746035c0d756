"""Alignment, temporal and flow terms against plain loops over the definition."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dynaflip.losses.base import TermSetup
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.contrastive import ContrastiveTerm
from dynaflip.losses.contrastive import contrastive_loss as loss_of_examples
from dynaflip.losses.examples import Examples
from dynaflip.losses.flow_prediction import FlowPredictionTerm, flow_prediction_loss
from dynaflip.losses.objective import Objective
from dynaflip.losses.time_contrastive import time_contrastive_loss

NUM, DIM, STEPS, GRID = 6, 5, 3, 4


class Triples(NamedTuple):
    language: Tensor
    image: Tensor
    flow: Tensor


def contrastive_loss(config: ObjectiveConfig, z: Triples, group: Tensor) -> dict[str, Tensor]:
    """Of one process that holds the whole batch, no example twice."""
    examples = Examples(z._asdict(), group, torch.arange(NUM))
    return loss_of_examples(config, examples, examples)


def triples(seed: int = 0) -> Triples:
    generator = torch.Generator().manual_seed(seed)
    return Triples(
        *(F.normalize(torch.randn(NUM, DIM, generator=generator).double()) for _ in range(3))
    )


def one_energy(language: Tensor, image: Tensor, flow: Tensor, config: ObjectiveConfig) -> float:
    u, v = image - language, flow - language
    area = 0.5 * math.sqrt(max(float(u @ u * (v @ v) - (u @ v) ** 2), 0.0))
    return config.volume * area - config.cosine * float(language @ flow)


def by_hand(
    z: Triples, group: Tensor, config: ObjectiveConfig, anchor: str, swapped: bool
) -> float:
    """L_align for one anchored modality, straight from the definition."""
    total = 0.0
    for i in range(NUM):
        matched = math.exp(
            -one_energy(z.language[i], z.image[i], z.flow[i], config) / config.temperature
        )
        others = 0.0
        for j in range(NUM):
            if i == j or (anchor in config.mask_same_caption and group[i] == group[j]):
                continue
            mine, theirs = (j, i) if swapped else (i, j)
            row = dict.fromkeys(("language", "image", "flow"), theirs) | {anchor: mine}
            e = one_energy(
                z.language[row["language"]], z.image[row["image"]], z.flow[row["flow"]], config
            )
            others += math.exp(-e / config.temperature)
        total -= math.log(matched / (matched + others))
    return total / NUM


@pytest.mark.parametrize("anchor", ["image", "language", "flow"])
@pytest.mark.parametrize("negatives", ["others", "swapped"])
def test_alignment_is_the_definition(anchor: str, negatives: str) -> None:
    group = torch.tensor([0, 0, 1, 2, 1, 3])
    config = ObjectiveConfig(
        anchors=(anchor,), negatives=(negatives,), volume=0.8, cosine=1.2, temperature=0.3
    )
    z = triples()
    expected = by_hand(z, group, config, anchor, negatives == "swapped")
    assert contrastive_loss(config, z, group)["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_same_caption_is_no_negative_for_language_alone() -> None:
    z, same, distinct = triples(), torch.zeros(NUM).long(), torch.arange(NUM)
    parts = contrastive_loss(ObjectiveConfig(), z, same)
    assert parts["others_language"].item() == pytest.approx(0.0)  # no negative is left
    unmasked = contrastive_loss(ObjectiveConfig(), z, distinct)
    for anchor in ("image", "flow"):
        assert parts[f"others_{anchor}"] == unmasked[f"others_{anchor}"]
    every = ObjectiveConfig(mask_same_caption=("image", "language", "flow"))
    assert contrastive_loss(every, z, same)["loss"].item() == pytest.approx(0.0)


@pytest.mark.parametrize("anchors", [(), ("image",), ("language",)])
def test_of_image_and_language_equal_captions_are_no_negatives_from_either_side(
    anchors: tuple[str, ...],
) -> None:
    """A solved batch of two captions, each with a paraphrase: nothing is left to push apart."""
    config = ObjectiveConfig(modalities=("image", "language"), anchors=anchors)
    group = torch.tensor([0, 0, 1, 1])
    caption = torch.tensor([[1.0, 0.1, 0], [1.0, -0.1, 0], [0, 0.1, 1.0], [0, -0.1, 1.0]])
    z = F.normalize(caption.double(), dim=1).requires_grad_()
    examples = Examples({"image": z, "language": z}, group, torch.arange(4))
    loss = loss_of_examples(config, examples, examples)["loss"]
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.autograd.grad(loss, z)[0].abs().max() < 1e-4


def test_shuffled_negatives_come_from_three_examples_and_other_captions() -> None:
    config = ObjectiveConfig(negatives=("shuffled",), shuffles=2, temperature=0.5)
    z, group = triples(), torch.arange(NUM)
    total = 0.0
    for i in range(NUM):
        matched = math.exp(-one_energy(z.language[i], z.image[i], z.flow[i], config) / 0.5)
        rows = [((i + 1) % NUM, (i + 2) % NUM), ((i + 2) % NUM, (i + 4) % NUM)]
        others = sum(
            math.exp(-one_energy(z.language[i], z.image[j], z.flow[k], config) / 0.5)
            for j, k in rows
        )
        total -= math.log(matched / (matched + others))
    assert contrastive_loss(config, z, group)["loss"].item() == pytest.approx(total / NUM)
    assert contrastive_loss(config, z, torch.zeros(NUM).long())["loss"].item() == pytest.approx(0.0)


def test_temporal_is_the_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    d_t, d_next, d_far = torch.randn(3, 4, DIM, generator=generator).double()
    clip = torch.tensor([0, 0, 1, 2])
    far_valid = torch.tensor([True, False, True, True])
    # The next frames of other clips, in cyclic order.
    others = [[2, 3], [2, 3], [3, 0], [0, 1]]
    total = 0.0
    for i in range(4):
        near = math.exp(-float((d_t[i] - d_next[i]).norm()))
        rest = sum(math.exp(-float((d_t[i] - d_next[j]).norm())) for j in others[i])
        if far_valid[i]:
            rest += math.exp(-float((d_t[i] - d_far[i]).norm()))
        total -= math.log(near / (near + rest))
    loss = time_contrastive_loss(
        d_t, d_next, d_far, far_valid, clip, num_negatives=2, temperature=1.0
    )
    assert loss.item() == pytest.approx(total / 4)


def test_temporal_of_equal_frames_and_of_nothing_to_contrast() -> None:
    d = torch.ones(3, DIM, requires_grad=True)
    clip, valid = torch.zeros(3).long(), torch.tensor([True, True, False])
    loss = time_contrastive_loss(d, d * 1, d * 1, valid, clip, num_negatives=3, temperature=1.0)
    loss.backward()
    # Two examples have a far frame, at the near one's distance; the third has nothing.
    assert loss.item() == pytest.approx(math.log(2))
    assert d.grad is not None
    assert d.grad.isfinite().all()


def flow_example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = (2, STEPS, GRID, GRID)
    prediction = torch.randn(*shape, 3, generator=generator).double()
    displacement_m = torch.randn(*shape, 3, generator=generator).double()
    visible = torch.rand(shape, generator=generator) < 0.6
    return prediction, displacement_m, visible, torch.tensor([0.5, 2.0]).double()


def test_flow_error_is_over_visible_points_in_median_depths() -> None:
    prediction, displacement_m, visible, depth_m = flow_example()
    target = displacement_m / depth_m.view(2, 1, 1, 1, 1)
    error = (prediction - target)[visible].square().sum(-1).mean()
    loss = flow_prediction_loss(
        prediction, displacement_m, visible, depth_m, scale="none", scale_floor=0.01
    )
    torch.testing.assert_close(loss, error)
    still = flow_prediction_loss(
        torch.zeros_like(prediction), displacement_m, visible, depth_m,
        scale="motion", scale_floor=0.01,
    )  # fmt: skip
    assert still.item() == pytest.approx(1.0)


def test_invisible_points_carry_neither_loss_nor_gradient() -> None:
    prediction, displacement_m, visible, depth_m = flow_example()
    hidden = displacement_m.masked_fill(~visible.unsqueeze(-1), torch.nan)
    losses = []
    for target in (displacement_m, hidden):
        leaf = prediction.clone().requires_grad_()
        loss = flow_prediction_loss(
            leaf, target, visible, depth_m, scale="motion", scale_floor=0.01
        )
        loss.backward()
        assert leaf.grad is not None
        assert (leaf.grad[~visible] == 0).all()
        assert (leaf.grad[visible] != 0).all()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    nothing = flow_prediction_loss(
        prediction, hidden, torch.zeros_like(visible), depth_m, scale="motion", scale_floor=0.01
    )
    assert nothing.item() == 0.0


def test_objective_is_the_weighted_sum_of_its_named_terms() -> None:
    z = triples()
    generator = torch.Generator().manual_seed(3)
    shape = (NUM, STEPS, GRID, GRID)
    frames = torch.randn(3, NUM, DIM, generator=generator).double()
    outputs = {
        **dict(zip(("z_language", "z_image", "z_flow"), z, strict=True)),
        **dict(zip(("d_t", "d_next", "d_far"), frames, strict=True)),
        "flow_prediction": torch.randn(*shape, 3, generator=generator).double(),
    }
    batch = {
        "group": torch.tensor([0, 0, 1, 1, 2, 3]),
        "clip": torch.tensor([0, 1, 2, 3, 4, 4]),
        "triplet": torch.arange(NUM),
        "window_start_s": torch.arange(NUM).double(),
        "window_end_s": torch.arange(NUM) + 0.5,
        "far_valid": torch.ones(NUM, dtype=torch.bool),
        "flow_displacement_m": torch.randn(*shape, 3, generator=generator).double(),
        "flow_visible": torch.ones(shape, dtype=torch.bool),
        "median_depth_m": torch.ones(NUM).double(),
    }
    weights = {"contrastive": 0.5, "temporal": 2.0, "flow": 3.0, "direct": 0.25}
    terms = Objective(ObjectiveConfig(**weights))(outputs, batch)
    expected = sum(weight * terms[name].item() for name, weight in weights.items())
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-5)
    paper = Objective(ObjectiveConfig())(outputs, batch)
    assert paper["loss"].item() == pytest.approx(
        sum(paper[name].item() for name in ("contrastive", "temporal", "flow")), rel=1e-5
    )
    assert all(value.isfinite() and value.shape == () for value in paper.values())


def test_interpolated_steps_carry_neither_loss_nor_gradient() -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (NUM, STEPS, GRID, GRID)
    prediction = torch.randn(*shape, 3, generator=generator).double().requires_grad_()
    measured = torch.rand(NUM, STEPS, generator=generator) < 0.5
    batch = {
        "flow_displacement_m": torch.randn(*shape, 3, generator=generator).double(),
        "flow_visible": torch.rand(shape, generator=generator) < 0.7,
        "median_depth_m": torch.ones(NUM).double(),
    }
    term = FlowPredictionTerm(TermSetup(ObjectiveConfig()))
    outputs = {"flow_prediction": prediction}
    value = term(outputs, {**batch, "flow_measured": measured})
    (gradient,) = torch.autograd.grad(value, prediction)
    carries = batch["flow_visible"] & measured[:, :, None, None]
    assert torch.equal(gradient.ne(0).any(-1), carries)
    hidden = term(outputs, {**batch, "flow_visible": carries})
    assert value.item() == pytest.approx(hidden.item(), rel=1e-12)
    everything = term(outputs, {**batch, "flow_measured": torch.ones_like(measured)})
    assert everything.item() == term(outputs, batch).item() != value.item()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("volume", -1.0),
        ("flow", -0.1),
        ("cosine", math.nan),
        ("direct", math.inf),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("anchors", ("images",)),
        ("anchors", ("flow", "flow")),
        ("negatives", ("others", "others")),
        ("modalities", ("image",)),
        ("modalities", ("image", "touch")),
        ("queue_size", -1),
        ("overlapping_negatives", "drop"),
        ("alignment", "triangle"),
        ("shuffles", 0),
        ("flow_scale", "metres"),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        ObjectiveConfig(**{name: value})  # type: ignore[arg-type]


def test_direct_minimisation_is_off_and_collapse_shows_in_the_areas() -> None:
    assert ObjectiveConfig().direct == 0
    z = triples()
    point = Triples(*(z.language[:1].expand(NUM, -1) for _ in range(3)))
    areas = []
    for share in (0.0, 0.5, 1.0):
        mixed = Triples(
            *(F.normalize((1 - share) * a + share * b) for a, b in zip(z, point, strict=True))
        )
        outputs = dict(zip(("z_language", "z_image", "z_flow"), mixed, strict=True))
        areas.append(_areas(outputs))
    assert all(later < earlier for earlier, later in pairwise(areas))
    assert areas[-1] == 0


def _areas(outputs: dict[str, Tensor]) -> float:
    from dynaflip.losses.simplex import simplex_volume

    return float(simplex_volume([outputs[f"z_{name}"] for name in Triples._fields]).sum())


def batch_of(num: int = NUM) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shape = (num, STEPS, GRID, GRID)
    return {
        "group": torch.arange(num),
        "clip": torch.arange(num),
        "triplet": torch.arange(num),
        "window_start_s": torch.arange(num).double(),
        "window_end_s": torch.arange(num) + 0.5,
        "far_valid": torch.ones(num, dtype=torch.bool),
        "flow_displacement_m": torch.randn(*shape, 3, generator=generator).double(),
        "flow_visible": torch.ones(shape, dtype=torch.bool),
        "median_depth_m": torch.ones(num).double(),
    }


def outputs_of(seed: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(3, NUM, DIM, generator=generator).double()
    outputs = {f"z_{name}": z for name, z in triples(seed)._asdict().items()}
    outputs |= dict(zip(("d_t", "d_next", "d_far"), frames, strict=True))
    shape = (NUM, STEPS, GRID, GRID, 3)
    outputs["flow_prediction"] = torch.randn(*shape, generator=generator).double()
    return {name: value.requires_grad_() for name, value in outputs.items()}


def test_without_negatives_both_contrasts_lose_their_denominators() -> None:
    outputs, batch = outputs_of(), batch_of()
    config = ObjectiveConfig(negatives=(), temperature=0.5)
    terms = Objective(config)(outputs, batch)
    z = [outputs[f"z_{name}"] for name in Triples._fields]
    energies = [one_energy(*(p[i].detach() for p in z), config) for i in range(NUM)]
    assert terms["contrastive"].item() == pytest.approx(sum(energies) / NUM / 0.5, rel=1e-5)
    apart = (outputs["d_t"] - outputs["d_next"]).norm(dim=1).mean()
    assert terms["temporal"].item() == pytest.approx(apart.item(), rel=1e-5)
    # What is missing: the loss of one and the same point for everything is the lowest there is.
    collapsed = {k: v.detach() for k, v in outputs.items()}
    for name in ("z_language", "z_image", "z_flow", "d_t", "d_next", "d_far"):
        collapsed[name] = outputs["z_image"][:1].detach().expand(NUM, -1)
    lowest = Objective(config)(collapsed, batch)
    assert lowest["contrastive"].item() == pytest.approx(-1 / 0.5)
    assert lowest["temporal"].item() == 0.0


@pytest.mark.parametrize("left_out", ["flow", "language"])
def test_a_modality_left_out_has_no_say_but_a_gradient(left_out: str) -> None:
    modalities = tuple(name for name in ("image", "language", "flow") if name != left_out)
    objective = Objective(ObjectiveConfig(modalities=modalities, temperature=0.3))
    outputs, batch = outputs_of(), batch_of()
    loss = objective(outputs, batch)["loss"]
    loss.backward()
    gradient = outputs[f"z_{left_out}"].grad
    assert gradient is not None
    assert (gradient == 0).all()
    assert outputs["z_image"].grad is not None
    assert (outputs["z_image"].grad != 0).any()
    other = {**outputs, f"z_{left_out}": -outputs[f"z_{left_out}"].detach()}
    assert objective(other, batch)["loss"].item() == loss.item()
    # By hand: a segment's length and the cosine of its two ends.
    one, two = (outputs[f"z_{name}"].detach() for name in modalities)
    energies = (one[:, None] - two[None]).norm(dim=-1) - one @ two.T
    rows = torch.log_softmax(-energies / 0.3, 1).diagonal()
    columns = torch.log_softmax(-energies / 0.3, 0).diagonal()
    terms = objective(outputs, batch)
    assert terms["contrastive"].item() == pytest.approx(-(rows + columns).mean().item() / 2)


def test_pairwise_alignment_is_clip_s_loss_of_the_anchor_with_each_other() -> None:
    z, group = triples(), torch.tensor([0, 0, 1, 2, 1, 3])
    config = ObjectiveConfig(alignment="pairwise", temperature=0.4)
    parts = contrastive_loss(config, z, group)
    names = {f"{a}_to_{b}" for a, b in (("language", "image"), ("language", "flow"))}
    assert set(parts) - {"loss"} == names | {"image_to_language", "flow_to_language"}
    total = 0.0
    for i in range(NUM):
        kept = [j for j in range(NUM) if j == i or group[j] != group[i]]
        scores = torch.stack([z.flow[i] @ z.language[j] / 0.4 for j in kept])
        total -= float(torch.log_softmax(scores, 0)[kept.index(i)])
    assert parts["flow_to_language"].item() == pytest.approx(total / NUM)
    with pytest.raises(ValueError, match="alignment"):
        ObjectiveConfig(alignment="pairwise", negatives=())


def test_the_queue_holds_past_examples_as_negatives_but_for_the_example_itself() -> None:
    config = ObjectiveConfig(queue_size=NUM + 2, anchors=("image",))
    objective = Objective(config, DIM).double()
    batch, first, second = batch_of(), outputs_of(5), outputs_of(6)
    alone = Objective(ObjectiveConfig(anchors=("image",)))
    assert objective(first, batch)["contrastive"] == alone(first, batch)["contrastive"]
    # The second step's examples are the first's: each is spared its own past.
    terms = objective(second, batch)
    energies = torch.zeros(NUM, 2 * NUM)
    for i in range(NUM):
        for j in range(2 * NUM):
            source = second if j < NUM else first
            own = (second["z_language"][i], second["z_flow"][i]) if j == i else None
            language, flow = own or (source["z_language"][j % NUM], source["z_flow"][j % NUM])
            energies[i, j] = one_energy(language, second["z_image"][i], flow, config)
    scores = -energies / config.temperature
    scores[torch.arange(NUM), NUM + torch.arange(NUM)] = -torch.inf
    expected = -torch.log_softmax(scores, 1).diagonal().mean()
    assert terms["contrastive"].item() == pytest.approx(expected.item(), rel=1e-4)
    contrastive = objective.terms["contrastive"]
    assert isinstance(contrastive, ContrastiveTerm)
    assert contrastive.memory_bank is not None
    # Q = 8 places, 12 written: the newest 8 are held, 2 of the first step's and all 6 of later.
    held = contrastive.memory_bank.examples()
    assert held is not None
    newest = torch.cat([first["z_image"][-2:], second["z_image"]]).detach()
    assert sorted(held.points["image"][:, 0].tolist()) == sorted(newest[:, 0].tolist())


def test_a_learned_temperature_starts_at_the_setting_and_follows_its_gradient() -> None:
    objective = Objective(ObjectiveConfig(learn_temperature=True, temperature=0.2))
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
    outputs, batch = outputs_of(), batch_of()
    losses = []
    for _ in range(20):
        terms = objective(outputs, batch)
        losses.append(terms["contrastive"].item())
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    fresh = Objective(objective.config)(outputs, batch)
    assert fresh["temperature"].item() == pytest.approx(0.2)
    assert losses[-1] < losses[0]
    assert terms["temperature"].item() != pytest.approx(0.2, abs=1e-3)
    with pytest.raises(ValueError, match="learn_temperature"):
        ObjectiveConfig(learn_temperature=True, negatives=())
