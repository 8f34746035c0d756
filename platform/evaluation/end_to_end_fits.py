"""Fits of policies that train their encoder: on the cluster's GPUs where it has some, else on CPUs.

Heads on frozen encoders are fitted where their features are (:mod:`.worker`): three layers on
features that are computed already keep no GPU busy.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.cluster import joins_cluster, start_ray
from dynaflip.platform.evaluation.demonstration_set import DemonstrationSet
from dynaflip.platform.evaluation.fits_config import AUTO, CPU, FitsConfig
from dynaflip.platform.evaluation.plan import PolicySpec
from dynaflip.platform.evaluation.policy_fits import fit_end_to_end_policy
from dynaflip.platform.job_queues import JobQueue


@dataclass(frozen=True)
class Fitted:
    """A fitted policy, and where it was fitted."""

    weights: dict[str, Any]  # of head and encoder, on the CPU
    device: str  # such as ``NVIDIA H100 80GB HBM3`` or ``CPU``
    host: str
    without_gpu: bool  # Ray had reserved a GPU there, and torch saw none


class EndToEndWorker:
    """A Ray actor that fits policies one after another, with the GPU or CPU that it has reserved.

    Args:
        device: the setting ``fits.device``.
        reserved: whether Ray has reserved a GPU, or a share of one, for it.
    """

    def __init__(self, device: str, reserved: bool) -> None:
        import torch

        torch.set_num_threads(1)
        self._wanted, self._reserved = device, reserved
        self._frames: tuple[DemonstrationSet, Any] | None = None

    def fit(self, spec: PolicySpec) -> Fitted:
        """Fit a policy.

        Raises:
            UserError: the encoder does not do what an encoder must, the GPU's memory is too small,
                or torch sees no GPU where one was asked for.
        """
        import torch

        from dynaflip.platform.training.device import exact

        device, name = fit_device(self._wanted, self._reserved), "CPU"
        frames = self._frames_of(spec.demonstrations[0])
        if device == "cuda":
            name = torch.cuda.get_device_name()
        try:
            with exact():
                weights = fit_end_to_end_policy(spec, frames, device)
        except torch.OutOfMemoryError:
            raise UserError(
                f"fits: the memory of the {name} on {socket.gethostname()} is too small for "
                f"{spec.adaptation} on {spec.encoder.name}; lower end_to_end.batch_size, set "
                "end_to_end.precision bfloat16, or give each fit more of a GPU (fits.gpus)"
            ) from None
        finally:
            if device == "cuda":
                torch.cuda.empty_cache()  # for the fits that share it
        without = self._reserved and device == "cpu"
        return Fitted(weights, name, socket.gethostname(), without)

    def _frames_of(self, demonstrations: DemonstrationSet) -> Any:
        """Decoded frames; those of the last task stay, of any number of its episodes."""
        from dynaflip.platform.evaluation.demonstrations import read_demonstrations

        if self._frames is None or self._frames[0].digest != demonstrations.digest:
            self._frames = demonstrations, read_demonstrations(demonstrations)
        return self._frames[1]


def fit_device(wanted: str, reserved: bool) -> str:
    """The device of a fit in this process: ``cuda`` or ``cpu``.

    Args:
        wanted: the setting ``fits.device``.
        reserved: whether Ray has reserved a GPU for the process.

    Raises:
        UserError: a GPU was asked for, and torch sees none.
    """
    import torch

    if not reserved:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == AUTO:
        return "cpu"
    raise UserError(
        f"fits.device gpu: Ray has reserved a GPU on {socket.gethostname()}, where torch "
        f"{torch.__version__} sees none; install torch's CUDA build and a driver for it there, or "
        "set fits.device to auto (that machine's CPU is then used) or cpu"
    )


def gpus_of_a_fit(fits: FitsConfig) -> float:
    """GPUs, or the share of one, that each fit reserves on the cluster as it is; 0 for CPUs.

    Raises:
        UserError: a GPU is asked for, and the cluster has none and gets none.
    """
    import ray

    if fits.device == CPU:
        return 0.0
    if ray.cluster_resources().get("GPU", 0) < fits.gpus:
        if fits.device == AUTO:
            return 0.0
        if not joins_cluster():
            raise UserError(
                "fits.device gpu: Ray finds no GPU on this machine; set it to auto or cpu, or join "
                "a cluster that has GPUs (RAY_ADDRESS)"
            )
    return fits.gpus


def fit_end_to_end_policies(
    specs: Sequence[PolicySpec], fits: FitsConfig
) -> Iterator[tuple[PolicySpec, Fitted]]:
    """Fit policies that train their encoder, as many at a time as the cluster has room for.

    Args:
        specs: those of a task after each other, so that its frames are decoded once.
        fits: where.

    Raises:
        UserError: as :meth:`EndToEndWorker.fit` and :func:`gpus_of_a_fit`.
    """
    from tqdm import tqdm

    start_ray()
    gpus, told = gpus_of_a_fit(fits), False
    arguments = fits.device, gpus > 0
    with ActorPool(EndToEndWorker, *arguments, job="evaluate", gpus_each=gpus) as pool:
        results = pool.run(
            JobQueue(specs).next,
            lambda actor, spec: actor.fit.remote(spec),
            number=len(specs),
            describe=lambda spec: f"fitting {spec.adaptation} on {spec.encoder.name}",
        )
        for spec, fitted in results:
            if fitted.without_gpu and not told:
                tqdm.write(
                    f"note: Ray has reserved a GPU on {fitted.host}, where torch sees none: "
                    "policies are fitted on its CPU (fits.device gpu refuses that)"
                )
                told = True
            yield spec, fitted
