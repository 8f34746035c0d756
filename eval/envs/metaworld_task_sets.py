"""Named sets of Meta-World tasks that policies are evaluated on.

``r3m5`` are the five tasks of R3M's evaluation (Nair et al. 2022), ``mt10`` Meta-World's own
multi-task set (Yu et al. 2019), ``mw15`` fifteen tasks of this project's choice, because the
paper (arXiv 2605.30350) evaluates on fifteen and does not list them.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynaflip.errors import UserError

TASK_SETS: dict[str, tuple[str, ...]] = {
    "r3m5": (
        "assembly-v3",
        "bin-picking-v3",
        "button-press-topdown-v3",
        "drawer-open-v3",
        "hammer-v3",
    ),
    "mt10": (
        "reach-v3",
        "push-v3",
        "pick-place-v3",
        "door-open-v3",
        "drawer-open-v3",
        "drawer-close-v3",
        "button-press-topdown-v3",
        "peg-insert-side-v3",
        "window-open-v3",
        "window-close-v3",
    ),
    "mw15": (
        "assembly-v3",
        "bin-picking-v3",
        "button-press-topdown-v3",
        "drawer-open-v3",
        "hammer-v3",
        "button-press-v3",
        "coffee-button-v3",
        "door-open-v3",
        "drawer-close-v3",
        "faucet-open-v3",
        "handle-press-v3",
        "plate-slide-v3",
        "sweep-into-v3",
        "window-close-v3",
        "window-open-v3",
    ),
}


def tasks_of(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Task names for a list of sets and tasks, each once, in the order given.

    Args:
        names: of :data:`TASK_SETS` or of single tasks, with or without ``-v3``.
        known: the tasks that there are demonstrations for.

    Raises:
        UserError: a name is neither.
    """
    chosen: list[str] = []
    for name in names:
        full = name if name.endswith("-v3") else f"{name}-v3"
        if name not in TASK_SETS and full not in known:
            raise UserError(
                f"tasks: there is no task or set {name}; sets: {', '.join(TASK_SETS)}; "
                f"tasks: {', '.join(known)}"
            )
        chosen += [task for task in TASK_SETS.get(name, (full,)) if task not in chosen]
    if not chosen:
        raise UserError(f"tasks: name at least one task or set ({', '.join(TASK_SETS)})")
    return tuple(chosen)
