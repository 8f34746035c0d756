"""Retrieval on embeddings whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dynaflip.eval.metrics.embedding_spread import effective_rank, mean_squared_distance
from dynaflip.eval.retrieval import (
    Embeddings,
    candidate_mask,
    energy,
    flow_scores,
    image_scores,
    language_scores,
    report_of,
    swap_conditions,
    top1,
)
from dynaflip.losses import energy as losses_energy
from dynaflip.losses.examples import Windows

TASKS, RECORDINGS, WINDOWS, WIDTH = 4, 5, 3, 32


def labels() -> tuple[Tensor, Tensor, Tensor]:
    """Task, clip and recording of 4 tasks × 5 recordings × 3 transitions."""
    recording = torch.arange(TASKS * RECORDINGS).repeat_interleave(WINDOWS)
    return recording // RECORDINGS, recording + 100, recording


def unit(shape: tuple[int, ...], seed: int) -> Tensor:
    points = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(points, dim=-1)


def embedded(language: Tensor, image: Tensor, flow: Tensor, swapped: Tensor | None) -> Embeddings:
    task, clip, recording = labels()
    return Embeddings(language, image, flow, swapped, task, clip, recording)


def test_perfect_alignment_is_found_in_every_scope() -> None:
    task, _, _ = labels()
    language = unit((TASKS, WIDTH), 0)[task]
    image = torch.nn.functional.normalize(language + 0.5 * unit((len(task), WIDTH), 1), dim=-1)
    report = report_of(embedded(language, image, image, image))
    for scope in ("all", "task", "clip", "all_swapped", "task_swapped", "flow_query"):
        assert report[f"retrieval/{scope}/top1"] == 1.0
    assert report["area/matched"] < 0.1 * report["area/shuffled"]


def test_within_a_clip_overlapping_windows_set_a_ceiling() -> None:
    task, clip, _ = labels()
    points = unit((len(task), WIDTH), 5)
    plain = embedded(points, points, points, None)
    assert "retrieval/clip/ceiling" not in report_of(plain)
    starts_s = torch.arange(WINDOWS).repeat(TASKS * RECORDINGS).double()
    # By hand: windows apart are all told apart; where each overlaps its neighbours the middle one
    # of three is one of three alike and the outer ones one of two; and all alike are chance.
    ceilings = {0.5: 1.0, 1.5: (1 / 2 + 1 / 3 + 1 / 2) / 3, 9.0: 1 / 3}
    for length_s, ceiling in ceilings.items():
        windows = Windows(clip, torch.stack([starts_s, starts_s + length_s], 1))
        found = report_of(replace(plain, windows=windows))
        assert found["retrieval/clip/ceiling"] == pytest.approx(ceiling)
    assert found["retrieval/clip/chance"] == pytest.approx(found["retrieval/clip/ceiling"])


def test_random_embeddings_score_near_chance_and_the_interval_holds_it() -> None:
    task, _, _ = labels()
    image, flow = unit((len(task), WIDTH), 2), unit((len(task), WIDTH), 3)
    report = report_of(embedded(unit((TASKS, WIDTH), 4)[task], image, flow, None))
    for scope, chance in {"all": 1 / 60, "task": 1 / 15, "clip": 1 / 3}.items():
        assert report[f"retrieval/{scope}/chance"] == pytest.approx(chance)
        low, high = (report[f"retrieval/{scope}/{end}"] for end in ("low", "high"))
        assert low <= chance <= high + 0.02
    assert "retrieval/all_swapped/top1" not in report


def test_collapse_scores_exactly_chance_and_shows_in_rank_and_spread() -> None:
    task, _, _ = labels()
    point = unit((1, WIDTH), 5).expand(len(task), -1)
    report = report_of(embedded(point, point, point, point))
    assert report["retrieval/all/top1"] == pytest.approx(report["retrieval/all/chance"])
    assert report["retrieval/task_swapped/top1"] == pytest.approx(1 / 15)
    assert report["effective_rank/image"] == 1.0
    assert report["spread/flow"] == pytest.approx(0, abs=1e-12)


def test_condition_swap_takes_away_what_only_the_scene_token_gave() -> None:
    task, clip, recording = labels()
    scene = unit((len(clip), WIDTH), 6)
    donors = swap_conditions(clip, recording, task)
    assert donors is not None
    language = unit((TASKS, WIDTH), 7)[task]
    report = report_of(embedded(language, scene, scene, scene[donors]))
    assert report["retrieval/task/top1"] > 0.9
    assert report["retrieval/task_swapped/top1"] < 0.2


def test_masks_by_task_and_clip() -> None:
    both = embedded(*(unit((60, WIDTH), s) for s in (8, 9, 10)), None)
    assert candidate_mask(both, "all").sum(1).tolist() == [60] * 60
    assert candidate_mask(both, "task").sum(1).tolist() == [15] * 60
    assert candidate_mask(both, "clip").sum(1).tolist() == [3] * 60


def test_top1_shares_ties_and_skips_queries_without_a_choice() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 5.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.bool)
    hits, chance = top1(scores, mask)
    np.testing.assert_allclose(hits, [0.5, 1.0, np.nan])
    np.testing.assert_allclose(chance, [1 / 3, 1 / 3, np.nan])


def test_scores_are_the_energy_of_each_triple() -> None:
    language, image, flow = (unit((6, WIDTH), s) for s in (11, 12, 13))

    def by_hand(row: int, image_row: int, flow_row: int) -> float:
        u, v = image[image_row] - language[row], flow[flow_row] - language[row]
        gram = torch.stack([u, v]) @ torch.stack([u, v]).T
        cosine = language[row] @ flow[flow_row]
        return -(0.7 * 0.5 * torch.linalg.det(gram).sqrt() - 0.3 * cosine).item()

    weights = {"volume": 0.7, "cosine": 0.3}
    for q in range(6):
        for c in range(6):
            for scores, triple in (
                (image_scores, (c, q, c)),
                (flow_scores, (c, c, q)),
                (language_scores, (q, c, c)),
            ):
                found = scores(language, image, flow, **weights)[q, c].item()
                assert found == pytest.approx(by_hand(*triple), abs=1e-9)


def test_energy_agrees_with_the_training_loss() -> None:
    language, image, flow = (unit((50, WIDTH), s) for s in (14, 15, 16))
    products = [(a * b).sum(-1) for a, b in ((image, language), (language, flow), (image, flow))]
    triples = {"language": language, "image": image, "flow": flow}
    trained = losses_energy.energy(triples, 2.0, 3.0)
    torch.testing.assert_close(energy(*products, 2.0, 3.0), trained)
    matrix = losses_energy.energy_matrix("image", triples, triples, 2.0, 3.0)
    torch.testing.assert_close(-image_scores(language, image, flow, volume=2.0, cosine=3.0), matrix)


def test_condition_comes_from_another_recording_of_the_same_task() -> None:
    task, clip, recording = labels()
    donors = swap_conditions(clip, recording, task)
    assert donors is not None
    assert (recording[donors] != recording).all()
    assert (task[donors] == task).all()
    assert torch.equal(donors, swap_conditions(clip, recording, task))


def test_two_cameras_of_a_recording_never_lend_to_each_other() -> None:
    recording = torch.tensor([0, 0, 1, 1, 2, 2])
    clip = torch.arange(6)
    donors = swap_conditions(clip, recording, torch.zeros(6, dtype=torch.int64))
    assert donors is not None
    assert (recording[donors] != recording).all()


def test_a_task_with_one_recording_borrows_from_another_task() -> None:
    recording = torch.tensor([0, 1, 2, 3])
    task = torch.tensor([0, 0, 0, 1])
    donors = swap_conditions(recording, recording, task)
    assert donors is not None
    assert (recording[donors] != recording).all()
    assert (task[donors][:3] == 0).all()
    one = torch.zeros(4, dtype=torch.int64)
    assert swap_conditions(recording, one, task) is None


def test_effective_rank_of_known_spectra() -> None:
    basis = torch.eye(8, dtype=torch.float64)
    assert effective_rank(torch.cat([basis, -basis])) == pytest.approx(8.0)
    line = torch.linspace(-1, 1, 9)[:, None] * basis[:1]
    assert effective_rank(line) == pytest.approx(1.0)
    assert effective_rank(torch.ones(5, 8)) == 1.0
    assert mean_squared_distance(torch.cat([basis, -basis])) == pytest.approx(1.0)
