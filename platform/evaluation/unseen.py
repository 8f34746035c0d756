"""Refuse encoders whose pretraining had what an evaluation calls unseen.

What an encoder was pretrained on is recorded in its folder: ``caption_groups`` are the task ids of
its training triplets, or their captions without case and punctuation where a recording has no task
id. Recordings of an environment that bear neither its task ids nor its captions cannot be told.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.eval.envs.registry import environment
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoders_under_test import (
    TRAINED,
    Encoder,
    EncoderUnderTest,
    info_of,
)
from dynaflip.platform.triplets.clips import normalise_caption

_RECORDED = "caption_groups"


def check_unseen(config: RolloutConfig, tested: Sequence[EncoderUnderTest]) -> None:
    """Refuse an evaluation of unseen tasks, or in an unseen environment, that is none.

    The encoder under test must record what it was pretrained on. So must no other: models of others
    and baselines without pretraining on triplets are compared as they are.

    Raises:
        UserError: with what was evaluated and what pretraining had.
    """
    if config.unseen == "nothing":
        return
    spec = environment(config.environment)
    tasks = spec.tasks if config.unseen == "environment" else spec.tasks_of(config.tasks)
    for entry in tested:
        for encoder in entry.encoders:
            groups = info_of(encoder).get(_RECORDED)
            if groups is None:
                if entry.name == TRAINED:
                    raise UserError(
                        f"unseen: {encoder.name} does not record what it was pretrained on (no "
                        f"{_RECORDED} in its config.json), so nothing can be called unseen; set "
                        "--unseen nothing, and the report claims nothing"
                    )
                continue
            seen = tasks_in(groups, spec, tasks)
            if seen:
                raise UserError(_refusal(config, spec, entry, encoder, seen, groups))


def tasks_in(
    groups: Sequence[str], spec: EnvironmentSpec, tasks: Sequence[str]
) -> dict[str, list[str]]:
    """The tasks that pretraining had: each with the groups that are it, by id or by caption.

    Args:
        groups: caption groups of the training triplets.
        spec: the environment of the tasks.
        tasks: ids.
    """
    plain = {normalise_caption(group): group for group in groups}
    found = {}
    for task in tasks:
        names = {normalise_caption(name) for name in (task, *spec.captions[task])}
        if spec.task_suffix:
            names.add(normalise_caption(task.removesuffix(spec.task_suffix)))
        if hits := sorted(plain[name] for name in names & plain.keys()):
            found[task] = hits
    return found


def _refusal(
    config: RolloutConfig,
    spec: EnvironmentSpec,
    entry: EncoderUnderTest,
    encoder: Encoder,
    seen: dict[str, list[str]],
    groups: Sequence[str],
) -> str:
    who = encoder.name if entry.name == TRAINED else f"{entry.name} ({encoder.name})"
    pretrained = f"it was pretrained on {', '.join(sorted(groups))}"
    if config.unseen == "environment":
        return (
            f"unseen: {who} has seen the environment {spec.name}: its pretraining has recordings "
            f"of {', '.join(seen)}; {pretrained}; evaluated are "
            f"{', '.join(spec.tasks_of(config.tasks))}; pretrain it without this environment, or "
            "evaluate in another (--environment)"
        )
    return (
        f"unseen: {who} has seen {len(seen)} of the evaluated tasks ({', '.join(seen)}); evaluated "
        f"are {', '.join(spec.tasks_of(config.tasks))}; {pretrained}; pretrain it without them (as "
        "jobs/configs/unseen_tasks_collect.yaml collects), or evaluate others (--tasks)"
    )
