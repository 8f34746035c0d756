"""Fitted policies as artifacts of an evaluation's run, each beside the encoder that it acts on."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dynaflip
from dynaflip.eval.envs.registry import environment
from dynaflip.platform.evaluation.encoders_under_test import TRAINED
from dynaflip.platform.evaluation.plan import EvaluationJob
from dynaflip.platform.tracking.policies import POLICIES

if TYPE_CHECKING:
    from dynaflip.eval.policies.policy_folder import PolicyDescription
    from dynaflip.eval.policies.recipe import PolicyTensors
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.config import RolloutConfig
    from dynaflip.platform.evaluation.encoders_under_test import Encoder

# Writes a policy, and its encoder, into a folder of all policies; the digests of encoders that are
# written are in the set, and its own is added.
Writer = Callable[[Path, set[str]], None]


def keep_policies(
    config: RolloutConfig, jobs: Sequence[EvaluationJob], run: tracking.Run
) -> list[str]:
    """Log the fitted policies of the encoder under test.

    Args:
        config: of the evaluation.
        jobs: all of it, their policies fitted.
        run: the evaluation's.

    Returns:
        A note of how to load one; none where nothing is kept.
    """
    if not config.keep_policies:
        return []
    kept = {policy_name(job): job for job in jobs if job.under_test == TRAINED}

    def writer(name: str, job: EvaluationJob) -> Writer:
        return lambda folder, logged: write_policy_of(folder, name, job, logged)

    log_policies({name: writer(name, job) for name, job in kept.items()}, run)
    name, job = next(iter(kept.items()))
    given = ["image", "proprioception"] if job.policy.use_proprioception else ["image"]
    given += [f'task="{job.task}"'] if len(job.policy.demonstrations) > 1 else []
    return [how_to_use(len(kept), run, name, given)]


def log_policies(writers: Mapping[str, Writer], run: tracking.Run) -> None:
    """Log policies to a run, each encoder that several share once.

    Args:
        writers: of each policy, by its name.
        run: the evaluation's.
    """
    logged: set[str] = set()
    for write in writers.values():
        # One at a time: encoders of end-to-end policies are large.
        with tempfile.TemporaryDirectory() as scratch:
            write(Path(scratch), logged)
            run.log_folder(scratch, POLICIES)


def how_to_use(number: int, run: tracking.Run, name: str, given: Sequence[str]) -> str:
    """A note of how to load a kept policy.

    Args:
        number: of all that are kept.
        run: the evaluation's.
        name: of one of them.
        given: what it is given.
    """
    return (
        f"fitted policies of the encoder under test that are kept: {number}; use one: "
        f'dynaflip.load_policy("runs:/{run.run_name}/{POLICIES}/{name}").act({", ".join(given)})'
    )


def policy_name(job: EvaluationJob) -> str:
    """A policy's name within its run: its task and seed, and where it reads its image alone."""
    spec = job.policy
    task = job.task if len(spec.demonstrations) == 1 else "multitask"
    safe = safe_name(task)
    if safe != task:  # two tasks may have become one name
        safe += f"-{spec.digest()[:6]}"
    if (first := spec.demonstrations[0].first) is not None:
        safe += f"-{first}-demonstrations"
    return f"{safe}-seed{spec.seed}{'' if spec.use_proprioception else '-image-only'}"


def safe_name(text: str) -> str:
    """A text as part of the name of a folder."""
    return re.sub(r"[^\w.-]", "_", text)


def write_policy_of(folder: Path, name: str, job: EvaluationJob, logged: set[str]) -> None:
    """Write a job's fitted policy, and its encoder beside it where that is not written yet.

    Args:
        folder: of all policies.
        name: of this one's folder.
        job: its policy is fitted.
        logged: digests of the encoders that are written; this policy's is added.
    """
    from dynaflip.encoders.checkpoint import weights_digest
    from dynaflip.eval.policies.policy_folder import shared_encoder, write_policy
    from dynaflip.eval.policies.recipe import split_tensors
    from dynaflip.platform.evaluation import cache
    from dynaflip.platform.evaluation.policy_fits import words_of

    spec = job.policy
    tensors = cache.load_policy(spec.digest())
    parts, digest = split_tensors(tensors), spec.encoder.digest
    if parts.encoder:
        adapted = _write_adapted(folder / "adapted", job, parts)
        digest = weights_digest(adapted)
        adapted.rename(folder / shared_encoder(digest))
        logged.add(digest)
    else:
        write_encoder_of(folder, spec.encoder, logged)
    own = {key: tensors[key] for key in _own(tensors)}
    write_policy(folder / name, _description(job, digest), own, words_of(spec))


def write_encoder_of(folder: Path, encoder: Encoder, logged: set[str]) -> None:
    """Write a policy's frozen encoder where it is not written yet.

    Args:
        folder: of all policies.
        encoder: of the policy.
        logged: digests of the encoders that are written; this one's is added.
    """
    from dynaflip.encoders.checkpoint import copy_encoder
    from dynaflip.eval.policies.policy_folder import shared_encoder

    if encoder.digest not in logged:
        assert encoder.folder is not None, "the encoder under test is one"
        copy_encoder(encoder.folder, folder / shared_encoder(encoder.digest))
    logged.add(encoder.digest)


def _own(tensors: dict[str, Any]) -> list[str]:
    """Names of a policy's tensors without those of its encoder, which has a folder."""
    from dynaflip.eval.policies.recipe import ENCODER_PREFIX

    return [name for name in tensors if not name.startswith(ENCODER_PREFIX)]


def _write_adapted(folder: Path, job: EvaluationJob, tensors: PolicyTensors) -> Path:
    """The encoder that was trained with a policy, as an ordinary encoder's folder."""
    from dynaflip.encoders.checkpoint import save_image_encoder
    from dynaflip.encoders.model_card import model_card
    from dynaflip.platform.evaluation.policy_fits import adapted_encoder

    spec = job.policy
    encoder = adapted_encoder(spec, tensors)
    how = {"adaptation": spec.adaptation, "of": spec.encoder.name, "policy": policy_name(job)}
    info = {**encoder.info, "adapted": how}
    return save_image_encoder(folder, encoder, info, model_card(encoder, info))


def _description(job: EvaluationJob, digest: str) -> PolicyDescription:
    from dynaflip.eval.policies.policy_folder import PolicyDescription

    spec, where = job.policy, environment(job.environment)
    return PolicyDescription(
        head=spec.head,
        head_settings=spec.head_settings,
        readout=spec.readout,
        readout_settings=spec.readout_settings,
        adaptation=spec.adaptation,
        seed=spec.seed,
        environment=job.environment,
        tasks=tuple(shown.task for shown in spec.demonstrations),
        captions=tuple(shown.caption for shown in spec.demonstrations),
        demonstrations=spec.demonstrations[0].shown,
        image_px=job.image_px,
        proprioception=where.proprioception_names if spec.use_proprioception else (),
        actions=where.action_names,
        control_hz=where.control_hz,
        encoder=spec.encoder.name,
        encoder_digest=digest,
        dynaflip_version=dynaflip.__version__,
        precision=spec.precision,
    )
