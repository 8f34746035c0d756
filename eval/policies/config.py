"""Settings of the policies' heads. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from dynaflip.checks import above, at_least, one_of

INPUT_NORMS = ("batch", "floored")


@dataclass(frozen=True)
class BehaviourCloningConfig:
    """Behaviour cloning: see :mod:`dynaflip.eval.policies.behaviour_cloning`."""

    chunk: int = 1
    """Actions foreseen together, and all done before looking again (CortexBench: 1). Each is 1/80
    of a second; robots look 10 to 30 times a second."""

    input_norm: str = "batch"
    """How inputs are brought to one scale: ``batch`` (CortexBench's BatchNorm) or ``floored``: by
    the demonstrations' mean and spread, the spread of a feature not below a tenth of its fellows'.
    BatchNorm divides units that are all but dead on demonstrations by next to nothing, and under
    perturbation they wake: encoders with many such units lose by it, not by what they see."""

    hidden_dim: int = 256
    layers: int = 3
    steps: int = 1500
    batch_size: int = 128
    lr: float = 1.0e-3
    weight_decay: float = 1.0e-4

    def __post_init__(self) -> None:
        _check(self, "chunk", "hidden_dim", "layers", "steps", "batch_size")
        one_of(self, INPUT_NORMS, "input_norm")


@dataclass(frozen=True)
class DiffusionConfig:
    """Diffusion policy: see :mod:`dynaflip.eval.policies.diffusion`."""

    chunk: int = 16
    """Actions foreseen together …"""

    execute: int = 8
    """… and how many of these are done before looking again."""

    input_norm: str = "batch"
    """As behaviour cloning's."""

    hidden_dim: int = 256
    blocks: int = 4
    diffusion_steps: int = 50
    sampling_steps: int = 10
    """Denoising steps when acting."""

    steps: int = 3000
    batch_size: int = 128
    lr: float = 1.0e-3
    weight_decay: float = 1.0e-4

    def __post_init__(self) -> None:
        _check(self, "chunk", "execute", "hidden_dim", "blocks", "steps", "batch_size")
        one_of(self, INPUT_NORMS, "input_norm")
        if self.execute > self.chunk:
            raise ValueError(f"execute ({self.execute}) must not exceed chunk ({self.chunk})")
        if not 1 <= self.sampling_steps <= self.diffusion_steps:
            raise ValueError(
                f"sampling_steps ({self.sampling_steps}) must lie in 1…{self.diffusion_steps}"
            )


@dataclass(frozen=True)
class EndToEndConfig:
    """Training the encoder with the head: :mod:`dynaflip.eval.policies.end_to_end`."""

    steps: int = 1000
    batch_size: int = 32
    encoder_lr: float = 1.0e-4
    lora_rank: int = 16
    """Of the low-rank additions."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "lora_rank")
        above(self, 0, "encoder_lr")


def _check(config: BehaviourCloningConfig | DiffusionConfig, *counts: str) -> None:
    at_least(config, 1, *counts)
    above(config, 0, "lr")
    at_least(config, 0, "weight_decay")
