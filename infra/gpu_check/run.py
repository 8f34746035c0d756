"""GPU check: is this machine right and fast for pretraining?

    make gpu PYTHON=python3                   # or: python3 infra/gpu_check/run.py
    python3 infra/gpu_check/run.py --parts loss memory --output loss.json

Runs with the interpreter that it is started with: torch, numpy, safetensors and transformers are
enough; it makes no environment, installs nothing and reaches no network. Each part is a process
of its own with a share of the time, so that one that fails, hangs or spoils the device costs no
other. Without a GPU every part runs at a toy size. Leaves with 1 where a part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import machine  # noqa: E402
from rows import Row, read_row, table  # noqa: E402

# Name of each part: its module here, its share of the time, and what it measures.
PARTS: dict[str, tuple[str, float, str]] = {
    "tests": ("device_tests", 0.25, "the tests with the marker gpu"),
    "loss": ("loss_speed", 0.08, "contrastive loss beside three matrix products"),
    "step": ("step_speed", 0.35, "training step beside transformers' forward and backward"),
    "memory": ("memory_use", 0.09, "peak memory: GradCache, recomputed activations"),
    "augment": ("augment_speed", 0.05, "augmentation on the device"),
    "feed": ("feed_speed", 0.18, "the decode pool feeding the real loop"),
}
MINUTES = 8.0
END_S = 4.0  # for the table, and for processes to end


@dataclass
class Check:
    """One run of the check: its time, and what it has found so far."""

    began_s: float
    ends_s: float
    device: str
    rows: list[Row]
    seconds: dict[str, float]

    def say(self, line: str) -> None:
        """Show a line with the time since the check began."""
        print(f"[{time.time() - self.began_s:5.0f} s] {line}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run all parts, or one of them in this process; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of all parts (default 8)")
    parser.add_argument("--output", help="JSON file to write; none by default")
    parser.add_argument("--cpu", action="store_true", help="toy sizes, even beside a GPU")
    for name in ("do", "rows", "began", "ends", "device"):  # how a process of parts is started
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.do == "machine":
        machine.write(Path(args.rows))
        return 0
    if args.do:
        for name in args.do.split(","):
            run_part(name, args)
        return 0
    return run_check(args)


def run_part(name: str, args: argparse.Namespace) -> None:
    """One part, in this process; its rows go to a file."""
    from part import Part

    part = Part(name, args.device, Path(args.rows), float(args.began), float(args.ends))
    try:
        importlib.import_module(PARTS[name][0]).run(part)
    except Exception as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        part.add("failed", failed=True, note=what[:200])


def run_check(args: argparse.Namespace) -> int:
    """Every part in its process, the table and the JSON; returns the exit code."""
    signal.signal(signal.SIGTERM, _stop)
    began_s = time.time()
    with tempfile.TemporaryDirectory() as folder:
        found = _machine(Path(folder) / "machine.json", args)
        if found is None:
            return 1
        check = Check(began_s, began_s + 60 * args.minutes - END_S, found["device"], [], {})
        print("\n".join(machine.lines(found)), flush=True)
        stopped = False
        try:
            # Each in a process of its own; toys share one, whose start is most of their time.
            toys = check.device == "cpu"
            for names in [args.parts] if toys else [[name] for name in args.parts]:
                _run_in_process(check, names, args.parts, Path(folder) / f"{names[0]}.jsonl")
        except KeyboardInterrupt:
            stopped = True
    print(f"\n{table(check.rows)}\n", flush=True)
    failed = sorted({row.part for row in check.rows if row.failed})
    took_s = time.time() - began_s
    if args.output:
        _write(args.output, check, found, took_s, failed)
        print(f"written: {args.output}")
    print(_verdict(check, args.parts, failed, stopped, took_s), flush=True)
    return 130 if stopped else int(bool(failed))


def _stop(*unused: object) -> None:
    """End like Ctrl-C does: what has been found so far is shown, and no process stays behind."""
    raise KeyboardInterrupt


def _machine(path: Path, args: argparse.Namespace) -> dict[str, Any] | None:
    """The machine, seen by a process that leaves nothing on the device."""
    command = [sys.executable, str(Path(__file__).resolve()), "--do", "machine"]
    done = subprocess.run([*command, "--rows", str(path)], env=_environment(), stderr=sys.stderr)
    if done.returncode or not path.exists():
        print(f"error: torch does not work with {sys.executable}; see above")
        return None
    found = json.loads(path.read_text())
    return found | {"device": "cpu"} if args.cpu else found


def _run_in_process(check: Check, names: list[str], every: list[str], rows: Path) -> None:
    """Run parts and collect their rows; what they do not finish in their time is stopped."""
    share = sum(PARTS[name][1] for name in names)
    rest = sum(PARTS[name][1] for name in every[every.index(names[0]) :])
    # What earlier parts did not need is shared among those to come.
    now_s = time.time()
    budget_s = max(1.0, (check.ends_s - now_s) * share / rest)
    command = [
        *(sys.executable, str(Path(__file__).resolve()), "--do", ",".join(names)),
        *("--began", repr(check.began_s), "--ends", repr(now_s + 0.95 * budget_s)),
        *("--device", check.device, "--rows", str(rows)),
    ]
    environment = _environment(check.device)
    process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
    note = "gave no row"
    try:
        for name in names:
            check.say(f"{name}: {PARTS[name][2]}")
        if code := process.wait(budget_s):
            note = f"ended with exit code {code}"
    except subprocess.TimeoutExpired:
        note = f"stopped after {budget_s:.0f} s"
    except KeyboardInterrupt:
        note = "stopped"
        raise
    finally:
        _end(process)
        lines = rows.read_text().splitlines() if rows.exists() else []
        found = [read_row(json.loads(line)) for line in lines if line.endswith("}")]
        unfinished = set(names) - {row.part for row in found}
        if note != "gave no row" and found:  # it was in the middle of the last one
            unfinished.add(found[-1].part)
        lost = [Row(name, "failed", failed=True, note=note) for name in names if name in unfinished]
        check.rows += [*found, *lost]
        check.seconds[names[0] if len(names) == 1 else "all"] = time.time() - now_s


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(device: str = "") -> dict[str, str]:
    """No network, no other checkout's code, and results that can be repeated."""
    # Toy tensors on threads of a busy machine wait for one another.
    threads = {"OMP_NUM_THREADS": "1"} if device == "cpu" else {}
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return {
        **os.environ,
        **threads,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # cuBLAS is deterministic with it, which the test of exact resume asks for.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }


def _write(
    path: str, check: Check, found: dict[str, Any], took_s: float, failed: list[str]
) -> None:
    document = {
        "machine": found,
        "toy_sizes": check.device == "cpu",
        "seconds": round(took_s, 1),
        "seconds_of_parts": {name: round(s, 1) for name, s in check.seconds.items()},
        "failed": failed,
        "rows": [row.as_json() for row in check.rows],
    }
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n")


def _verdict(
    check: Check, names: list[str], failed: list[str], stopped: bool, took_s: float
) -> str:
    took = f"{took_s:.0f} s"
    if stopped:
        return f"stopped after {took}"
    what = f"failed: {', '.join(failed)}" if failed else "no part failed"
    if check.device == "cuda":
        return f"{what}; {took}"
    return (
        f"{what}; {took}. No GPU: toy sizes on a CPU, whose figures say nothing. These parts need "
        f"a GPU: {', '.join(names)}"
    )


if __name__ == "__main__":
    sys.exit(main())
