"""A pretraining from settings to a registered encoder, and resuming a stopped one.

A run's folder, ``<home>/runs/NAME``, holds ``run.json`` (its MLflow run and settings),
``progress.log``, the curves (``metrics.jsonl``), the checkpoints and the final ``encoder/``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.errors import StoreError, UserError
from dynaflip.files import file_lock
from dynaflip.platform import cluster, promotion, tracking
from dynaflip.platform.config_loader import config_digest, load_config, to_dict, to_yaml
from dynaflip.platform.paths import (
    default_triplets,
    input_path,
    new_run_name,
    output_path,
    runs,
)
from dynaflip.platform.provenance import git_commit
from dynaflip.platform.tracking import registry
from dynaflip.platform.training import publish
from dynaflip.platform.training.config import PRETRAIN_VERSION, PretrainConfig
from dynaflip.platform.training.curve_file import CurveFile
from dynaflip.platform.training.pretrained import pin_models, weights_identities
from dynaflip.platform.training.progress import heldout_summary
from dynaflip.platform.training.publish import (
    ENCODER,
    PROFILE,
    RUN_FILE,
    read_run_file,
    write_run_file,
)
from dynaflip.platform.triplets.clips import content_hash
from dynaflip.renames import first_settings

if TYPE_CHECKING:
    import numpy as np

    from dynaflip.encoders.config import LanguageConfig
    from dynaflip.platform.training.job import TrainJob


@dataclass(frozen=True)
class Outcome:
    """A finished pretraining: its run, its registered version, its encoder."""

    run_name: str
    run_id: str  # MLflow's
    model_name: str
    version: int | None  # None where MLflow was away at the end
    encoder_folder: Path
    metrics: dict[str, float]  # the last value of every curve

    def uri(self) -> str:
        """The registered version's URI, or the encoder's folder where it could not be registered.

        Both can be loaded.
        """
        if self.version is None:
            return str(self.encoder_folder)
        return f"models:/{self.model_name}/{self.version}"


def pretrain(config: PretrainConfig, *, alias: str | None = None) -> Outcome:
    """Train from the beginning, log, and register a version.

    Args:
        config: the settings.
        alias: that moves to the new version (``latest`` always names it).

    Raises:
        UserError: no triplets, too few of them, or too small a cluster.
        NonFiniteLoss: the run was stopped, and its MLflow run is FAILED.
    """
    promotion.check_alias(alias)
    folder = input_path(config.triplets, default_triplets())
    config = dataclasses.replace(config, triplets=folder)
    run_folder = runs() / new_run_name("pretrain")
    job = prepare(config, run_folder)
    config = job.config  # with the models' commits
    with _locked(run_folder):
        run = _open_run(job, run_folder)
        write_run_file(
            run_folder,
            run_id=run.run_id,
            config=to_dict(config),
            data_digest=job.index.digest,
            alias=alias,
        )
        (run_folder / "config.yaml").write_text(to_yaml(config))
        return _train_and_register(job, run, run_folder)


def _open_run(job: TrainJob, run_folder: Path) -> tracking.Run:
    """A new MLflow run with the settings and the data set; a start needs a store that answers."""
    config, index = job.config, job.index
    try:
        run = tracking.open_run(config.tracking.experiment, run_folder.name, _tags(job))
        run.log_settings(config)
        run.log_dataset(Path(index.folder).name, index.digest, index.folder)
    except tracking.store_error() as error:
        raise tracking.store_away(error) from None
    return run


def find_finished(config: PretrainConfig) -> str | None:
    """URI of the newest registered encoder with these settings and these triplets, if any."""
    from dynaflip.platform.triplets.schema import read_manifest

    digest = read_manifest(input_path(config.triplets, default_triplets()))["digest"]
    same = {"config_digest": settings_digest(config), "data_digest": digest}
    version = registry.find_version(config.tracking.model_name, same)
    return None if version is None else f"models:/{config.tracking.model_name}/{version}"


def move_alias(uri: str, alias: str) -> None:
    """Move an alias to the version that ``models:/NAME/VERSION`` names."""
    name, version = uri.removeprefix("models:/").split("/")
    promotion.move_alias(name, alias, int(version))


def resume(run_name: str, *, alias: str | None = None) -> Outcome:
    """Resume a run that was stopped or killed, from its newest checkpoint.

    The settings, the order of the data and the MLflow run are those it began with.

    Raises:
        UserError: there is no such run, it is finished or running, or its triplets have changed.
    """
    promotion.check_alias(alias)
    run_folder = _known_run(run_name, "--resume")
    with _locked(run_folder, "--resume"):
        if alias is not None:
            write_run_file(run_folder, alias=alias)
        return _resume(run_folder)


def send(run_name: str, *, alias: str | None = None) -> str:
    """Send MLflow what it has not had of a run, and register its encoder; says what was sent.

    Raises:
        UserError: there is no such run, it is running, or MLflow has everything.
        StoreError: MLflow is away.
    """
    promotion.check_alias(alias)
    run_folder = _known_run(run_name, "--send")
    with _locked(run_folder, "--send"):
        return publish.send(run_folder, alias)


def _known_run(run_name: str, flag: str) -> Path:
    run_folder = runs() / run_name
    if not (run_folder / RUN_FILE).is_file():
        known = sorted((p.parent.name for p in runs().glob(f"*/{RUN_FILE}")), reverse=True)
        raise UserError(
            f"{flag} {run_name}: there is no such run in {runs()}; "
            f"newest: {', '.join(known[:3]) or 'none'}"
        )
    return run_folder


def _locked(run_folder: Path, flag: str = "--resume") -> contextlib.AbstractContextManager[None]:
    """Lock the run: one process at a time writes its checkpoints, curves and version."""
    return file_lock(
        run_folder / "running.lock", f"{flag} {run_folder.name}: the run is running already"
    )


def _resume(run_folder: Path) -> Outcome:
    run_name = run_folder.name
    saved = read_run_file(run_folder)
    if "version" in saved:
        raise UserError(
            f"--resume {run_name}: the run is finished; it is version {saved['version']} of "
            f"{saved['config']['tracking']['model_name']}"
        )
    config = load_config(PretrainConfig, str(run_folder / "config.yaml"), {}, saved=True)
    job = prepare(config, run_folder)
    try:
        run = tracking.reopen_run(saved["run_id"])
    except StoreError as error:
        print(f"warning: {error}; training goes on, and its curves wait on disk")
        run = tracking.Run(saved["run_id"], run_name, tracking.tracking_uri())
    before = saved.get("data_digest") or run.tags().get("data_digest")
    if before != job.index.digest:
        run.end("FAILED")
        raise UserError(
            f"--resume {run_name}: the triplets in {config.triplets} are not those it began with "
            f"(digest {job.index.digest}, then {before}); start a new run"
        )
    return _train_and_register(job, run, run_folder)


def checkpoint_uri(config: PretrainConfig, run_folder: Path) -> str:
    """Folder of a run's checkpoints: in its own, or in one of its name elsewhere."""
    storage = config.train.checkpoint_storage
    if storage is None:
        return str(run_folder / "checkpoints")
    folder = output_path(storage, run_folder, setting="train.checkpoint_storage")
    return f"{folder.rstrip('/')}/{run_folder.name}"


def prepare(config: PretrainConfig, run_folder: Path) -> TrainJob:
    """Read the triplets' index, embed the captions, join Ray: everything that can be refused."""
    from dynaflip.platform.training.job import build_job
    from dynaflip.platform.triplets.schema import read_manifest

    assert config.triplets is not None, "resolved by the caller"
    read_manifest(config.triplets)  # a wrong folder is refused before a hub is asked
    config = dataclasses.replace(config, model=pin_models(config.model, log=print))
    job = build_job(config, checkpoint_uri(config, run_folder), elsewhere=_embed_on_cluster)
    cluster.start_ray()
    from dynaflip.platform.training.backends import ray_train

    cluster.wait_for(ray_train.bundles_of(config), config.train.wait_s)
    # Refuse before a run is opened.
    ray_train.scaling_of(config, ray_train.ray.cluster_resources())
    index, length = job.index, job.length
    print(
        f"triplets {config.triplets}: {index.counts['train']} for training, "
        f"{index.counts['heldout']} held out; {length.total_steps} steps "
        f"({length.total_steps / length.steps_per_epoch:.1f} epochs), {config.train.num_workers} "
        "worker(s)" + (f" x {config.train.threads} threads" if config.train.threads else "")
    )
    if "simulator" in index.flow_sources:
        print("note: flow comes from the simulator's exact state: an upper bound, not a result")
    job.checkpoint_manager().storage.names()  # fails now, and not at the first checkpoint
    return job


def _embed_on_cluster(config: LanguageConfig, chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
    """Embed captions on the cluster's GPU, where it has one and this process has not."""
    cluster.start_ray()
    from dynaflip.platform.training.backends.caption_actor import embed

    return embed(config, chunks)


def _train_and_register(job: TrainJob, run: tracking.Run, run_folder: Path) -> Outcome:
    from dynaflip.platform.training.backends import ray_train
    from dynaflip.platform.training.profiler import collect, profile_uri

    config = job.config
    print(f"run {run_folder.name} (MLflow run {run.run_id})")
    with tracking.ending(run), _told_to_end(run_folder):
        ray_train.fit(job, run, run_folder)
        last = {name: points[-1][1] for name, points in CurveFile(run_folder).curves().items()}
        encoder_folder = save_encoder(job, run, run_folder, last)
        if config.train.profile_steps:
            collect(profile_uri(job.checkpoints), run_folder / PROFILE)
        tags = {**_tags(job), "run_name": run.run_name, "git_commit": git_commit()}
        write_run_file(run_folder, version_tags=tags)
        version = publish.publish(run_folder, run, config)
    if "heldout/retrieval/all/top1" in last:
        print(heldout_summary(last))
    model_name = config.tracking.model_name
    return Outcome(run_folder.name, run.run_id, model_name, version, encoder_folder, last)


@contextlib.contextmanager
def _told_to_end(run_folder: Path) -> Iterator[None]:
    """A run that was told to end leaves with the exit code of SIGTERM and the line to go on."""
    from dynaflip.platform.training.notices import Stopped

    try:
        yield
    except Stopped as error:
        print(f"{error}. Go on with:\n    python jobs/pretrain.py --resume {run_folder.name}")
        raise SystemExit(128 + signal.SIGTERM) from None


def save_encoder(
    job: TrainJob, run: tracking.Run, run_folder: Path, metrics: dict[str, float]
) -> Path:
    """Write the last checkpoint's model as an encoder folder.

    Raises:
        UserError: no checkpoint is whole.
    """
    from safetensors.torch import load_file

    from dynaflip.encoders.checkpoint import save_folder
    from dynaflip.encoders.model import DynaFLIP

    model = DynaFLIP(job.config.model)
    with job.checkpoint_manager().last() as checkpoint:
        average = checkpoint / "average.safetensors"
        weights = average if average.exists() else checkpoint / "model.safetensors"
        model.load_state_dict(load_file(str(weights)))
    info = {
        "config": to_dict(job.config),
        "git_commit": git_commit(),
        "initial_weights": dict(
            zip(("image", "language"), weights_identities(job.config.model), strict=True)
        ),
        **job.index.provenance(),
        "run_name": run.run_name,
        "mlflow_run_id": run.run_id,
        "steps": job.length.total_steps,
        "metrics": metrics,
    }
    return save_folder(run_folder / ENCODER, model, info)


def settings_digest(config: PretrainConfig) -> str:
    """Digest of what decides the weights, beside the triplets, which have a digest of their own.

    It covers the settings and the pretrained weights that the run starts from, by content.

    Raises:
        UserError: a pretrained model cannot be reached.
    """
    config = dataclasses.replace(config, triplets=None, model=pin_models(config.model))
    settings = first_settings(config)
    for name in ("wait_s", "grace_s", "profile_steps"):  # they decide no weight
        settings["train"].pop(name, None)
    start = weights_identities(config.model)
    return content_hash(config_digest(settings), str(PRETRAIN_VERSION), *start)[:16]


def _tags(job: TrainJob) -> dict[str, Any]:
    """The run's MLflow tags; simulator flow is marked as an upper bound."""
    index = job.index
    tags = {
        "kind": "pretrain",
        "config_digest": settings_digest(job.config),
        "data_digest": index.digest,
        "triplets": index.folder,
        "train_triplets": index.counts["train"],
        "heldout_triplets": index.counts["heldout"],
        "flow_source": ",".join(index.flow_sources),
        "depth_kind": ",".join(index.depth_kinds),
    }
    if "simulator" in index.flow_sources:
        tags["upper_bound"] = "flow from the simulator's exact state"
    return tags
