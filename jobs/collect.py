"""Record scripted demonstrations in a simulator as a LeRobot v3.0 data set with depth.

    python jobs/collect.py --output data/demo --episodes_per_task 12

Run again, it records what is missing; with other settings it wants another --output.
Layouts and appearance come from the pretraining split, and there is no setting for that.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.platform import paths
from dynaflip.platform.cli import config_parser, parse_config, run_job
from dynaflip.platform.cluster import joins_cluster
from dynaflip.platform.demonstrations.config import CollectConfig


def main(argv: list[str]) -> int:
    """Collect and print what came of it."""
    parser = config_parser(__doc__ or "", CollectConfig)
    parser.add_argument(
        "--output", metavar="PATH", help="data set (default: data/demo in the home)"
    )
    parser.add_argument(
        "--num-cpus", type=int, metavar="N", help="CPUs to record with (default: all)"
    )
    args, config = parse_config(parser, CollectConfig, argv, {})

    from dynaflip.eval.envs.registry import environment
    from dynaflip.platform.demonstrations.collect import collect

    if args.num_cpus is not None and args.num_cpus < 1:
        raise UserError(f"--num-cpus: must be at least 1, got {args.num_cpus}")
    if args.num_cpus is not None and joins_cluster():
        raise UserError("--num-cpus: the cluster that was joined has its own; leave it out")
    _check_rate(environment(config.environment))
    output = paths.output_folder(args.output, paths.default_data(), setting="--output")

    for note in environment(config.environment).notes:
        print(f"note: {note}")
    outcome = collect(config, output, num_cpus=args.num_cpus)
    for task, (solved, episodes) in outcome.successes.items():
        print(f"  {task:<28} solved {solved} of {episodes}")
    earlier = outcome.episodes - outcome.recorded_now
    reused = f", {earlier} of them from before" if earlier else ""
    error = outcome.depth_error
    print(
        f"{outcome.episodes} episodes{reused}, {outcome.frames} frames, "
        f"{sum(s for s, _ in outcome.successes.values())} solved, {outcome.seconds:.0f} s"
    )
    if error is not None:
        print(
            f"depth error: median {error['median_mm']:.2f} mm, "
            f"99 % below {error['p99_mm']:.2f} mm, max {error['max_mm']:.2f} mm"
        )
    print(f"data set: {outcome.path}")
    return 0


def _check_rate(spec: EnvironmentSpec) -> None:
    """Refuse a rate that a recording, of whole frames a second, would say wrongly."""
    frames = round(spec.control_hz)
    if not 0.98 <= frames / spec.control_hz <= 1.02:
        raise UserError(
            f"environment: {spec.name} acts {spec.control_hz:g} times a second, and recordings "
            f"have whole frames a second: {frames} is more than 2 % off; give another control_hz"
        )


if __name__ == "__main__":
    run_job(main)
