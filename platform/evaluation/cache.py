"""The cache of an evaluation: fitted policies and results of finished jobs.

Files below ``DYNAFLIP_HOME/evaluation``, named by their recipes' digests, whole or absent: an
interrupted evaluation resumes from them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynaflip.eval.rollout import GoalDistance
from dynaflip.files import write_file
from dynaflip.platform.evaluation.job_result import JobResult
from dynaflip.platform.evaluation.plan import EvaluationJob, PolicySpec
from dynaflip.platform.paths import home


def has_policy(spec: PolicySpec) -> bool:
    """True if the policy is fitted already."""
    return _policy_path(spec.digest()).is_file()


def save_policy(digest: str, weights: dict[str, Any]) -> None:
    """Save a fitted policy's state dict."""
    from safetensors.torch import save

    plain = {name: tensor.contiguous() for name, tensor in weights.items()}
    write_file(_policy_path(digest), save(plain))


def load_policy(digest: str) -> dict[str, Any]:
    """A fitted policy's state dict."""
    from safetensors.torch import load_file

    return load_file(_policy_path(digest))


def save_result(job: EvaluationJob, result: JobResult) -> None:
    """Save a job's result; its animation first, so that a result is never without it."""
    if result.animation is not None:
        write_file(animation_path(job), result.animation)
    values = {k: v for k, v in asdict(result).items() if k not in ("animation", "waited_s")}
    values["episodes"] = [asdict(start) for start in job.starts]
    values |= {"arm": job.under_test, "task": job.task, "condition": job.condition.name}
    write_file(_result_path(job), json.dumps(values, indent=1).encode())


def load_result(job: EvaluationJob) -> JobResult | None:
    """A job's result, or None where it has not run (or its file is damaged)."""
    try:
        values = json.loads(_result_path(job).read_text())
        return JobResult(
            values["success_ever"],
            values["success_last"],
            values["steps"],
            values["seconds"],
            animation=None,
            # Results of before have none.
            goal=[goal and GoalDistance(**goal) for goal in values.get("goal", [])],
        )
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return None


def animation_path(job: EvaluationJob) -> Path:
    """The GIF of a recorded job's first episode."""
    return _result_path(job).with_suffix(".gif")


def _policy_path(digest: str) -> Path:
    return home() / "evaluation" / "policies" / f"{digest}.safetensors"


def _result_path(job: EvaluationJob) -> Path:
    return home() / "evaluation" / "cells" / f"{job.digest()}.json"
