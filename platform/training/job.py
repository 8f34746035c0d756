"""A training job: the settings, the triplets' index and the captions, as every worker gets them.

Plain data that knows neither Ray nor MLflow; the backends in :mod:`.backends` run it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynaflip.encoders.model import DynaFLIP
from dynaflip.errors import UserError
from dynaflip.losses.base import FRAMES
from dynaflip.losses.objective import term_class
from dynaflip.platform.training.checkpoint_manager import Checkpoints
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.context import Metrics
from dynaflip.platform.training.data.caption_cache import Embed, caption_table
from dynaflip.platform.training.data.caption_features import TextTable
from dynaflip.platform.training.data.collate import Batch, Collate
from dynaflip.platform.training.data.gallery import gallery_batch
from dynaflip.platform.training.data.image_size import check_image_size
from dynaflip.platform.training.data.index import TripletIndex, read_index
from dynaflip.platform.training.data.loader import Feed
from dynaflip.platform.training.data.sampling import Sampling, sampling_of
from dynaflip.platform.training.length import Plan, plan, rank_batch_size


@dataclass(frozen=True)
class TrainJob:
    """What every worker is given; plain data, so that it travels."""

    config: PretrainConfig
    index: TripletIndex
    text: TextTable
    length: Plan
    checkpoints: str  # path or S3 URI
    # A sweep scores the model on the way: at which steps, and by what (called on rank 0).
    score_steps: frozenset[int] = frozenset()
    score: Callable[[DynaFLIP], Metrics] | None = None

    def checkpoint_manager(self) -> Checkpoints:
        """The run's checkpoints; makes their folder."""
        train = self.config.train
        return Checkpoints(
            self.checkpoints, keep=train.keep_checkpoints, best_metric=train.best_metric
        )

    def collate(self, *, augment: bool, frames: tuple[str, ...] = FRAMES) -> Collate:
        """Maker of batches from rows, as in training or without augmentation."""
        config = self.config
        return Collate(
            config.data,
            config.model.image.image_px,
            self.text,
            seed=config.train.seed,
            augment=augment,
            frames=frames,
        )

    def feed(
        self,
        frames: tuple[str, ...] = FRAMES,
        *,
        rank: int = 0,
        workers: int = 1,
        threads: int = 1,
        device: str = "cpu",
    ) -> Feed:
        """The training batches of one worker; see :class:`.loader.Feed`.

        Args:
            frames: that loss terms read (``Objective.frames``); others are not decoded.
            rank: of the worker.
            workers: their number.
            threads: CPUs of the worker.
            device: that it trains on.
        """
        return Feed(
            self.index.train,
            self.collate(augment=True, frames=frames),
            self.config.data,
            self.sampling(),
            batch_size=rank_batch_size(self.config, workers),
            rank=rank,
            workers=workers,
            threads=self.config.train.threads or threads,
            device=device,
        )

    def sampling(self) -> Sampling:
        """Numbers of times that an epoch shows the triplets of each source."""
        return sampling_of(self.config.data, self.index, self.config.train.seed)

    def gallery(self, rank: int) -> Batch | None:
        """The held-out transitions that rank 0 retrieves among, where the settings ask for it."""
        train = self.config.train
        if rank != 0 or not train.eval_every_steps:
            return None
        return gallery_batch(self.index, self.collate(augment=False), train.gallery_size)


def build_job(
    config: PretrainConfig, checkpoints: str, *, elsewhere: Embed | None = None
) -> TrainJob:
    """Read the triplets' index, embed new captions, and refuse what cannot be trained.

    Args:
        config: the settings; ``triplets`` names a folder.
        checkpoints: where they go, a path or an S3 URI.
        elsewhere: as of :func:`.caption_cache.caption_table`.

    Raises:
        UserError: no triplets, too few or too small ones, or a loss term that does not exist.
    """
    assert config.triplets is not None, "resolved by the caller"
    for name, arguments in config.objective.terms().items():
        term_class(name, arguments)
    index = read_index(config.triplets)
    for line in check_image_size(index, config.model.image.image_px):
        print(line, flush=True)
    for line in index.notes:
        print(f"note: {line}", flush=True)
    try:
        sampling = sampling_of(config.data, index, config.train.seed)
        length = plan(config, index.counts["train"], weighted=not sampling.is_plain())
    except ValueError as error:
        raise UserError(f"triplets {config.triplets}: {error}") from None
    text = caption_table(
        lambda: index.captions,
        config.model.language,
        digest=index.captions_digest,
        elsewhere=elsewhere,
    )
    return TrainJob(config, index, text, length, checkpoints)
