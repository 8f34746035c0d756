"""Settings of pretraining, the single place for their defaults (no torch in here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dynaflip.checks import above, at_least, one_of, share, within
from dynaflip.encoders.config import FlowConfig, ModelConfig
from dynaflip.losses.config import ObjectiveConfig

# Raised when the same settings and triplets give other weights than before, so that --reuse does
# not take an earlier encoder for one of today.
PRETRAIN_VERSION = 4


@dataclass(frozen=True)
class DataConfig:
    """How triplets become training batches."""

    RENAMED: ClassVar[dict[str, str]] = {
        "jitter_per_picture": "jitter_per_image",
        "shuffle_buffer_rows": "shuffle_buffer_mb",
    }
    RESCALED: ClassVar[dict[str, float]] = {"shuffle_buffer_rows": 0.1}  # 100 kB a row
    ADDED: ClassVar[tuple[str, ...]] = ("decode_threads",)

    batch_size: int = 32
    """Samples of a worker in a step, at least 2; negatives come from the batches of all workers."""

    shuffle_buffer_mb: float = 512.0
    """Size of the shuffle buffer that a worker's batches are drawn from, in megabytes (10⁶ bytes)
    of encoded images and flow, about 100 kB a row. Clips come in random order in any case; the
    buffer parts the rows of a clip. One that holds all rows of a worker is a full shuffle."""

    jitter_brightness: float = 0.1
    """Colour jitter of brightness: factors are drawn from 1 ± this, in [0, 1] (paper: 0.1); 0 =
    off."""

    jitter_contrast: float = 0.1
    """Colour jitter of contrast: factors are drawn from 1 ± this, in [0, 1] (paper: 0.1); 0 =
    off."""

    jitter_saturation: float = 0.05
    """Colour jitter of saturation: factors are drawn from 1 ± this, in [0, 1] (paper: 0.05); 0 =
    off."""

    jitter_hue: float = 0.02
    """Colour jitter of hue: rotations are drawn from 0 ± this, in turns of the colour circle, at
    most 0.5 (paper: 0.02); 0 = off."""

    jitter_per_image: bool = False
    """Draw new jitter for each image of a sample. Off: the images of one sample change alike, so
    that their difference shows motion and not jitter."""

    patches: int = 0
    """Random erasing: at most this many patches of random texture are laid over an image (objects,
    shadows and surfaces), drawn for each image of a sample alone. 0 = none (paper)."""

    crop_min_share: float = 1.0
    """Random crop: smallest side of the window as a share of the image's sides, in (0, 1]; all
    images of a sample have the same window. 1 = no crop. The 3D flow stays that of the whole image,
    so a crop makes its prediction harder."""

    prefetch_batches: int = 2
    """Batches that are decoded ahead of the training step."""

    decode_threads: int | None = None
    """Threads of a worker that decode images; none = `train.threads`, or else the worker's share of
    its machine's CPUs."""

    source_weights: dict[str, float] = field(default_factory=dict)
    """Share of samples from each source (a triplet's column `source`), as weights, e.g. {sim: 1,
    ego: 2}; a source that is not named has 0. Rows are repeated or left out at random until the
    shares are met, and an epoch keeps its length. Empty = the weights that the triplets were made
    with, and where those are all equal every triplet once an epoch."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        at_least(self, 2, "batch_size")  # one sample has no negatives
        at_least(self, 1, "prefetch_batches", "decode_threads")
        above(self, 0, "shuffle_buffer_mb")
        share(self, "jitter_brightness", "jitter_contrast", "jitter_saturation")
        within(self, 0, 0.5, "jitter_hue")  # turns
        at_least(self, 0, "patches")
        within(self, 0, 1, "crop_min_share", ends="(]")
        for source, weight in self.source_weights.items():
            if not weight >= 0:
                raise ValueError(f"source_weights.{source} must be at least 0, not {weight:g}")
        if self.source_weights and not any(self.source_weights.values()):
            raise ValueError("source_weights: all are 0")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 1e-4
    """Peak learning rate, of the heads (paper: 1e-4)."""

    backbone_lr_scale: float = 1.0
    """Factor on the learning rate of the image backbone: below 1 it keeps more of its
    initialisation; 0 freezes it."""

    weight_decay: float = 1e-2
    """Decoupled weight decay (paper: 1e-2); norms, biases and single learned tokens have none."""

    beta1: float = 0.9
    """AdamW's decay of the running mean of gradients, in [0, 1)."""

    beta2: float = 0.999
    """AdamW's decay of the running mean of squared gradients, in [0, 1)."""

    warmup_share: float = 0.05
    """Share of all steps, in [0, 1], over which the learning rate rises linearly from 0."""

    final_lr_share: float = 0.01
    """Learning rate at the last step, as a share of the peak."""

    clip_norm: float = 1.0
    """Gradient clipping: the model's gradients are scaled down to this global norm; 0 = never."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        above(self, 0, "lr")
        at_least(self, 0, "backbone_lr_scale", "weight_decay", "clip_norm")
        within(self, 0, 1, "beta1", "beta2", ends="[)")
        share(self, "warmup_share", "final_lr_share")


@dataclass(frozen=True)
class TrainConfig:
    """Length, hardware, checkpoints and evaluation of the training."""

    ADDED: ClassVar[tuple[str, ...]] = ("tf32", "grace_s", "profile_steps")

    steps: int | None = None
    """Optimizer steps; none = `epochs`, and without either 2000 steps. Give one, not both."""

    epochs: float | None = None
    """Passes over the training triplets, instead of `steps`; may be a fraction."""

    num_workers: int = 1
    """Training workers (processes); each holds a full copy of the model."""

    min_workers: int | None = None
    """Elastic training: continue with as few workers as this when machines are lost, and with up to
    num_workers when they come back. The remaining workers share the same whole batch (less what
    does not divide by their number) in micro-batches, so that steps and negatives stay the same.
    none = always num_workers."""

    device: str = "auto"
    """``auto``: GPUs where the cluster has any (too few of them is an error), or else CPUs;
    ``cpu``; ``gpu``."""

    cpus_per_worker: float | None = None
    """CPUs that Ray reserves for a worker; none = an equal share, at most 1. A reservation and no
    limit: `threads` is the limit."""

    gpus_per_worker: float = 1.0
    """GPUs of a worker that trains on GPU; below 1 several runs or trials of one worker each share
    one. Several workers of one run cannot share a GPU."""

    wait_s: float = 0.0
    """Seconds to wait for machines that the cluster's autoscaler is asked to start; 0 = use only
    those that are up."""

    threads: int | None = None
    """Torch threads of a worker; none = its share of its machine's CPUs."""

    precision: str = "auto"
    """``float32``, or ``bfloat16`` (autocast of the model; weights and loss stay in float32);
    ``auto``: bfloat16 on GPUs that have it, float32 elsewhere."""

    tf32: bool = False
    """Let a GPU compute the model's float32 matrix products and convolutions in TF32 (10 bits of
    mantissa instead of 23). The losses never do. Without effect on what runs in bfloat16."""

    micro_batch_size: int | None = None
    """Samples of one forward and backward pass (GradCache); none = the whole batch. The gradient is
    exactly that of the whole batch with all its negatives: embeddings are computed first without
    gradient, then each micro-batch again with it, which costs one more forward pass and needs the
    memory of one micro-batch."""

    activation_checkpointing: bool = False
    """Recompute the backbone's activations in the backward pass: one more forward pass for a
    fraction of the memory."""

    compile: bool = False
    """Compile the model with torch.compile; the first steps take minutes."""

    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, in [0, 1); the average is then
    evaluated and registered. 0 = none."""

    seed: int = 0
    """Seed of initial weights, order, augmentation and dropout; same seed, same run."""

    report_every_steps: int = 10
    """Steps between two points of the curves, which are means over these steps."""

    profile_steps: str | None = None
    """Steps that torch's profiler records on rank 0, e.g. 10-15 for the five after the tenth: a
    trace and a table, in MLflow below profile/. They are slower than the others. none = none."""

    checkpoint_every_steps: int = 200
    """Steps between checkpoints; the last step always saves one. They are written asynchronously: a
    lost machine costs at most these steps and those during the write."""

    eval_every_steps: int = 200
    """Steps between evaluations by retrieval on the held-out gallery; also before the first step
    and at the last. 0 = never."""

    gallery_size: int = 256
    """Held-out transitions in the fixed gallery that retrieval searches."""

    diagnostics_every_steps: int = 100
    """Steps between diagnostics on the batch: alignment, uniformity, effective rank and retrieval
    by modality, gradient norm by loss term. 0 = never."""

    collapse_spread: float = 0.05
    """A modality counts as collapsed when its embeddings' mean squared distance from their mean is
    below this, in [0, 1]: 1 = all over the sphere, 0 = one point."""

    collapse_checks: int = 3
    """Diagnostics in a row that must detect a collapse before `collapse_action` is taken."""

    collapse_action: str = "warn"
    """What a detected collapse does: ``warn`` logs a line, ``stop`` ends the run as failed."""

    checkpoint_storage: str | None = None
    """Where checkpoints go: a folder that all workers see, or s3://bucket/prefix; the run makes a
    folder of its name in it. none = the run's own folder."""

    keep_checkpoints: int = 2
    """Newest checkpoints that stay; with 1 a damaged one leaves nothing to resume from."""

    best_metric: str = "heldout/retrieval/all/top1"
    """Curve whose highest value marks the best checkpoint, which stays too; one is then written at
    every evaluation. Empty = none. The registered encoder is that of the last step in any case."""

    max_failures: int = 1
    """How often a crashed worker is restarted from the last checkpoint; machines that are taken
    away with a notice, and workers that are told to end, do not count."""

    grace_s: float = 30.0
    """Seconds between SIGTERM and SIGKILL on these machines (Kubernetes:
    terminationGracePeriodSeconds), at least 10. A run that is told to end saves a checkpoint within
    them, and ends a few seconds before they are over even where it could not."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and train.epochs exclude each other: give one")
        at_least(self, 1, "steps", "num_workers", "threads", "micro_batch_size")
        at_least(self, 1, "report_every_steps", "checkpoint_every_steps", "keep_checkpoints")
        at_least(self, 1, "collapse_checks")
        above(self, 0, "epochs", "cpus_per_worker", "gpus_per_worker")
        one_of(self, ("auto", "cpu", "gpu"), "device")
        one_of(self, ("auto", "float32", "bfloat16"), "precision")
        self.profile_window()
        if self.tf32 and self.device == "cpu":
            raise ValueError("tf32: only GPUs compute in TF32, and train.device is cpu")
        if self.gpus_per_worker < 1 < self.num_workers and self.device != "cpu":
            raise ValueError(
                f"gpus_per_worker: NCCL does not let {self.num_workers} workers of one run share "
                f"a GPU ({self.gpus_per_worker:g} each); use train.gpus_per_worker 1, or "
                "train.num_workers 1 with a larger data.batch_size"
            )
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ValueError(
                f"min_workers must lie in [1, num_workers {self.num_workers}], "
                f"got {self.min_workers}"
            )
        within(self, 0, 1, "ema_decay", ends="[)")
        one_of(self, ("warn", "stop"), "collapse_action")
        share(self, "collapse_spread")
        at_least(self, 0, "diagnostics_every_steps", "seed", "eval_every_steps", "max_failures")
        at_least(self, 2, "gallery_size")
        at_least(self, 0, "wait_s")
        at_least(self, 10, "grace_s")

    def profile_window(self) -> tuple[int, int] | None:
        """First and last step of `profile_steps`, the last one not included; None without.

        Raises:
            ValueError: it is no such window.
        """
        if self.profile_steps is None:
            return None
        start, _, stop = self.profile_steps.partition("-")
        if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
            raise ValueError(
                f"profile_steps: give START-STOP, as 10-15, not {self.profile_steps!r}"
            )
        return int(start), int(stop)


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow's names for the run and its encoder."""

    experiment: str = "dynaflip-pretrain"
    """MLflow experiment that the run belongs to."""

    model_name: str = "dynaflip-encoder"
    """Registered MLflow model that the run's encoder becomes a version of."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        for name in ("experiment", "model_name"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty")
            if set(getattr(self, name)) & set("/:%@"):
                raise ValueError(f"{name} must not contain / : % @, got {getattr(self, name)}")


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining."""

    triplets: str | None = None
    """Folder of triplets, or s3://bucket/prefix (jobs/preprocess.py writes one); none =
    triplets/demo in DYNAFLIP_HOME."""

    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        """Validate settings against each other and against the triplet format."""
        flow, stored = self.model.flow, FlowConfig()
        if (flow.steps, flow.grid) != (stored.steps, stored.grid):
            raise ValueError(
                f"model.flow.steps, model.flow.grid: triplets have {stored.steps} steps of a grid "
                f"of {stored.grid} points a side, not {flow.steps} and {flow.grid}"
            )
        if self.train.activation_checkpointing and self.model.image.train_batchnorm:
            raise ValueError(
                "model.image.train_batchnorm: with train.activation_checkpointing it would take "
                "each batch into its statistics twice; use one or the other"
            )
        parts = self.train.micro_batch_size is not None or self.train.min_workers is not None
        if parts and self.model.image.train_batchnorm:
            raise ValueError(
                "model.image.train_batchnorm: a batch in parts (train.micro_batch_size, "
                "train.min_workers) has no statistics of its own; use one or the other"
            )
