"""Encoder actors as an evaluation's driver and its workers see them.

The driver opens an :class:`EncoderService`; each job's worker is handed :class:`EncoderActors` and
makes a :class:`RemoteEncoder` of them, which stands where an encoder would.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from dynaflip.errors import UserError
from dynaflip.platform.actor_pool import is_placed
from dynaflip.platform.cluster import joins_cluster, start_ray
from dynaflip.platform.evaluation.encoder_config import AUTO, GPU, IN_WORKERS, EncoderActorConfig
from dynaflip.platform.pool_demand import Announcer, ClusterView, WorkersView, room, waiting_line

if TYPE_CHECKING:
    from torch import Tensor

    from dynaflip.platform.evaluation.encoder_actor import EncoderSource, Usage

# An actor that dies (a GPU that fails, memory) starts again that often, and is asked again.
_RESTARTS = 5
# Until another actor is asked too: a machine that is gone answers nothing.
_PATIENCE_S = 30.0
_LOOK_EVERY_S = 3.0


class EncoderActors(NamedTuple):
    """The actors that a worker may ask, its own first."""

    actors: tuple[Any, ...]
    batch: int  # images a pass


def device_of(config: EncoderActorConfig) -> str:
    """Where images are encoded: ``gpu``, ``cpu`` or ``none``; ``auto`` looks for a GPU.

    Raises:
        UserError: a setting would be ignored, because there is no GPU.
    """
    if config.device != AUTO:
        return config.device
    if _has_gpu():
        return GPU
    try:
        config.refuse_ignored(
            "the cluster has no GPU for encoder actors; set encoder_actor.device to gpu (to wait "
            "for one) or cpu"
        )
    except ValueError as error:
        raise UserError(f"encoder_actor.{error}") from None
    return IN_WORKERS


def _has_gpu() -> bool:
    if joins_cluster():
        start_ray()
        import ray

        return float(ray.cluster_resources().get("GPU", 0)) > 0
    import torch

    return torch.cuda.is_available()


class EncoderService:
    """The encoder actors of an evaluation; they start when they are first asked for.

    A context manager: the actors end with it.

    Args:
        config: of the actors.
        job: the job's name, which lines and errors begin with.
        actor_class: another class of actors than :class:`.encoder_actor.EncoderActor`.

    Raises:
        UserError: as :func:`device_of`.
    """

    def __init__(
        self,
        config: EncoderActorConfig,
        job: str = "evaluate",
        actor_class: type | None = None,
    ) -> None:
        self._config, self._device, self._job = config, device_of(config), job
        self._actor_class = actor_class
        self._actors: list[Any] = []
        self._starting: dict[Any, Any] = {}  # reference of the first answer → actor
        self._turn = itertools.count()
        self._looked = 0.0
        self._usage: list[Usage] = []
        self._asked: tuple[float, list[Any]] = (0.0, [])

    def __enter__(self) -> EncoderService:
        return self

    def __exit__(self, *exception: object) -> None:
        actors = [*self._actors, *self._starting.values()]
        self._actors, self._starting = [], {}
        if actors:
            import ray

            for actor in actors:
                ray.kill(actor)

    def for_a_job(self) -> EncoderActors | None:
        """The actors of the next job, in turn; None where workers encode by themselves.

        Waits until the first one is there.

        Raises:
            UserError: an actor has no device.
        """
        if self._device == IN_WORKERS:
            return None
        self._look()
        announcer = Announcer()
        while not self._actors:
            self._take_ready(timeout_s=1.0)
            if announcer.due(line := self._waiting_line(), time.monotonic()):
                print(line, flush=True)
        self._take_ready(timeout_s=0.0)
        first = next(self._turn) % len(self._actors)
        turned = self._actors[first:] + self._actors[:first]
        return EncoderActors(tuple(turned), self._config.batch)

    def words(self) -> str:
        """How busy the actors were lately, such as ``encoder 41 % busy, 37 images a pass``."""
        if not self._actors:
            return ""
        import ray

        asked_at, references = self._asked
        now = time.monotonic()
        if now - asked_at >= _LOOK_EVERY_S:
            usage = []
            if references:
                done, _ = ray.wait(references, num_returns=len(references), timeout=0)
                for reference in done:
                    with suppress(ray.exceptions.RayActorError):  # who asks it for images says so
                        usage.append(ray.get(reference))
            self._usage = usage
            self._asked = now, [actor.usage.remote() for actor in self._actors]
        return usage_words(self._usage, self._config.batch)

    def _each(self) -> dict[str, float]:
        gpus = self._config.gpus_each(self._device)
        return {"GPU": gpus} if gpus else {}

    def _look(self) -> None:
        """Start the actors that the cluster has room for; machines may have joined."""
        start_ray()
        import ray

        now = time.monotonic()
        if self._looked and now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        from dynaflip.platform.evaluation.encoder_actor import EncoderActor

        each = self._each()
        if each and not joins_cluster() and room(ray.cluster_resources(), each) < 1:
            raise UserError(
                f"encoder_actor: Ray has {ray.cluster_resources().get('GPU', 0):g} GPUs on this "
                f"machine, and an actor reserves {each['GPU']:g} (encoder_actor.device, "
                "gpus_per_actor); set device to auto, or join a cluster that has them (RAY_ADDRESS)"
            )
        wanted = max(1, room(ray.cluster_resources(), each))
        # No CPU is reserved: workers have them all.
        remote: Any = ray.remote(
            num_cpus=0,
            num_gpus=each.get("GPU", 0),
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )(self._actor_class or EncoderActor)
        for _ in range(wanted - len(self._actors) - len(self._starting)):
            actor = remote.remote(self._device, self._config)
            self._starting[actor.ready.remote()] = actor

    def _waiting_line(self) -> str | None:
        import ray

        if self._actors:
            return None
        cluster = ClusterView(ray.cluster_resources(), ray.available_resources(), joins_cluster())
        placed = sum(is_placed(actor) for actor in self._starting.values())
        workers = WorkersView(0, placed, len(self._starting) - placed)
        return waiting_line(f"{self._job} (encoder actors)", self._each(), 1, workers, cluster)

    def _take_ready(self, *, timeout_s: float) -> None:
        """Add the actors that have answered since."""
        import ray

        if not self._starting:
            return
        done, _ = ray.wait(list(self._starting), timeout=timeout_s)
        for reference in done:
            _answer(reference)
            self._actors.append(self._starting.pop(reference))


def actors_for(service: EncoderService | None) -> EncoderActors | None:
    """The encoder actors of the next job; None where its worker encodes."""
    return None if service is None else service.for_a_job()


class RemoteEncoder:
    """An encoder that lives in encoder actors; stands where an encoder would.

    Attributes:
        batch: images that are best asked for together.
        waited_s: seconds in which nothing was done but wait for its answers.
    """

    def __init__(self, there: EncoderActors, source: EncoderSource) -> None:
        self._actors, self.batch, self._source = there.actors, there.batch, source
        self.waited_s = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 → (B, D) float32."""
        features: Tensor = self.ask(images, None)()
        return features

    def feature_maps(self, images: Tensor, scales: int | None = None) -> list[Tensor]:
        """As of :meth:`dynaflip.encoders.image.ImageEncoder.feature_maps`."""
        assert scales is not None, "a read-out says how many it reads"
        maps: list[Tensor] = self.ask(images, scales)()
        return maps

    def ask(self, images: Tensor, scales: int | None) -> Callable[[], Any]:
        """Send images off; the answer is a function that waits for what is asked for.

        Args:
            images: (B, H, W, 3) uint8.
            scales: as of :meth:`feature_maps`; None asks for features (B, D).
        """
        import torch

        arguments, actors = (self._source, images.numpy(), scales), self._actors
        asked = [actors[0].encode.remote(*arguments)]

        def answer() -> Any:
            began = time.perf_counter()
            maps = self._first_answer(actors, asked, arguments)
            self.waited_s += time.perf_counter() - began
            # Arrays in Ray's memory are read-only, which torch cannot say.
            tensors = [torch.from_numpy(one.copy()) for one in maps]
            return tensors[0] if scales is None else tensors

        return answer

    def _first_answer(self, actors: tuple[Any, ...], asked: list[Any], arguments: tuple) -> Any:
        """The answer of the first actor; of another one where it is silent for long.

        Args:
            actors: in the order in which this request asks them.
            asked: the first one's answer to come.
            arguments: of the request.
        """
        import ray

        for number, other in enumerate(actors[1:], 1):
            done, _ = ray.wait(asked, timeout=_PATIENCE_S)
            if done:
                return _answer(done[0])
            # Later images go there at once.
            self._actors = (*actors[number:], *actors[:number])
            asked.append(other.encode.remote(*arguments))
        done, _ = ray.wait(asked)
        return _answer(done[0])


def usage_words(usage: list[Usage], batch: int) -> str:
    """The actors' recent work, in words; empty where they did nothing.

    Args:
        usage: of each actor.
        batch: images a pass, of the settings.
    """
    passes = sum(one.passes for one in usage)
    if not passes:
        return ""
    busy = sum(one.busy for one in usage) / len(usage)
    images = sum(one.images for one in usage) / passes
    actors = "encoder" if len(usage) == 1 else f"{len(usage)} encoders"
    least = min(one.batch for one in usage)
    halved = f" (memory: at most {least})" if least < batch else ""
    return f"{actors} {100 * busy:.0f} % busy, {images:.0f} images a pass{halved}"


def _answer(reference: Any) -> Any:
    """An actor's answer; a user's mistake as it was said there."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"encoder_actor: an encoder actor has died {_RESTARTS + 1} times "
            f"({str(error).splitlines()[0]}); finished work is saved; a smaller "
            "encoder_actor.batch needs less memory"
        ) from None
