"""Whether the suite offline agrees in sign with rollouts: trained encoder against initialisation.

    DYNAFLIP_HOME=HOME PYTHONPATH=. python tests/benchmarks/offline_sign.py \
        --encoder models:/dynaflip-encoder@candidate --data HOME/data/demo

Nothing is pretrained: the encoder is a registered version or a folder. Offline, policies learn from
the recordings and are asked about held-out ones; in rollouts the same head learns from 25
demonstrations and acts, by the protocol of jobs/configs/headline.yaml but for some tasks, factors
and episodes. Both are on dev, with perturbed images and scenes; differences are paired,
above 0 where the trained encoder is better, with 95 % intervals. Finished jobs are cached, so a
second start goes on. Exit code 1 where one is clearly better and the other clearly worse.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from dynaflip.platform.config_loader import load_config
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.suites.offline import Offline
from dynaflip.platform.evaluation.suites.rollouts import Rollouts
from dynaflip.platform.paths import default_data, input_path

GROUPS = ("out_of_distribution", "in_distribution")
Ends = tuple[float, float, float]  # value, low, high
HEADLINE = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "headline.yaml"


def offline_gaps(args: argparse.Namespace) -> dict[str, Ends]:
    """Group of conditions → how much lower the trained encoder's action error is, sigma."""
    config = OfflineConfig(
        encoder=args.encoder,
        source=input_path(args.data, default_data()),
        baselines=("initialization",),
        seeds=args.seeds,
        behaviour_cloning=load_config(RolloutConfig, str(HEADLINE), {}).behaviour_cloning,
        keep_policies=False,
    )
    outcome = Offline().run(config)
    print(outcome.table, *outcome.verdict, sep="\n", flush=True)
    keys = {group: f"action_error/{group}/initialization/this_minus_trained" for group in GROUPS}
    return {group: ends(outcome.metrics, key) for group, key in keys.items()}


def rollout_gaps(args: argparse.Namespace) -> dict[str, Ends]:
    """Group of conditions → how much more often the trained encoder succeeds, share."""
    config = replace(
        load_config(RolloutConfig, str(HEADLINE), {}),
        split="dev",
        encoder=args.encoder,
        baselines=("initialization",),
        tasks=tuple(args.tasks.split(",")),
        factors=tuple(args.factors.split(",")) if args.factors else (),
        all_at_once=False,
        seeds=args.seeds,
        episodes=args.episodes,
        keep_policies=False,
    )
    outcome = Rollouts().run(config)
    print(outcome.table, *outcome.verdict, sep="\n", flush=True)
    place = "success_ever/proprioception/{}/initialization/trained_minus_this"
    return {group: ends(outcome.metrics, place.format(group)) for group in GROUPS}


def ends(metrics: dict[str, float], key: str) -> Ends:
    """A difference with its interval; NaN where it has none."""
    nan = float("nan")
    return metrics[key], metrics.get(f"{key}/low", nan), metrics.get(f"{key}/high", nan)


def agreement(offline: Ends, rollouts: Ends) -> str:
    """Whether two differences have one sign, and how sure that is."""
    same = offline[0] * rollouts[0] > 0
    sure = [one[1] > 0 or one[2] < 0 for one in (offline, rollouts)]
    words = {2: "both intervals leave out 0", 1: "one interval holds 0", 0: "both intervals hold 0"}
    return f"{'signs agree' if same else 'signs differ'} ({words[sum(sure)]})"


def main() -> int:
    """Evaluate by both suites and print the differences side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="models:/dynaflip-encoder@candidate")
    parser.add_argument("--data", default=None, help="LeRobot set; the home's data/demo")
    parser.add_argument("--tasks", default="drawer-open,button-press-topdown,door-open")
    parser.add_argument("--factors", default="light_gain,table_colour,camera", help="'' takes all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=10)
    args = parser.parse_args()
    began = time.monotonic()
    offline, rollouts = offline_gaps(args), rollout_gaps(args)
    contradict = False
    print(f"\ntrained against initialisation, {args.encoder}; above 0: the trained one is better")
    for group in GROUPS:
        a, b = offline[group], tuple(100 * value for value in rollouts[group])
        print(
            f"{group.replace('_', ' ')}: offline {a[0]:+.3f} [{a[1]:+.3f}, {a[2]:+.3f}] sigma, "
            f"rollouts {b[0]:+.1f} [{b[1]:+.1f}, {b[2]:+.1f}] points: "
            f"{agreement(a, rollouts[group])}"
        )
        contradict |= (a[1] > 0 and b[2] < 0) or (a[2] < 0 and b[1] > 0)
    print(f"{time.monotonic() - began:.0f} s")
    return int(contradict)


if __name__ == "__main__":
    sys.exit(main())
