"""Check the rules of the house; prints each breach and leaves with 1.

Each rule is a function of ``import_rules.py``, ``single_homes.py`` or ``naming_rules.py`` from
all files to their breaches. ``allowed.txt`` beside this file lists breaches that are still to be
mended: a rule's name and a pattern of files, one a line.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import import_rules
import naming_rules
import single_homes
from python_files import Breach, Source, read_sources

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = Path(__file__).with_name("allowed.txt")
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
)


def breaches(root: Path) -> list[Breach]:
    """Every breach of every rule in a checkout."""
    sources = read_sources(root)
    return [breach for rule in RULES for breach in rule(sources)]


def read_allowed(path: Path) -> list[tuple[str, str]]:
    """Rule and pattern of files of each breach that is still to be mended."""
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return [(rule, pattern) for rule, pattern in pairs]


def main() -> int:
    """Print the breaches and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    parser.add_argument("--all", action="store_true", help="show the allowed breaches too")
    args = parser.parse_args()
    allowed = [] if args.all else read_allowed(ALLOWED)
    unused = set(allowed)
    found = []
    for breach in breaches(args.root):
        matching = {
            (rule, pattern)
            for rule, pattern in allowed
            if rule == breach.rule and fnmatch.fnmatch(breach.file, pattern)
        }
        unused -= matching
        if not matching:
            found.append(breach)
            print(breach)
    for rule, pattern in sorted(unused):
        print(f"note: {ALLOWED.name} no longer needs {rule} {pattern}")
    print(f"house rules: {len(found)} breaches")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
