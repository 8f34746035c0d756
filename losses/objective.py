"""The training objective: the terms of :data:`dynaflip.losses.terms.TERMS`, weighted and added.

L = Σ weight · term: L_align, L_tcn and L_act of DynaFLIP (arXiv 2605.30350) with weights of 1,
and any further terms that the settings add.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynaflip.errors import UserError
from dynaflip.losses.base import FRAMES, LossTerm, TermSetup
from dynaflip.losses.config import MODALITIES, ObjectiveConfig
from dynaflip.losses.distributed import global_sum, world_size
from dynaflip.losses.terms import TERMS, curve_of

# Curves that the objective and the training step make themselves.
_RESERVED = ("loss", "total", "gradient_norm", "epoch", "lr", "lr_backbone", "share")
# What a batch and its outputs lack where no weighted term names the frame.
_FAR = ("d_far", "image_far")
# Where the temperature and the memory bank were in checkpoints before terms had modules.
_EARLIER_NAMES = {
    "log_temperature": "terms.contrastive.log_temperature",
    "queue.": "terms.contrastive.memory_bank.",
}


class Objective(nn.Module):
    """Loss and named terms of a batch.

    Under ``torch.distributed`` negatives come from all processes, and ``loss`` is scaled so
    that DDP's averaged gradients are those of one process with the whole batch. Every
    process must call with the same number of examples. Terms may have parameters (a learned
    temperature) and buffers (the memory bank): where there are any, train and save them too.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        embedding_dim: int | None = None,
        frame_dim: int | None = None,
    ) -> None:
        """Build every term that the settings weigh.

        Args:
            config: the settings.
            embedding_dim: E, the width of the shared space; a memory bank needs it.
            frame_dim: D, the width of a frame's embedding; a term of your own may need it.

        Raises:
            UserError: a term does not exist, does not import, or refuses its arguments.
        """
        super().__init__()
        self.config = config
        setup = TermSetup(config, embedding_dim, frame_dim)
        names, self.weights = config.terms(), config.weights()
        self.terms = nn.ModuleDict(
            {curve_of(name): _build(name, arguments, setup) for name, arguments in names.items()}
        )
        self._check_names()
        self.register_load_state_dict_pre_hook(_rename_earlier)

    def frames(self) -> tuple[str, ...]:
        """Of t, next and far the frames whose embedding gets gradient.

        Always t, because the weights of the image encoder need some gradient in every step.
        """
        weighted = [self._term(name) for name, weight in self.weights.items() if weight > 0]
        read = {"t"}.union(*(term.frames for term in weighted))
        return tuple(name for name in FRAMES if name in read)

    def forward(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """``loss`` () with gradient; every other entry a () number of the whole batch without.

        ``loss`` is this process's share; their mean over processes is ``total``.

        Args:
            outputs: of ``DynaFLIP.forward``; see :meth:`dynaflip.losses.base.LossTerm.forward`.
            batch: of ``Collate``; see there.

        Returns:
            ``loss``, ``total``, each term unweighted under its name, and the terms' metrics.
        """
        values, metrics = self.evaluate(outputs, batch)
        # A term of weight 0 stays in the sum: DDP wants a gradient for every parameter.
        loss = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        for name in self.weights.keys() - values.keys():
            loss = loss + sum(0.0 * parameter.sum() for parameter in self.terms[name].parameters())
        metrics["total"] = loss
        for name in set(MODALITIES) - set(self.config.modalities):
            loss = loss + 0.0 * outputs[f"z_{name}"].sum()
        return {"loss": loss, **_over_processes({**values, **metrics})}

    def evaluate(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The unweighted terms, () with gradient, and their metrics.

        A term of weight 0 that reads a frame which the batch lacks has none.

        Raises:
            ValueError: a term's value is no number, its metrics are not those that it names, or it
                reads a frame that it does not name.
        """
        values: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for name in self.terms:
            term = self._term(name)
            if not self.weights[name] and not all(f"d_{f}" in outputs for f in term.frames):
                continue
            try:
                value = term(outputs, batch)
            except KeyError as error:
                if error.args[0] not in _FAR or "far" in term.frames:
                    raise
                raise ValueError(
                    f"loss term {name}: reads {error.args[0]}, but `frames` does not name far"
                ) from error
            values[name], more = value if isinstance(value, tuple) else (value, {})
            if values[name].shape != ():
                shape = tuple(values[name].shape)
                raise ValueError(f"loss term {name}: returned shape {shape}, not one number")
            if more.keys() != set(term.metrics):
                raise ValueError(
                    f"loss term {name}: returned the metrics {sorted(more)}, but `metrics` names "
                    f"{sorted(term.metrics)}"
                )
            metrics |= more
        return values, metrics

    def _term(self, name: str) -> LossTerm:
        term = self.terms[name]
        assert isinstance(term, LossTerm)
        return term

    def _check_names(self) -> None:
        taken = set(_RESERVED)
        for name in self.terms:
            term = self._term(name)
            for curve in (name, *term.metrics):
                if curve in taken:
                    raise UserError(
                        f"objective.extra_terms: the term {name} names a curve {curve}, which "
                        "another one has; rename the class or its metric"
                    )
                taken.add(curve)
            if unknown := sorted(set(term.frames) - set(FRAMES)):
                raise UserError(
                    f"objective.extra_terms: the term {name} reads the frames {unknown}; known: "
                    f"{', '.join(FRAMES)}"
                )


def term_class(name: str, arguments: Mapping[str, Any]) -> type[LossTerm]:
    """The class of a term that takes these arguments beside its setup.

    Raises:
        UserError: it does not exist, does not import, is no :class:`LossTerm`, or has no such
            argument.
    """
    setting = f"objective.extra_terms.{name}"
    term = TERMS.resolve(name, setting)
    if not (isinstance(term, type) and issubclass(term, LossTerm)):
        raise UserError(f"{setting}: must be a subclass of {TERMS.contract}, not {term!r}")
    try:
        inspect.signature(term).bind(None, **arguments)
    except TypeError as error:
        raise UserError(f"{setting}: {error}") from None
    return term


def _build(name: str, arguments: Mapping[str, Any], setup: TermSetup) -> LossTerm:
    term = term_class(name, arguments)
    try:
        return term(setup, **arguments)
    except (ValueError, TypeError) as error:
        if not arguments:
            raise
        raise UserError(f"objective.extra_terms.{name}: {error}") from error


def _rename_earlier(module: nn.Module, state: dict[str, Any], prefix: str, *unused: object) -> None:
    """Give what an earlier version saved the names of today."""
    for key in list(state):
        for before, now in _EARLIER_NAMES.items():
            if key.startswith(prefix + before):
                state[prefix + now + key.removeprefix(prefix + before)] = state.pop(key)


def _over_processes(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each term over processes, detached, with one message for all."""
    values = torch.stack([term.detach().float() for term in terms.values()])
    return dict(zip(terms, global_sum(values) / world_size(), strict=True))
