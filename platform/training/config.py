"""Settings of pretraining, the single place for their defaults (no torch in here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dynaflip.checks import above, at_least, one_of, share, within
from dynaflip.encoders.config import FlowConfig, ModelConfig
from dynaflip.losses.config import ObjectiveConfig

# Raised when the same settings and triplets come to give other weights: encoders of before are
# then not taken for those of now.
PRETRAIN_VERSION = 3


@dataclass(frozen=True)
class DataConfig:
    """How triplets become batches."""

    RENAMED: ClassVar[dict[str, str]] = {"jitter_per_picture": "jitter_per_image"}

    batch_size: int = 32
    """Samples per worker and step; the negatives come from the batches of all workers."""

    shuffle_buffer_rows: int = 2048
    """Rows (images still encoded, about 100 kB each) that are mixed before batching."""

    jitter_brightness: float = 0.1
    """Colour jitter, the paper's: half widths of brightness, contrast, saturation (factors around
    1) and hue (turns of the colour circle). 0 switches one off."""

    jitter_contrast: float = 0.1
    jitter_saturation: float = 0.05
    jitter_hue: float = 0.02
    jitter_per_image: bool = False
    """Draw new jitter for each image of a sample. Off: the images of one sample change alike, so
    that their difference shows motion and not jitter."""

    patches: int = 0
    """Most patches of random texture that are laid over an image, drawn for each image of a sample
    alone (random erasing, with shadows and surfaces among them). 0 = none; ours."""

    crop_min_share: float = 1.0
    """Random crop: the smallest share of the image's sides that is kept, the same window for all
    images of a sample. 1 = no crop: the flow's grid covers the whole image, so a crop makes its
    prediction harder (the 3D flow stays that of the whole image)."""

    prefetch_batches: int = 2
    """Batches that are decoded ahead of the training step."""

    source_weights: dict[str, float] = field(default_factory=dict)
    """Share of samples from each source (a triplet's column `source`), as weights: {sim: 1, ego:
    2}. Rows of a source are repeated or left out by chance until the shares are met, and an epoch
    keeps its length; a source that is not named has 0. Empty = the weights that the triplets were
    made with, and where those are all the same every triplet once an epoch."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        at_least(self, 2, "batch_size")  # one sample has no negatives
        at_least(self, 1, "shuffle_buffer_rows", "prefetch_batches")
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
    """AdamW with warm-up and cosine decay."""

    lr: float = 1e-4
    """Peak learning rate (the paper's)."""

    backbone_lr_scale: float = 1.0
    """Factor on the rate of the image backbone: below 1 it keeps more of its initialisation."""

    weight_decay: float = 1e-2
    """Decoupled weight decay (the paper's); norms, biases and single learned tokens are left
    out."""

    beta1: float = 0.9
    """AdamW's averaging of gradients and of their squares."""

    beta2: float = 0.999
    warmup_share: float = 0.05
    """Share of all steps over which the rate rises linearly from 0."""

    final_lr_share: float = 0.01
    """Rate at the last step, as a share of the peak."""

    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 = never."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        above(self, 0, "lr")
        at_least(self, 0, "backbone_lr_scale", "weight_decay", "clip_norm")
        within(self, 0, 1, "beta1", "beta2", ends="[)")
        share(self, "warmup_share", "final_lr_share")


@dataclass(frozen=True)
class TrainConfig:
    """How long, on what, and how often to save and look."""

    steps: int | None = None
    """Optimizer steps. Give this or epochs, not both; without either, 2000 steps."""

    epochs: float | None = None
    """Passes over the training triplets, instead of steps."""

    num_workers: int = 1
    """Training workers; each holds a full copy of the model."""

    min_workers: int | None = None
    """Elastic: go on with as few workers when machines are lost, and with up to num_workers when
    they come back. The remaining workers share the same whole batch (less what does not divide by
    their number), in more passes each, so that steps and negatives stay what they are. None =
    num_workers, neither more nor less."""

    device: str = "auto"
    """Auto = a GPU a worker where the cluster has enough of them | cpu | gpu."""

    cpus_per_worker: float | None = None
    """CPUs that Ray reserves for a worker; none = what is left beside one CPU for Ray Data, at
    most one. It reserves, it does not limit: `threads` does."""

    gpus_per_worker: float = 1.0
    """GPUs of a worker, where it has one: below 1 several workers or trials share a GPU."""

    wait_s: float = 0.0
    """Seconds to wait for machines that the cluster's autoscaler starts; they are asked for. 0:
    what is up must do."""

    threads: int | None = None
    """Torch threads of a worker; none = its share of the machine's CPUs."""

    precision: str = "float32"
    """Float32 | bfloat16 (autocast; the energy stays float32)."""

    micro_batch_size: int | None = None
    """Samples of one forward and backward pass; none = the whole batch. Negatives are those of the
    whole batch all the same: embeddings first, then each part again for its gradient (a third more
    work, memory of one part)."""

    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more work, a fraction of the
    memory."""

    compile: bool = False
    """Compile the model (torch.compile); the first steps take minutes."""

    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated and
    registered; 0 = none."""

    seed: int = 0
    """Seeds weights, order, augmentation and negatives; same seed, same run."""

    report_every_steps: int = 10
    """Steps between two points of the curves (means over the steps between)."""

    checkpoint_every_steps: int = 200
    """Steps between checkpoints; the last step always saves one. They are written while training
    goes on: what is lost with a machine is at most these and the steps of the writing."""

    eval_every_steps: int = 200
    """Steps between retrievals on the held-out gallery; first and last step always. 0 = never."""

    gallery_size: int = 256
    """Held-out transitions of the fixed gallery."""

    diagnostics_every_steps: int = 100
    """Steps between diagnostics on the batch: alignment, uniformity, effective rank, retrieval by
    modality, gradient norm by term. 0 = never."""

    collapse_spread: float = 0.05
    """A modality whose embeddings vary less about their mean (squared distance; 1 = all over the
    sphere, 0 = one point) counts as collapsed."""

    collapse_checks: int = 3
    """Diagnostics in a row that must find a collapse before it is acted on, and how: warn |
    stop."""

    collapse_action: str = "warn"
    checkpoint_storage: str | None = None
    """Where checkpoints go: a folder that all workers see, or s3://bucket/prefix; a folder of the
    run's name is made in it. None = the run's own folder."""

    keep_checkpoints: int = 2
    """Newest checkpoints that are kept; with 1, nothing is left where that one is damaged."""

    best_metric: str = "heldout/retrieval/all/top1"
    """The checkpoint with the highest value of this curve is kept too, and one is written at every
    retrieval; empty = none. The encoder that is registered is the last one's all the same."""

    max_failures: int = 1
    """How often a crashed worker is started again from the last checkpoint."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and train.epochs exclude each other: give one")
        at_least(self, 1, "steps", "num_workers", "threads", "micro_batch_size")
        at_least(self, 1, "report_every_steps", "checkpoint_every_steps", "keep_checkpoints")
        at_least(self, 1, "collapse_checks")
        above(self, 0, "epochs", "cpus_per_worker", "gpus_per_worker")
        one_of(self, ("auto", "cpu", "gpu"), "device")
        one_of(self, ("float32", "bfloat16"), "precision")
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


@dataclass(frozen=True)
class TrackingConfig:
    """Where the run is written down."""

    experiment: str = "dynaflip-pretrain"
    """MLflow experiment."""

    model_name: str = "dynaflip-encoder"
    """Registered model that the run adds a version to."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        for name in ("experiment", "model_name"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty")
            if set(getattr(self, name)) & set("/:%@"):
                raise ValueError(f"{name} must not contain / : % @, got {getattr(self, name)}")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a pretraining."""

    triplets: str | None = None
    """Triplet folder; none = the home's triplets/demo."""

    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other, or what triplets are."""
        flow, stored = self.model.flow, FlowConfig()
        if (flow.steps, flow.grid) != (stored.steps, stored.grid):
            raise ValueError(
                f"model.flow.steps, model.flow.grid: triplets have {stored.steps} steps of a grid "
                f"of {stored.grid} points a side, not {flow.steps} and {flow.grid}"
            )
        parts = self.train.micro_batch_size is not None or self.train.min_workers is not None
        if parts and self.model.image.train_batchnorm:
            raise ValueError(
                "model.image.train_batchnorm: a batch in parts (train.micro_batch_size, "
                "train.min_workers) has no statistics of its own; use one or the other"
            )
