"""Contrastive term: energies of matched triples below those of shuffled ones (InfoNCE).

DynaFLIP (arXiv 2605.30350):
L_align = −log [ e^{−E_pos/τ} / (e^{−E_pos/τ} + Σ_neg e^{−E_neg/τ}) ].
The paper does not say which shuffles are negatives; here each anchored modality is contrasted
with the two others of every other example ("others"), and more by setting.
Shapes: n examples of this process, N of all processes, C columns (N and the memory bank's),
E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from dynaflip.losses.base import LossTerm, TermSetup
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.distributed import global_mean, rank
from dynaflip.losses.energy import energy, energy_matrix, rolled
from dynaflip.losses.examples import Examples, Windows
from dynaflip.losses.inner_products import inner_products
from dynaflip.losses.memory_bank import MemoryBank
from dynaflip.losses.simplex import full_precision, simplex_volume

# A learned temperature stays above this, so that a few wrong captions cannot blow up the loss.
LOWEST_TEMPERATURE = 0.01


class ContrastiveTerm(LossTerm):
    """L_align over energies of matched and shuffled triples.

    Its metrics: ``contrastive_<negatives>`` of each set of negatives; ``volume`` and ``cosine``,
    the energy's two parts over matched examples; ``area_matched`` and ``area_shuffled``, the
    volume over matched ones and over mixtures of different examples; ``overlapping_share``, the
    share of pairs of examples that are no negatives because their windows overlap, where these
    are masked; ``temperature`` where it is learned.
    """

    def __init__(self, setup: TermSetup) -> None:
        """A learned temperature is a parameter, the memory bank's examples are buffers."""
        super().__init__(setup)
        config = self.config = setup.objective
        self.frames = ("t", "next") if "image" in config.modalities else ()
        self.log_temperature: nn.Parameter | None = None
        if config.learn_temperature:
            above = max(config.temperature - LOWEST_TEMPERATURE, 1e-4)
            self.log_temperature = nn.Parameter(torch.tensor(math.log(above)))
        self.memory_bank: MemoryBank | None = None
        if config.queue_size:
            assert setup.embedding_dim is not None, "a memory bank needs the embedding's width"
            self.memory_bank = MemoryBank(
                config.queue_size,
                setup.embedding_dim,
                config.modalities,
                windows=config.masks_overlapping(),
            )
        self.metrics = (
            *(f"contrastive_{name}" for name in part_names(config)),
            *("volume", "cosine", "area_matched", "area_shuffled"),
            *(("overlapping_share",) if config.masks_overlapping() else ()),
            *(("temperature",) if config.learn_temperature else ()),
        )

    def forward(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the sets of negatives; in training the memory bank takes the batch in."""
        masks = self.config.masks_overlapping()
        local = Examples.of(outputs, batch, self.config.modalities, windows=masks)
        everyone = local.gathered()
        memory = None if self.memory_bank is None else self.memory_bank.examples()
        temperature = self.temperature()
        parts = contrastive_loss(
            self.config, local, everyone, temperature=temperature, memory=memory
        )
        if self.memory_bank is not None and self.training:
            self.memory_bank.push(everyone.detached())
        value = parts.pop("loss")
        metrics = {f"contrastive_{name}": part for name, part in parts.items()}
        metrics |= _areas(local.detached(), everyone.detached())
        if masks:
            pairs = (local.example[:, None] != everyone.example[None]) & local.overlap(everyone)
            metrics["overlapping_share"] = pairs.double().mean()
        if isinstance(temperature, Tensor):
            metrics["temperature"] = temperature
        return value, metrics

    def temperature(self) -> Tensor | float:
        """τ: a number, or where it is learned a () tensor with gradient."""
        if self.log_temperature is None:
            return self.config.temperature
        return LOWEST_TEMPERATURE + self.log_temperature.exp()


@torch.no_grad()
def _areas(local: Examples, everyone: Examples) -> dict[str, Tensor]:
    """Mean volume of matched examples and of mixtures of different ones, and the mean cosine."""
    matched = simplex_volume(list(local.points.values())).mean()
    mixed = rolled(everyone.points, {name: k for k, name in enumerate(everyone.points)})
    return {
        "volume": matched,
        "cosine": -energy(local.points, 0.0, 1.0).mean(),
        "area_matched": matched,
        "area_shuffled": simplex_volume(list(mixed.values())).mean(),
    }


def contrastive_loss(
    config: ObjectiveConfig,
    local: Examples,
    everyone: Examples,
    *,
    temperature: Tensor | float | None = None,
    memory: Examples | None = None,
) -> dict[str, Tensor]:
    """L_align of this process: ``loss`` () and its parts by set of negatives, each ().

    Args:
        config: the objective's settings.
        local: this process's n examples, rows ``rank·n …`` of ``everyone``.
        everyone: the N examples of all processes (:meth:`Examples.gathered`).
        temperature: τ; by default the settings'.
        memory: further negatives of "others", of past steps.

    Examples with windows are no negatives of those that they overlap.
    """
    tau = config.temperature if temperature is None else temperature
    if config.alignment == "pairwise":
        parts = _pairwise_rows(config, local, everyone, tau)
    elif not config.negatives:
        parts = {"attraction": energy(local.points, config.volume, config.cosine) / tau}
    else:
        parts = _simplex_rows(config, local, everyone, tau, memory)
    count = local.group.new_full((), len(local.group), dtype=torch.float32)
    means = {name: global_mean(rows.sum(), count) for name, rows in parts.items()}
    return {"loss": torch.stack(list(means.values())).mean(), **means}


def part_names(config: ObjectiveConfig) -> list[str]:
    """The parts that :func:`contrastive_loss` returns with these settings."""
    if config.alignment == "pairwise":
        anchor = config.pairwise_anchor
        others = [name for name in config.modalities if name != anchor]
        return [part for o in others for part in (f"{anchor}_to_{o}", f"{o}_to_{anchor}")]
    if not config.negatives:
        return ["attraction"]
    sets = [name for name in ("others", "swapped") if name in config.negatives]
    parts = [f"{name}_{anchor}" for anchor in config.anchored() for name in sets]
    return [*parts, "shuffled"] if "shuffled" in config.negatives else parts


def _simplex_rows(
    config: ObjectiveConfig,
    local: Examples,
    everyone: Examples,
    tau: Tensor | float,
    memory: Examples | None,
) -> dict[str, Tensor]:
    """Loss of each local example in each set of negatives: name → (n,)."""
    weights = (config.volume, config.cosine)
    matched = energy(local.points, *weights)
    rows: dict[str, Tensor] = {}
    for anchor in config.anchored():
        masked = config.masks(anchor)
        left_out = _left_out(local, everyone, masked)
        if "others" in config.negatives:
            shuffled = [energy_matrix(anchor, local.points, everyone.points, *weights)]
            unwanted = [left_out]
            if memory is not None:
                shuffled.append(energy_matrix(anchor, local.points, memory.points, *weights))
                unwanted.append(_left_out(local, memory, masked))
            columns, out = torch.cat(shuffled, 1), torch.cat(unwanted, 1)
            rows[f"others_{anchor}"] = _info_nce(-matched / tau, -columns / tau, out)
        if "swapped" in config.negatives:
            # The same triples as above, seen from the other modalities.
            columns = energy_matrix(anchor, everyone.points, local.points, *weights).T
            rows[f"swapped_{anchor}"] = _info_nce(-matched / tau, -columns / tau, left_out)
    if "shuffled" in config.negatives:
        columns, left_out = _all_shuffled(config, local, everyone)
        rows["shuffled"] = _info_nce(-matched / tau, -columns / tau, left_out)
    return rows


def _pairwise_rows(
    config: ObjectiveConfig, local: Examples, everyone: Examples, tau: Tensor | float
) -> dict[str, Tensor]:
    """InfoNCE over cosines of the anchor with each other modality, both ways: name → (n,).

    CLIP's loss (arXiv 2103.00020) for each pair, as ImageBind (arXiv 2305.05665) has it.
    With language on either side an entry of one caption group is no negative.
    """
    anchor = config.pairwise_anchor
    rows: dict[str, Tensor] = {}
    for other in config.modalities:
        if other == anchor:
            continue
        masked = bool({anchor, other} & set(config.mask_same_caption))
        left_out = _left_out(local, everyone, masked)
        for one, two in ((anchor, other), (other, anchor)):
            matched = (full_precision(local.points[one]) * full_precision(local.points[two])).sum(
                -1
            )
            columns = inner_products(local.points[one], everyone.points[two])
            rows[f"{one}_to_{two}"] = _info_nce(matched / tau, columns / tau, left_out)
    return rows


def _info_nce(matched: Tensor, shuffled: Tensor, left_out: Tensor) -> Tensor:
    """−log softmax of the matched example among itself and the shuffled ones that count: (n,).

    ``matched`` (n,), ``shuffled`` (n, C), ``left_out`` (n, C) bool. No negative left gives 0.
    """
    negative = shuffled.masked_fill(left_out, -torch.inf)
    return torch.logsumexp(torch.cat([matched[:, None], negative], 1), 1) - matched


def _left_out(local: Examples, columns: Examples, same_caption: bool) -> Tensor:
    """(n, C) bool: columns that are no negatives.

    The example itself, those of its clip whose windows overlap its own, and equal captions.
    """
    left_out = (local.example[:, None] == columns.example[None]) | local.overlap(columns)
    if same_caption:
        left_out = left_out | (local.group[:, None] == columns.group[None])
    return left_out


def _all_shuffled(
    config: ObjectiveConfig, local: Examples, everyone: Examples
) -> tuple[Tensor, Tensor]:
    """Energies of examples put together from different ones, and which to leave out: two (n, M).

    The batch comes in random order, so cyclic shifts are random derangements that all
    processes agree on. A mixture within one caption group is left out where language is masked,
    and one whose examples all overlap each other: it holds one motion and its caption.
    """
    group, size, own = everyone.group, len(everyone.group), len(local.group)
    index = rank() * own + torch.arange(own, device=group.device)
    first, *rest = sorted(everyone.points, key=lambda name: name != "language")
    energies, left_out = [], []
    for shuffle in range(config.shuffles):
        shifts = {name: k * (1 + shuffle) for k, name in enumerate(rest, 1)}
        shifts[first] = 0
        mixed = {n: z[index] for n, z in rolled(everyone.points, shifts).items()}
        energies.append(energy(mixed, config.volume, config.cosine))
        distinct = len({shift % size for shift in shifts.values()}) == len(shifts)
        one_group = torch.ones_like(index, dtype=torch.bool)
        for shift in shifts.values():
            one_group &= (group == group.roll(-shift))[index]
        masked = one_group & ("language" in config.mask_same_caption)
        if everyone.windows is not None:
            masked = masked | _all_overlap(everyone.windows, shifts.values())[index]
        left_out.append(masked if distinct else torch.ones_like(masked))
    return torch.stack(energies, 1), torch.stack(left_out, 1)


def _all_overlap(windows: Windows, shifts: Iterable[int]) -> Tensor:
    """(N,) bool: whether the examples at rows i + shift overlap each other, all of them."""
    rows = torch.arange(len(windows.clip), device=windows.clip.device)
    mixed = [windows[rows.roll(-shift)] for shift in shifts]
    return torch.stack([one.overlap(other) for one, other in combinations(mixed, 2)]).all(0)
