"""Contrastive alignment over energies of matched and shuffled triples.

DynaFLIP (arXiv 2605.30350):
L_align = −log [ e^{−E_pos/τ} / (e^{−E_pos/τ} + Σ_neg e^{−E_neg/τ}) ].
The paper does not say which shuffles are negatives; here each anchored modality is held
against the two others of every other example ("others"), and more by setting.
Shapes: n examples of this process, N of all processes, C columns (N and the queue's), D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.distributed import gather_rows, global_mean, rank
from dynaflip.losses.energy import Points, energy, energy_matrix, rolled
from dynaflip.losses.simplex import full_precision


@dataclass(frozen=True)
class Examples:
    """Embeddings of some examples and who belongs to whom."""

    points: Points  # modality to (N, D) unit vectors
    group: Tensor  # (N,) int caption group, so that paraphrases of a caption are equal
    example: Tensor  # (N,) int id: equal where the same triplet is in the batch twice

    def gathered(self) -> Examples:
        """The examples of all processes, in rank order."""
        points = {name: gather_rows(z) for name, z in self.points.items()}
        return Examples(points, gather_rows(self.group), gather_rows(self.example))

    def detached(self) -> Examples:
        """The same without gradient."""
        points = {name: z.detach() for name, z in self.points.items()}
        return Examples(points, self.group, self.example)


def contrastive_loss(
    config: ObjectiveConfig,
    local: Examples,
    everyone: Examples,
    *,
    temperature: Tensor | float | None = None,
    past: Examples | None = None,
) -> dict[str, Tensor]:
    """L_align of this process: ``loss`` () and its parts by set of negatives, each ().

    Args:
        config: the objective's settings.
        local: this process's n examples, rows ``rank·n …`` of ``everyone``.
        everyone: the N examples of all processes (:meth:`Examples.gathered`).
        temperature: τ; by default the settings'.
        past: further examples that "others" is held against.
    """
    tau = config.temperature if temperature is None else temperature
    if config.alignment == "pairwise":
        parts = _pairwise_rows(config, local, everyone, tau)
    elif not config.negatives:
        parts = {"attraction": energy(local.points, config.volume, config.cosine) / tau}
    else:
        parts = _simplex_rows(config, local, everyone, tau, past)
    count = torch.tensor(float(len(local.group)), device=local.group.device)
    means = {name: global_mean(rows.sum(), count) for name, rows in parts.items()}
    return {"loss": torch.stack(list(means.values())).mean(), **means}


def _simplex_rows(
    config: ObjectiveConfig,
    local: Examples,
    everyone: Examples,
    tau: Tensor | float,
    past: Examples | None,
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
            if past is not None:
                shuffled.append(energy_matrix(anchor, local.points, past.points, *weights))
                unwanted.append(_left_out(local, past, masked))
            columns, out = torch.cat(shuffled, 1), torch.cat(unwanted, 1)
            rows[f"others_{anchor}"] = _info_nce(-matched / tau, -columns / tau, out)
        if "swapped" in config.negatives:
            # The same triples as above, told from the other modalities' side.
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
            mine = full_precision(local.points[one])
            with torch.autocast(mine.device.type, enabled=False):
                matched = (mine * full_precision(local.points[two])).sum(-1)
                columns = mine @ full_precision(everyone.points[two]).T
            rows[f"{one}_to_{two}"] = _info_nce(matched / tau, columns / tau, left_out)
    return rows


def _info_nce(matched: Tensor, shuffled: Tensor, left_out: Tensor) -> Tensor:
    """−log softmax of the matched example among itself and the kept shuffled ones: (n,).

    ``matched`` (n,), ``shuffled`` (n, C), ``left_out`` (n, C) bool. No negative left gives 0.
    """
    negative = shuffled.masked_fill(left_out, -torch.inf)
    return torch.logsumexp(torch.cat([matched[:, None], negative], 1), 1) - matched


def _left_out(local: Examples, columns: Examples, same_caption: bool) -> Tensor:
    """(n, C) bool: columns that are no negatives: the example itself, and equal captions."""
    left_out = local.example[:, None] == columns.example[None]
    if same_caption:
        left_out = left_out | (local.group[:, None] == columns.group[None])
    return left_out


def _all_shuffled(
    config: ObjectiveConfig, local: Examples, everyone: Examples
) -> tuple[Tensor, Tensor]:
    """Energies of examples put together from different ones, and which to leave out: two (n, M).

    The batch comes in random order, so cyclic shifts are random derangements that all
    processes agree on. A mixture within one caption group is left out where language is masked.
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
        left_out.append(masked if distinct else torch.ones_like(masked))
    return torch.stack(energies, 1), torch.stack(left_out, 1)
