"""Several comparisons at once: Holm's correction.

Of twenty true null hypotheses one is rejected at 5 % by chance. Holm (1979), "A simple sequentially
rejective multiple test procedure", keeps the probability of any false rejection in a family of
comparisons at its level, whatever their dependence, and rejects all that Bonferroni rejects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dynaflip.eval.intervals.hierarchical_bootstrap import LEVEL, Rate


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values in the order given: below α is rejected in a family of level α.

    The k-th smallest of m is multiplied by m − k + 1, and none is below a smaller one's.

    Raises:
        ValueError: a value is no probability.
    """
    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {list(p_values)}")
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    found = np.empty_like(values)
    found[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return found.tolist()


def family_verdicts(differences: Mapping[str, Rate]) -> dict[str, str]:
    """Verdicts of paired differences that hold together, as :meth:`Rate.verdict` words them.

    Args:
        differences: name of a comparison → its difference; all are one family.
    """
    names = list(differences)
    corrected = adjusted([differences[name].p_value() for name in names])
    verdicts = {}
    for name, p_value in zip(names, corrected, strict=True):
        better = "better" if differences[name].value > 0 else "worse"
        verdicts[name] = better if p_value < 1 - LEVEL else "not distinguishable"
    return verdicts
