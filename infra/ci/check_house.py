"""Check the rules of the house; prints each breach and leaves with 1.

Each rule is a function of ``import_rules.py``, ``single_homes.py``, ``naming_rules.py`` or
``length_rules.py`` from all files to their breaches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import import_rules
import length_rules
import naming_rules
import single_homes
from python_files import Breach, Source, read_sources

ROOT = Path(__file__).resolve().parents[2]
RULES: tuple[Callable[[list[Source]], Iterator[Breach]], ...] = (
    import_rules.check_direction,
    import_rules.check_circles,
    single_homes.check_simulator,
    single_homes.check_tracking,
    single_homes.check_s3_client,
    single_homes.check_atomic_write,
    naming_rules.check_standard_names,
    naming_rules.check_installed_names,
    naming_rules.check_test_names,
    length_rules.check_file_lengths,
    length_rules.check_function_lengths,
)


def breaches(root: Path) -> list[Breach]:
    """Every breach of every rule in a checkout."""
    sources = read_sources(root)
    return [breach for rule in RULES for breach in rule(sources)]


def main() -> int:
    """Print the breaches and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    found = breaches(parser.parse_args().root)
    for breach in found:
        print(breach)
    print(f"house rules: {len(found)} breaches")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
