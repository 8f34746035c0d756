"""Settings of the policies' heads. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dynaflip.checks import above, at_least, one_of

BATCH, STD_FLOOR = "batch", "std_floor"
FLOAT32, BFLOAT16 = "float32", "bfloat16"
INPUT_NORMS = (BATCH, STD_FLOOR)
_RENAMED_NORM = {"input_norm": {"floored": STD_FLOOR}}


@dataclass(frozen=True)
class BehaviourCloningConfig:
    """Behaviour cloning: see :mod:`dynaflip.eval.policies.behaviour_cloning`."""

    chunk: int = 1
    """Actions that are predicted together, and all executed before the next image is read
    (CortexBench: 1). Each takes one control step, 1/80 s in the default environment; robots read
    10 to 30 images a second."""

    input_norm: str = "batch"
    """How inputs are standardised: ``batch`` (CortexBench's BatchNorm) or ``std_floor``: by the
    demonstrations' mean and std, with a floor under the std of a feature, a tenth of the features'
    root mean square std. BatchNorm divides features that are near-constant on demonstrations by
    almost zero, so that they explode under perturbation: encoders with many such features lose by
    it."""

    hidden_dim: int = 256
    """Width of the hidden layers."""

    layers: int = 3
    """Hidden layers."""

    steps: int = 1500
    """Optimizer steps."""

    batch_size: int = 128
    """Frames of a step."""

    lr: float = 1.0e-3
    """Learning rate at the start; it falls as a cosine."""

    weight_decay: float = 1.0e-4
    """AdamW's weight decay."""

    RENAMED_VALUES: ClassVar[dict[str, dict[str, str]]] = _RENAMED_NORM

    def __post_init__(self) -> None:
        _check(self, "chunk", "hidden_dim", "layers", "steps", "batch_size")
        one_of(self, INPUT_NORMS, "input_norm")
        _check_batch(self)


@dataclass(frozen=True)
class DiffusionConfig:
    """Diffusion policy: see :mod:`dynaflip.eval.policies.diffusion`."""

    chunk: int = 16
    """Actions that are predicted together."""

    execute: int = 8
    """How many of the predicted actions are executed before the next image is read."""

    input_norm: str = "batch"
    """How inputs are standardised, ``batch`` or ``std_floor``, as behaviour_cloning.input_norm."""

    hidden_dim: int = 256
    """Width of the denoiser."""

    blocks: int = 4
    """Residual blocks of the denoiser."""

    diffusion_steps: int = 50
    """Noise levels that it is trained on."""

    sampling_steps: int = 10
    """Denoising steps when acting."""

    steps: int = 3000
    """Optimizer steps."""

    batch_size: int = 128
    """Frames of a step."""

    lr: float = 1.0e-3
    """Learning rate at the start; it falls as a cosine."""

    weight_decay: float = 1.0e-4
    """AdamW's weight decay."""

    RENAMED_VALUES: ClassVar[dict[str, dict[str, str]]] = _RENAMED_NORM

    def __post_init__(self) -> None:
        _check(self, "chunk", "execute", "hidden_dim", "blocks", "steps", "batch_size")
        one_of(self, INPUT_NORMS, "input_norm")
        _check_batch(self)
        if self.execute > self.chunk:
            raise ValueError(f"execute ({self.execute}) must not exceed chunk ({self.chunk})")
        if not 1 <= self.sampling_steps <= self.diffusion_steps:
            raise ValueError(
                f"sampling_steps ({self.sampling_steps}) must lie in 1…{self.diffusion_steps}"
            )


@dataclass(frozen=True)
class EndToEndConfig:
    """Training the encoder with the head: :mod:`dynaflip.eval.policies.end_to_end`."""

    ADDED: ClassVar[tuple[str, ...]] = ("precision",)

    steps: int = 1000
    """Optimizer steps."""

    batch_size: int = 32
    """Images of a step."""

    encoder_lr: float = 1.0e-4
    """The encoder's learning rate; the head has its own."""

    lora_rank: int = 16
    """Rank of the low-rank additions (adaptation ``lora``)."""

    precision: str = FLOAT32
    """Of the encoder's computation while it is trained: float32 (never TF32), or bfloat16
    (autocast), for GPUs that have it. Weights, head and loss stay in float32, and policies act in
    float32. Part of a policy's digest."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "lora_rank")
        at_least(self, 2, "batch_size")  # its head has a BatchNorm
        above(self, 0, "encoder_lr")
        one_of(self, (FLOAT32, BFLOAT16), "precision")


def settings_to_hash(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A head's settings as digests of policies have them: with the words that they were made with.

    So a policy that was fitted before a value was renamed is found again.
    """
    old_words = {new: old for old, new in _RENAMED_NORM["input_norm"].items()}
    hashed = dict(settings)
    if hashed.get("input_norm") in old_words:
        hashed["input_norm"] = old_words[hashed["input_norm"]]
    return hashed


def _check_batch(config: BehaviourCloningConfig | DiffusionConfig) -> None:
    if config.input_norm == "batch" and config.batch_size < 2:
        raise ValueError("batch_size must be at least 2 with input_norm batch: it is normed by it")


def _check(config: BehaviourCloningConfig | DiffusionConfig, *counts: str) -> None:
    at_least(config, 1, *counts)
    above(config, 0, "lr")
    at_least(config, 0, "weight_decay")
