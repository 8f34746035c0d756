"""Two gloo processes compute the loss and the gradients of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.objective import Objective

NUM, DIM, STEPS, GRID = 8, 6, 2, 3
CONFIG = ObjectiveConfig(
    negatives=("others", "swapped", "shuffled"), shuffles=3, direct=0.1, temporal=0.7, flow=1.3
)


class Towers(nn.Module):
    """The smallest model with the outputs that the objective reads."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.language, self.flow = (nn.Linear(DIM, DIM) for _ in range(3))
        self.head = nn.Linear(DIM, STEPS * GRID * GRID * 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x (B, 5, DIM): language, flow and three frames."""
        d_t, d_next, d_far = (self.image(x[:, i]) for i in (2, 3, 4))
        return {
            "z_language": F.normalize(self.language(x[:, 0]), dim=-1),
            "z_flow": F.normalize(self.flow(x[:, 1]), dim=-1),
            "z_image": F.normalize(d_next - d_t, dim=-1),
            "d_t": d_t,
            "d_next": d_next,
            "d_far": d_far,
            "flow_prediction": self.head(d_t).view(-1, STEPS, GRID, GRID, 3),
        }


def example() -> tuple[Towers, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    towers = Towers().double()
    shape = (NUM, STEPS, GRID, GRID)
    batch = {
        # Unevenly spread over the processes: groups, clips, valid frames, visible points.
        "group": torch.tensor([0, 1, 0, 2, 1, 0, 3, 0]),
        "clip": torch.tensor([0, 1, 2, 3, 4, 2, 6, 2]),
        "triplet": torch.tensor([0, 1, 2, 3, 4, 5, 6, 3]),  # one is there twice, on both processes
        # Of the three examples of clip 2, on both processes, the first overlaps the second and the
        # second the third.
        "window_start_s": torch.tensor([0, 0, 1.0, 0, 0, 1.3, 0, 1.6]).double(),
        "window_end_s": torch.tensor([0.5, 0.5, 1.5, 0.5, 0.5, 1.8, 0.5, 2.1]).double(),
        "far_valid": torch.tensor([True, False, False, True, True, True, True, True]),
        "flow_displacement_m": torch.randn(*shape, 3).double(),
        "flow_visible": torch.rand(shape) < torch.linspace(0.1, 0.9, NUM).view(-1, 1, 1, 1),
        "median_depth_m": (0.5 + torch.rand(NUM)).double(),
    }
    return towers, torch.randn(NUM, 5, DIM).double(), batch


def work(rank: int, world: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    towers, x, batch = example()
    mine = slice(rank * NUM // world, (rank + 1) * NUM // world)
    model = DistributedDataParallel(towers)
    terms = Objective(CONFIG)(model(x[mine]), {k: v[mine] for k, v in batch.items()})
    terms["loss"].backward()
    loss = terms["loss"].detach().clone()
    dist.all_reduce(loss)
    saved = {f"grad {name}": p.grad for name, p in towers.named_parameters()}
    saved |= {f"term {name}": value.detach() for name, value in terms.items() if name != "loss"}
    torch.save({**saved, "loss": loss / world}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.ddp
def test_loss_and_gradient_equal_one_process(tmp_path: Path) -> None:
    towers, x, batch = example()
    terms = Objective(CONFIG)(towers(x), batch)
    terms["loss"].backward()
    expected = {f"grad {name}": p.grad for name, p in towers.named_parameters()}
    expected |= {f"term {name}": v.detach() for name, v in terms.items() if name != "loss"}
    expected["loss"] = terms["loss"].detach()
    mp.spawn(work, args=(2, str(tmp_path)), nprocs=2, join=True)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert value is not None
            tolerance = 1e-6 if name.startswith("term") else 1e-10
            torch.testing.assert_close(
                found[name],
                value,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda m, n=name: f"{n}: {m}",
            )
