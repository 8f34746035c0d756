"""The repeated blocks of a network in the order in which an image passes them.

A hierarchical network (Swin, ConvNeXt, ResNet) holds its blocks by stage, with other layers
between the stages, so that neither names nor lists say what comes first: a blank image does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dynaflip.errors import UserError


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """A network's blocks: of a plain one its list of layers, of a hierarchical one those in it.

    The list is the outermost one, and of several the one with most weights; a stage in it stands
    for the first list of blocks of one class inside it.
    """
    lists = {n: m for n, m in network.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if not lists:
        return []
    depth = min(name.count(".") for name in lists)
    outer = max((m for n, m in lists.items() if n.count(".") == depth), key=_weights)
    return [block for element in outer for block in _blocks_inside(element)]


def _blocks_inside(element: nn.Module) -> list[nn.Module]:
    for module in element.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module):
            classes = {type(child) for child in module}
            (first, *others) = classes
            if not others and not first.__module__.startswith("torch.nn."):
                return list(module)
    return [element]


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def freeze_first_blocks(
    network: nn.Module, count: int, run: Callable[[], object], setting: str = "frozen_blocks"
) -> None:
    """Do not train the first ``count`` blocks and all that an image passes before the next one.

    Args:
        network: its weights lose their gradient.
        count: number of blocks; 0 freezes nothing.
        run: passes one image through the network.
        setting: for errors.

    Raises:
        UserError: the network has fewer blocks, or does not run them once each.
    """
    if not count:
        return
    blocks = repeated_blocks(network)
    if count > len(blocks):
        raise UserError(f"{setting}: {count} of {len(blocks)} blocks of this model")
    starts, ends = _trace(network, run)
    if any(len(starts.get(block, [])) != 1 for block in blocks):
        raise UserError(
            f"{setting}: {type(network).__name__} does not run each of its blocks once, so that "
            "none is the first; set it to 0"
        )
    blocks.sort(key=lambda block: starts[block])
    border = starts[blocks[count]][0] if count < len(blocks) else ends[blocks[-1]][-1] + 1
    later = {m for m, times in starts.items() if times[-1] >= border}
    trained = {id(p) for module in later for p in module.parameters()}
    for module, times in ends.items():
        if times[-1] < border and module not in later:
            for parameter in module.parameters():
                if id(parameter) not in trained:
                    parameter.requires_grad_(False)


def _trace(
    network: nn.Module, run: Callable[[], object]
) -> tuple[dict[nn.Module, list[int]], dict[nn.Module, list[int]]]:
    """When each module started and ended, by a clock that ticks with each start and end."""
    starts: dict[nn.Module, list[int]] = {}
    ends: dict[nn.Module, list[int]] = {}
    clock = iter(range(10**9))

    def start(module: nn.Module, arguments: object) -> None:
        starts.setdefault(module, []).append(next(clock))

    def end(module: nn.Module, arguments: object, result: object) -> None:
        ends.setdefault(module, []).append(next(clock))

    hooks = []
    for module in network.modules():
        hooks += [module.register_forward_pre_hook(start), module.register_forward_hook(end)]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            run()
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return starts, ends
