"""Read-outs find what they are to find, learn with their head, and leave the encoder alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dynaflip.errors import UserError
from dynaflip.eval.policies.base import Demonstrations
from dynaflip.eval.policies.encoder_policy import EncoderPolicy, check_encoder, tokens_of
from dynaflip.eval.policies.readouts.attentive import Attentive
from dynaflip.eval.policies.readouts.base import load_reader, new_reader, reader_state
from dynaflip.eval.policies.readouts.config import AttentiveConfig, SpatialSoftmaxConfig
from dynaflip.eval.policies.readouts.grid import TokenGrid, flatten, grids_of
from dynaflip.eval.policies.readouts.spatial_softmax import SpatialSoftmax, expected_positions
from dynaflip.eval.policies.readouts.token_store import TokenStore
from dynaflip.eval.policies.registry import (
    check_reads,
    head_settings,
    policy_head,
    read_out,
    readout_settings,
)
from dynaflip.eval.rollout import Observation

SMALL: dict[str, dict[str, Any]] = {
    "attentive": {"width": 8, "heads": 2},
    "spatial_softmax": {"maps": 4},
}


class Cells(torch.nn.Module):
    """A frozen encoder whose tokens are the colours of 4 x 4 cells, and of 2 x 2 coarser ones."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.feature_maps(images, 1)[0].flatten(1)

    def feature_maps(self, images: torch.Tensor, scales: int) -> list[torch.Tensor]:
        pixels = self.gain * images.permute(0, 3, 1, 2).float() / 255
        return [torch.nn.functional.adaptive_avg_pool2d(pixels, side) for side in (2, 4)][:scales]


def blobs(number: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images (N, 16, 16, 3) uint8 with a bright cell, and its place (N, 2) in [-1, 1]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, (number, 16, 16, 3), dtype=np.uint8)
    row, column = rng.integers(0, 4, (2, number))
    for image, r, c in zip(images, row, column, strict=True):
        image[4 * r : 4 * r + 4, 4 * c : 4 * c + 4, 0] = 250
    place = (np.stack([column, row], 1) + 0.5) / 2 - 1
    return images, place.astype(np.float32)


def demonstrations(
    readout: str, seed: int = 0, scales: int = 2, norm: str = "batch"
) -> Demonstrations:
    images, place = blobs()
    seen, grids = tokens_of(Cells(), images, scales)
    store = TokenStore(len(seen), grids)
    for start in range(0, len(seen), 100):
        store.append(seen[start : start + 100])
    settings = readout_settings(readout, {**SMALL[readout], "scales": scales})
    return Demonstrations(
        features=np.zeros((len(images), 0), np.float32),
        proprioception=np.zeros((len(images), 1), np.float32),
        actions=place,
        episode=np.arange(len(images)) // 20,
        tokens=store,
        reader=new_reader(read_out(readout), settings, grids, norm=norm, seed=seed),
    )


def test_the_expected_position_of_a_map_is_that_of_a_hand_computation() -> None:
    grid = TokenGrid(rows=2, columns=4, channels=1)
    assert grid.centres()[0].tolist() == [-0.75, -0.5]
    assert grid.centres()[6].tolist() == [0.25, 0.5]  # third column of the second row
    scores = torch.full((1, 8, 2), -1e9)
    scores[0, 6, 0] = 3.0  # one bright cell
    scores[0, 0, 1], scores[0, 3, 1] = math.log(1.0), math.log(3.0)  # two cells, 1 : 3
    x, y, mean_x, mean_y = expected_positions(scores, grid.centres())[0].tolist()
    assert (x, y) == (0.25, 0.5)
    assert mean_x == pytest.approx(0.25 * -0.75 + 0.75 * 0.75)
    assert mean_y == pytest.approx(-0.5)


def test_temperature_scales_and_maps_of_spatial_softmax_do_what_they_say() -> None:
    grids = [TokenGrid(1, 2, 1), TokenGrid(2, 2, 1)]
    built = SpatialSoftmax(grids, SpatialSoftmaxConfig(scales=2, maps=3, temperature=0.5))
    assert built.width == 2 * 3 * 2
    torch.nn.init.ones_(built.score[0].weight)
    torch.nn.init.zeros_(built.score[0].bias)
    tokens = [torch.tensor([[[0.0], [1.0]]]), torch.zeros(1, 4, 1)]
    found = built(tokens)
    right = 1 / (1 + math.exp(-1 / 0.5))
    assert found[0, 0].item() == pytest.approx(0.5 * right - 0.5 * (1 - right))
    assert torch.allclose(found[0, 6:], torch.zeros(6), atol=1e-6)  # evenly: the middle


def test_attention_is_a_weighted_mean_of_values_by_a_hand_computation() -> None:
    torch.manual_seed(0)
    built = Attentive([TokenGrid(2, 2, 3)], AttentiveConfig(width=8, heads=2, queries=2))
    tokens = [torch.randn(5, 4, 3)]
    weights, found = built.attention(tokens), built(tokens)
    assert weights.shape == (5, 2, 2, 4)
    assert torch.allclose(weights.sum(-1), torch.ones(5, 2, 2))
    assert (found.shape, built.width) == ((5, 16), 16)
    x = built.project[0](tokens[0]) + built.places
    keys, values = built.key(x), built.value(x)
    # The second query's first head, by hand: the first 4 of 8 columns.
    scores = keys[:, :, :4] @ built.query[1, :4] / 2
    by_hand = (scores.softmax(1)[:, :, None] * values[:, :, :4]).sum(1)
    assert torch.allclose(found[:, 8:12], by_hand, atol=1e-6)
    everywhere = built.places.unique(dim=0)
    assert len(everywhere) == 4, "each place has a code of its own"


def fitted(head: str, readout: str, norm: str, *, seed: int = 0, **changes: Any) -> tuple[Any, ...]:
    """A policy that was fitted to say where the bright cell is: head, read-out, settings."""
    chosen = {"input_norm": norm, "hidden_dim": 32, "batch_size": 64, "lr": 1e-2, **changes}
    chosen |= {"chunk": 1, "execute": 1, "blocks": 1} if head == "diffusion" else {"layers": 1}
    kind, settings = policy_head(head), head_settings(head, chosen)
    shown = demonstrations(readout, seed, norm=norm)
    return kind.fit(shown, settings, use_proprioception=False, seed=seed), shown.reader, settings


@pytest.mark.parametrize(
    ("readout", "norm"), [("attentive", "batch"), ("spatial_softmax", "std_floor")]
)
def test_a_policy_learns_where_a_thing_is(readout: str, norm: str) -> None:
    head, reader, _ = fitted("behaviour_cloning", readout, norm, steps=120)
    images, place = blobs()
    policy = EncoderPolicy(Cells(), head, use_proprioception=False, reader=reader)
    plan = policy.act(Observation(images, np.zeros((len(images), 1), np.float32)))
    assert np.abs(plan[:, 0] - place).mean() < 0.3 * np.abs(place).mean()


@pytest.mark.parametrize(
    ("head", "readout", "norm"),
    [
        ("behaviour_cloning", "attentive", "std_floor"),
        ("behaviour_cloning", "spatial_softmax", "batch"),
        ("diffusion", "attentive", "batch"),
        ("diffusion", "spatial_softmax", "std_floor"),
    ],
)
def test_a_read_out_learns_with_every_head_repeats_itself_and_is_loaded(
    head: str, readout: str, norm: str
) -> None:
    policy_weights, reader, settings = fitted(head, readout, norm, steps=3)
    assert not reader.training
    own = readout_settings(readout, {**SMALL[readout], "scales": 2})
    loaded_head = policy_head(head).load(policy_weights.state_dict(), settings)
    loaded_reader = load_reader(read_out(readout), own, reader_state(reader), norm=norm)
    images, _ = blobs(6)
    observation = Observation(images, np.zeros((len(images), 1), np.float32))
    encoder = Cells()
    policy, loaded = (
        EncoderPolicy(encoder, a, use_proprioception=False, reader=b)
        for a, b in ((policy_weights, reader), (loaded_head, loaded_reader))
    )
    assert np.array_equal(policy.act(observation), loaded.act(observation))

    again, other = (fitted(head, readout, norm, steps=3, seed=seed)[1] for seed in (0, 1))
    state = reader.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert not all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    # Adding a constant to all scores of a softmax changes nothing: those biases have no gradient.
    idle = ("readout.score.0.bias", "readout.score.1.bias")
    learnt = dict(reader.named_parameters())
    for name, value in demonstrations(readout, norm=norm).reader.named_parameters():
        assert name in idle or not torch.equal(value, learnt[name]), name

    assert encoder.gain.grad is None
    policy.check_features()
    with torch.no_grad():
        encoder.gain.mul_(0.9)
    with pytest.raises(UserError, match="same image gave other features"):
        policy.check_features()


def test_attention_goes_to_the_token_that_tells_the_action() -> None:
    settings = head_settings(
        "behaviour_cloning", {"hidden_dim": 32, "layers": 1, "steps": 200, "lr": 1e-2}
    )
    shown = demonstrations("attentive", scales=1)
    images, _ = blobs()
    # One marked cell holds the action in another channel; the others hold noise there.
    rng = np.random.default_rng(1)
    tokens = rng.uniform(-1, 1, (len(images), 16, 3)).astype(np.float32)
    tokens[:, :, 0] = 0
    marked = rng.integers(0, 16, len(images))
    tokens[np.arange(len(images)), marked, 0] = 1
    store = TokenStore(len(images), [TokenGrid(4, 4, 3)])
    store.append(tokens.reshape(len(images), 48))
    grids = [TokenGrid(4, 4, 3)]
    own = AttentiveConfig(width=16, heads=1)
    reader = new_reader(read_out("attentive"), own, grids, norm="batch", seed=0)
    shown = Demonstrations(
        shown.features, shown.proprioception, tokens[np.arange(len(images)), marked, 1:],
        shown.episode, tokens=store, reader=reader,
    )  # fmt: skip
    policy_head("behaviour_cloning").fit(shown, settings, use_proprioception=False, seed=0)
    normed = reader.norms[0](torch.from_numpy(tokens).view(-1, 3)).view(-1, 16, 3)
    attention = reader.readout.attention([normed])[:, 0, 0].detach()
    assert float(attention[torch.arange(len(images)), marked].median()) > 0.8


def test_tokens_are_standardised_by_channel_with_a_floor_under_the_std() -> None:
    rng = np.random.default_rng(0)
    tokens = (5 + rng.normal(size=(150, 6, 2)) * [2, 1e-6]).astype(np.float32)
    store = TokenStore(150, [TokenGrid(2, 3, 2)])
    store.append(tokens.reshape(150, 12))
    built = new_reader(
        read_out("spatial_softmax"), SpatialSoftmaxConfig(maps=1), [TokenGrid(2, 3, 2)],
        norm="std_floor", seed=0,
    )  # fmt: skip
    built.set_statistics(store)
    spread, mean = built.norms[0].spread, built.norms[0].running_mean
    assert mean.tolist() == pytest.approx(tokens.mean((0, 1)).tolist(), rel=1e-3)
    assert spread[0].item() == pytest.approx(tokens[..., 0].std(), rel=1e-3)
    assert spread[1].item() == pytest.approx(0.1 * spread[0].item() / math.sqrt(2), rel=1e-2)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e7])
def test_stored_tokens_have_eleven_bits_whatever_their_size(size: float) -> None:
    values = size * np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    store = TokenStore(20, [TokenGrid(2, 2, 1), TokenGrid(1, 1, 2)])
    store.append(values[:8])
    store.append(values[8:])
    rows = torch.tensor([13, 2])
    assert np.allclose(store.rows(rows), values[rows], rtol=2**-10, atol=1e-4 * size)
    together = torch.cat(list(store.columns(4, 6)))
    assert np.allclose(together, values[:, 4:], rtol=2**-10, atol=1e-4 * size)
    with pytest.raises(UserError, match="65,504 times as large"):
        store.append(values[:1] * np.float32(1e7))


def test_a_folder_without_room_for_the_tokens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"10 frames need 0\.00 GB in .*No space.*set TMPDIR"):
        TokenStore(10, [TokenGrid(10, 10, 1)])


def test_an_encoder_whose_tokens_depend_on_its_batch_is_refused() -> None:
    images, _ = blobs(4)
    check_encoder(Cells(), images, scales=2)

    class BatchAware(Cells):
        def feature_maps(self, images: torch.Tensor, scales: int) -> list[torch.Tensor]:
            maps = super().feature_maps(images, scales)
            return [one - one.mean(0) for one in maps]

    with pytest.raises(UserError, match="may read its image alone"):
        check_encoder(BatchAware(), images, scales=2)
    with pytest.raises(UserError, match="no feature_maps; set readout to pooled"):
        tokens_of(lambda images: images.float().mean((1, 2)), images, 1)


def test_a_read_out_that_was_fitted_on_other_grids_is_refused() -> None:
    shown = demonstrations("spatial_softmax", scales=1)
    settings = head_settings("behaviour_cloning", {"steps": 1})
    head = policy_head("behaviour_cloning").fit(shown, settings, use_proprioception=False, seed=0)

    class Finer(Cells):
        def feature_maps(self, images: torch.Tensor, scales: int) -> list[torch.Tensor]:
            return super().feature_maps(images, 2)[1:]

    policy = EncoderPolicy(Finer(), head, use_proprioception=False, reader=shown.reader)
    images, _ = blobs(2)
    with pytest.raises(UserError, match="grids 4x4x3, and the read-out was fitted on 2x2x3"):
        policy.act(Observation(images, np.zeros((2, 1), np.float32)))


def test_maps_become_rows_token_by_token() -> None:
    one = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2).float()
    assert grids_of([one]) == (TokenGrid(2, 2, 3),)
    assert flatten([one])[0, :6].tolist() == [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]


def test_mistakes_in_read_outs_are_named() -> None:
    with pytest.raises(UserError, match=r"readout_settings\.maps: read-out pooled .* has: none"):
        readout_settings("pooled", {"maps": 3})
    with pytest.raises(UserError, match=r"width \(10\) must be a multiple of 4 and of heads"):
        readout_settings("attentive", {"width": 10})
    with pytest.raises(UserError, match="temperature must be above 0"):
        readout_settings("spatial_softmax", {"temperature": 0.0})
    with pytest.raises(UserError, match="no readout 'attentiv'; did you mean attentive"):
        read_out("attentiv")
    with pytest.raises(UserError, match="is a type, not a ReadOut"):
        read_out("class:outside_head:LinearSettings")
    with pytest.raises(UserError, match=r"reads pooled features alone .* given attentive"):
        check_reads("class:outside_head:HEAD", "attentive")
    check_reads("class:outside_head:HEAD", "pooled")
    check_reads("diffusion", "attentive")
