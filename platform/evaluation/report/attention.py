"""What policies' read-outs attend to, in a report: overlays, and shares on robot and object."""

from __future__ import annotations

import numpy as np

from dynaflip.eval.intervals.hierarchical_bootstrap import success_rate
from dynaflip.eval.metrics.attention import AttentionMaps, twice
from dynaflip.platform.evaluation.attention import is_shown, shown_conditions
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.plan import Condition, EvaluationJob, PolicySpec
from dynaflip.platform.evaluation.report.html_page import ReportImage, jpeg_of
from dynaflip.platform.evaluation.report.rollout_tables import condition_words, percent
from dynaflip.platform.evaluation.report.tables import Section

_PARTS = {"robot": "robot", "objects": "object"}  # masks of the moments → their names


def attention_sections(
    config: RolloutConfig, jobs: list[EvaluationJob], maps: dict[str, AttentionMaps]
) -> tuple[list[Section], dict[str, float]]:
    """Shares on robot and object, over all tasks and by task, and the first as metrics.

    Nothing where the environment cannot tell robot and objects apart.

    Args:
        config, jobs: what was evaluated.
        maps: by task; empty where nothing attends.
    """
    if not maps or any(of_task.moments.robot is None for of_task in maps.values()):
        return [], {}
    conditions = shown_conditions(jobs)
    kind = _kind(maps)
    heads = [f"on the {name}, {condition_words(c)}" for c in conditions for name in _PARTS.values()]
    over_all = Section(f"{kind} on robot and object, %", columns=("", *heads))
    by_task = Section(f"{kind} on the object by task, unperturbed, %", columns=("", *maps))
    metrics: dict[str, float] = {}
    for under_test in _shown(config, jobs):
        own = _shares(under_test, config, jobs, maps)
        row = [under_test]
        for condition in conditions:
            for part, name in _PARTS.items():
                found = own[condition.name, part]
                row.append(_interval(found))
                key = f"attention/{name}/{condition.name}/{under_test.replace(' ', '_')}"
                metrics[key] = float(found.mean())
        over_all.rows.append(row)
        alone = own[conditions[0].name, "objects"]
        by_task.rows.append([under_test, *(_interval(alone[:, [i]]) for i in range(len(maps)))])
    areas = [
        np.mean([_area(of_task, condition, part) for of_task in maps.values()])
        for condition in conditions
        for part in _PARTS
    ]
    by_area = [_area(of_task, conditions[0], "objects") for of_task in maps.values()]
    for section, shares in ((over_all, areas), (by_task, by_area)):
        section.rows.append(["share of the area", *(f"{100 * share:.1f}" for share in shares)])
    return ([over_all, by_task] if len(maps) > 1 else [over_all]), metrics


def attention_images(
    config: RolloutConfig, jobs: list[EvaluationJob], maps: dict[str, AttentionMaps]
) -> list[ReportImage]:
    """An image a task and condition: the first moment, and what each encoder's policy reads of it.

    Args:
        config, jobs, maps: as of :func:`attention_sections`.
    """
    made: list[ReportImage] = []
    for condition in shown_conditions(jobs) if maps else []:
        for task, of_task in maps.items():
            index = of_task.moments.conditions.index(condition.name)
            image = of_task.moments.images[index]
            cells, names = [twice(image)], ["image"]
            for under_test, specs in _shown(config, jobs).items():
                first = specs[task][0].digest()
                cells.append(of_task.readings[first].drawn(index, image))
                names.append(under_test)
            caption = f"{task}, {condition_words(condition)}"
            name = f"attention-{task}-{condition.name}.jpg"
            heading, lead = ("", "") if made else (_HEADINGS[_kind(maps)], _LEADS[_kind(maps)])
            sheet = jpeg_of(np.concatenate(cells, 1))
            made.append(ReportImage(name, caption, sheet, heading, columns=tuple(names), lead=lead))
    return made


_ATTENTION, _POSITIONS = "Attention", "Positions that are read"
_HEADINGS = {
    _ATTENTION: "Where policies look: attention of the read-out",
    _POSITIONS: "Where policies look: positions that the read-out gives",
}
_LEADS = {
    _ATTENTION: "The brighter, the more of the fitted query's attention (mean over heads and "
    "queries, policy of seed 0); each image has its own scale. More of it on robot and object is "
    "what one hopes for; the tables have the shares.",
    _POSITIONS: "A point is the expected position of one learned map (policy of seed 0). Where a "
    "map is high in several places the point lies between them. More points on robot and object "
    "are what one hopes for; the tables have the shares.",
}


def _kind(maps: dict[str, AttentionMaps]) -> str:
    reading = next(iter(next(iter(maps.values())).readings.values()))
    return _POSITIONS if reading.heat is None else _ATTENTION


def _shown(
    config: RolloutConfig, jobs: list[EvaluationJob]
) -> dict[str, dict[str, list[PolicySpec]]]:
    """Name of an encoder → task → its policies by seed."""
    found: dict[str, dict[str, dict[int, PolicySpec]]] = {}
    for job in jobs:
        if is_shown(config, job.policy):
            by_seed = found.setdefault(job.under_test, {}).setdefault(job.task, {})
            by_seed[job.policy.seed] = job.policy
    return {
        name: {task: [by_seed[seed] for seed in sorted(by_seed)] for task, by_seed in tasks.items()}
        for name, tasks in found.items()
    }


def _shares(
    under_test: str,
    config: RolloutConfig,
    jobs: list[EvaluationJob],
    maps: dict[str, AttentionMaps],
) -> dict[tuple[str, str], np.ndarray]:
    """(condition, part) → shares (policies, tasks, 1, moments)."""
    shares: dict[tuple[str, str], list[np.ndarray]] = {}
    specs = _shown(config, jobs)[under_test]
    for task, of_task in maps.items():
        conditions = np.array(of_task.moments.conditions)
        for part in _PARTS:
            masks = getattr(of_task.moments, part)
            values = np.stack(
                [of_task.readings[spec.digest()].share(masks) for spec in specs[task]]
            )
            for name in dict.fromkeys(of_task.moments.conditions):
                shares.setdefault((name, part), []).append(values[:, conditions == name])
    return {key: np.stack(by_task, 1)[:, :, None] for key, by_task in shares.items()}


def _interval(shares: np.ndarray) -> str:
    """Mean in percent, with its interval over policies and moments; one of each has none."""
    if shares.shape[0] == shares.shape[3] == 1:
        return f"{100 * shares.mean():.1f}"
    return percent(success_rate(shares))


def _area(of_task: AttentionMaps, condition: Condition, part: str) -> float:
    chosen = np.array(of_task.moments.conditions) == condition.name
    return float(getattr(of_task.moments, part)[chosen].mean())
