"""Where policies that train their encoder are fitted. Imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass

from dynaflip.checks import one_of, within

AUTO, CPU, GPU = "auto", "cpu", "gpu"
DEVICES = (AUTO, CPU, GPU)


@dataclass(frozen=True)
class FitsConfig:
    """Machines for the fits of adaptation ``lora`` and ``full``; frozen encoders' stay on CPUs.

    Which device fits changes a policy by rounding alone, as another kind of CPU would, so it is in
    no digest; ``end_to_end.precision`` is.
    """

    device: str = AUTO
    """auto (GPUs where the cluster has them, else CPUs), cpu, or gpu, which waits for a GPU on a
    cluster that was joined, and never fits on a CPU instead."""

    gpus: float = 1.0
    """GPUs that a fit reserves; below 1 several fits share one."""

    def __post_init__(self) -> None:
        one_of(self, DEVICES, "device")
        within(self, 0, 1, "gpus", ends="(]")
        if self.device == CPU and self.gpus != 1:
            raise ValueError("gpus is read where device is auto or gpu, not cpu")


ANYWHERE = FitsConfig()
