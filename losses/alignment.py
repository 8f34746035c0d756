"""Contrastive alignment over energies of matched and shuffled triples.

DynaFLIP (arXiv 2605.30350):
L_align = −log [ e^{−E_pos/τ} / (e^{−E_pos/τ} + Σ_neg e^{−E_neg/τ}) ].
The paper does not say which shuffles are negatives; here each anchored modality is held
against the two others of every other example ("others"), and more by setting.
Shapes: n examples of this process, N of all processes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.energy import Triples, energy, energy_matrix
from dynaflip.losses.gather import gather_rows, global_mean, rank


def alignment_rows(
    config: ObjectiveConfig, local: Triples, everyone: Triples, group: Tensor
) -> dict[str, Tensor]:
    """Loss of each local example in each set of negatives: name → (n,).

    Args:
        config: weights, temperature, anchors, negatives and the false-negative rule.
        local: this process's n triples, rows ``rank·n …`` of ``everyone``.
        everyone: the N triples of all processes.
        group: (N,) caption group of each, so that paraphrases of a caption are equal.
    """
    num_local = local.image.shape[0]
    index = rank() * num_local + torch.arange(num_local, device=group.device)
    matched = energy(local, config.volume, config.cosine)
    same_example = index[:, None] == torch.arange(len(group), device=group.device)[None]
    same_caption = group[index][:, None] == group[None]
    rows: dict[str, Tensor] = {}
    for anchor in config.anchors:
        left_out = same_example
        if anchor in config.mask_same_caption:
            left_out = left_out | same_caption
        if "others" in config.negatives:
            shuffled = energy_matrix(anchor, local, everyone, config.volume, config.cosine)
            rows[f"others_{anchor}"] = _info_nce(config, matched, shuffled, left_out)
        if "swapped" in config.negatives:
            # The same triples as above, told from the other two modalities' side.
            shuffled = energy_matrix(anchor, everyone, local, config.volume, config.cosine).T
            rows[f"swapped_{anchor}"] = _info_nce(config, matched, shuffled, left_out)
    if "shuffled" in config.negatives:
        shuffled, left_out = _all_shuffled(config, everyone, group, index)
        rows["shuffled"] = _info_nce(config, matched, shuffled, left_out)
    return rows


def alignment_loss(config: ObjectiveConfig, local: Triples, group: Tensor) -> dict[str, Tensor]:
    """L_align of this process: ``loss`` () and its parts by set of negatives, each ().

    Args:
        config: the objective's settings.
        local: this process's n triples.
        group: (n,) int caption group of each.
    """
    everyone = Triples(*(gather_rows(z) for z in local))
    parts = alignment_rows(config, local, everyone, gather_rows(group))
    count = torch.tensor(float(len(group)), device=group.device)
    means = {name: global_mean(rows.sum(), count) for name, rows in parts.items()}
    return {"loss": torch.stack(list(means.values())).mean(), **means}


def _info_nce(
    config: ObjectiveConfig, matched: Tensor, shuffled: Tensor, left_out: Tensor
) -> Tensor:
    """−log softmax of the matched triple among itself and the kept shuffled ones: (n,).

    ``matched`` (n,), ``shuffled`` (n, M), ``left_out`` (n, M) bool. No negative left gives 0.
    """
    positive = -matched / config.temperature
    negative = (-shuffled / config.temperature).masked_fill(left_out, -torch.inf)
    return torch.logsumexp(torch.cat([positive[:, None], negative], 1), 1) - positive


def _all_shuffled(
    config: ObjectiveConfig, everyone: Triples, group: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Triples of three different examples, and which of them to leave out: two (n, M).

    The batch comes in random order, so cyclic shifts are random derangements that all
    processes agree on. A triple within one caption group is left out where language is masked.
    """
    size = len(group)
    energies, left_out = [], []
    for shuffle in range(config.shuffles):
        image, flow = 1 + shuffle, 2 + 2 * shuffle
        distinct = image % size and flow % size and (image - flow) % size
        triples = everyone.rolled(0, image, flow)
        triples = Triples(*(z[index] for z in triples))
        energies.append(energy(triples, config.volume, config.cosine))
        one_group = (group == group.roll(-image)) & (group == group.roll(-flow))
        masked = one_group & ("language" in config.mask_same_caption)
        left_out.append(masked[index] if distinct else torch.ones_like(index, dtype=torch.bool))
    return torch.stack(energies, 1), torch.stack(left_out, 1)
