"""A window of steps under torch's profiler, on request (``train.profile_steps``)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from dynaflip.platform.storage import open_storage

TRACE, TABLE = "trace.json.gz", "operations.txt"
_ROWS = 60


def profile_uri(checkpoints: str) -> str:
    """Folder of a run's profiles, beside its checkpoints."""
    home, _, name = checkpoints.rstrip("/").rpartition("/")
    return f"{home}/profile" if name == "checkpoints" else f"{home}/{name}-profile"


def collect(uri: str, folder: Path) -> list[Path]:
    """Copy a run's profiles into a folder of this machine; returns their folders."""
    storage = open_storage(uri, TABLE)
    copies = []
    for name in storage.names():
        copies.append(folder / name)
        with storage.fetched(name) as files:
            if files.resolve() != copies[-1].resolve():
                shutil.copytree(files, copies[-1], dirs_exist_ok=True)
    return copies


class ProfiledSteps:
    """Profiles the steps from ``start`` to ``stop``, as they are counted when they begin."""

    def __init__(
        self, window: tuple[int, int] | None, device: str, uri: str, log: Callable[[str], None]
    ) -> None:
        """``window`` is (start, stop), or None for no profile; ``uri`` is where it goes."""
        self.window, self.uri, self.log = window, uri, log
        self._on_gpu = torch.device(device).type == "cuda"
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Begin, where the window begins with this step."""
        if self.window is None or step != self.window[0]:
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        self._profile = profile(activities=activities, profile_memory=True)
        self._profile.start()

    def after(self, step: int) -> None:
        """Write trace and table, where the window ends with this many steps done."""
        if self._profile is None or self.window is None or step < self.window[1]:
            return
        if self._on_gpu:
            torch.cuda.synchronize()
        done, self._profile = self._profile, None
        done.stop()
        storage = open_storage(self.uri, TABLE)
        staged = storage.staging()
        done.export_chrome_trace(str(staged / TRACE))
        order = "self_cuda_time_total" if self._on_gpu else "self_cpu_time_total"
        table = done.key_averages().table(sort_by=order, row_limit=_ROWS)
        (staged / TABLE).write_text(f"{table}\n")
        name = f"steps-{self.window[0]}-{self.window[1]}"
        storage.publish(staged, name)
        self.log(
            f"profile of steps {self.window[0]} to {self.window[1]}: {self.uri}/{name}, and in "
            f"MLflow below profile/ when the run ends; open {TRACE} at https://ui.perfetto.dev, "
            f"{TABLE} has the operations by time"
        )
