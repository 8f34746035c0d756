"""What a benchmark prints: a ratio beside what a quiet machine gives.

Times and resident memory depend on what else the machine does, so a ratio out of its range is
shown and never an error; results that do not depend on the machine are asserted.
"""

from __future__ import annotations


def show(name: str, ratio: float, *, at_least: float = 0.0, at_most: float = float("inf")) -> None:
    """Print a ratio, and whether it lies in the range that a quiet machine gives."""
    inside = at_least <= ratio <= at_most
    wanted = f"from {at_least:g} to {at_most:g}" if at_least else f"at most {at_most:g}"
    if at_most == float("inf"):
        wanted = f"at least {at_least:g}"
    note = "" if inside else "  <-- OUT OF RANGE: is the machine busy?"
    print(f"  {name}: {ratio:.3g} (on a quiet machine {wanted}){note}")
