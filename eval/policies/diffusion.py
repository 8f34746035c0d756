"""A diffusion policy: chunks of actions, denoised from noise under the encoder's features.

Chi et al. 2023, "Diffusion Policy" (arXiv 2303.04137): a DDPM (Ho et al. 2020) over the next
``chunk`` actions with the squared-cosine schedule and noise prediction, sampled by DDIM
(Song et al. 2021). The denoiser is a residual network with the step and the input modulating
every block (FiLM); the chunk is short enough to need no convolutions over time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dynaflip.eval.policies.base import Demonstrations, PolicyHead, seeded
from dynaflip.eval.policies.config import DiffusionConfig
from dynaflip.eval.policies.inputs import HeadInputs
from dynaflip.eval.policies.norms import input_norm


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.inner = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        return x + self.inner(self.norm(x) * (1 + scale) + shift)


class DiffusionPolicy(nn.Module):
    """(B, I) → chunks of actions."""

    alpha_bar: Tensor  # share of the signal that each diffusion step leaves

    def __init__(self, input_dim: int, action_dim: int, config: DiffusionConfig) -> None:
        super().__init__()
        self.config, self.action_dim = config, action_dim
        width = config.hidden_dim
        self.norm = input_norm(config.input_norm, input_dim)
        self.condition = nn.Sequential(
            nn.Linear(input_dim, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(config.chunk * action_dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.blocks))
        self.leave = nn.Linear(width, config.chunk * action_dim)
        # The squared-cosine schedule of Nichol and Dhariwal (2021).
        steps = torch.arange(config.diffusion_steps + 1, dtype=torch.float64)
        curve = torch.cos((steps / config.diffusion_steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
        self.register_buffer("alpha_bar", torch.cumprod(1 - betas, 0).float(), persistent=False)

    def encode(self, inputs: Tensor) -> Tensor:
        """(B, I) → (B, width): computed once, used at every denoising step."""
        return self.condition(self.norm(inputs))

    def forward(self, noisy: Tensor, step: Tensor, encoded: Tensor) -> Tensor:
        """The noise in (B, T, A) at diffusion step (B,) int, under ``encoded`` (B, width)."""
        condition = encoded + self.time(_sinusoids(step, self.config.hidden_dim))
        x = self.enter(noisy.flatten(1))
        for block in self.blocks:
            x = block(x, condition)
        return self.leave(x).view_as(noisy)

    @torch.no_grad()
    def plan(self, inputs: Tensor) -> Tensor:
        """(B, I) → (B, execute, A) in [-1, 1], by DDIM without added noise.

        The starting noise is the same for every call, so that equal inputs give equal plans.
        """
        shape = (1, self.config.chunk, self.action_dim)
        noise = torch.randn(shape, generator=seeded(0)).expand(len(inputs), -1, -1)
        return self.denoise(noise, inputs)[:, : self.config.execute]

    @torch.no_grad()
    def denoise(self, noise: Tensor, inputs: Tensor) -> Tensor:
        """Noise (B, T, A) → actions (B, T, A) in [-1, 1] under inputs (B, I), by DDIM."""
        config = self.config
        encoded = self.encode(inputs)
        x = noise
        times = torch.linspace(config.diffusion_steps - 1, 0, config.sampling_steps).round().long()
        for index, time in enumerate(times.tolist()):
            now = self.alpha_bar[time]
            estimate = self(x, torch.full((len(inputs),), time), encoded)
            clean = ((x - (1 - now).sqrt() * estimate) / now.sqrt()).clamp(-1, 1)
            estimate = (x - now.sqrt() * clean) / (1 - now).sqrt()
            last = index + 1 == len(times)
            before = torch.ones(()) if last else self.alpha_bar[times[index + 1]]
            x = before.sqrt() * clean + (1 - before).sqrt() * estimate
        return x


def fit_diffusion(
    demonstrations: Demonstrations,
    config: DiffusionConfig,
    *,
    use_proprioception: bool,
    seed: int,
) -> DiffusionPolicy:
    """Fit to demonstrations; the weights are averaged over the last steps (EMA 0.995).

    Their read-out, where they have one, learns with it, in place.
    """
    inputs = HeadInputs(demonstrations, use_proprioception)
    chunks = torch.from_numpy(demonstrations.chunks(config.chunk))
    generator = seeded(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DiffusionPolicy(inputs.width, demonstrations.action_dim, config)
    inputs.set_statistics(network.norm)
    trained = nn.ModuleList([network, *inputs.trained])
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    average = torch.optim.swa_utils.AveragedModel(
        trained, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    trained.train()
    for _ in range(config.steps):
        rows = torch.randint(len(inputs), (config.batch_size,), generator=generator)
        step = torch.randint(config.diffusion_steps, (config.batch_size,), generator=generator)
        noise = torch.randn(config.batch_size, *chunks.shape[1:], generator=generator)
        signal = network.alpha_bar[step][:, None, None]
        noisy = signal.sqrt() * chunks[rows] + (1 - signal).sqrt() * noise
        loss = nn.functional.mse_loss(
            network(noisy, step, network.encode(inputs.rows(rows))), noise
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(trained)
    trained.load_state_dict(average.module.state_dict())
    trained.eval()
    return network


def load_diffusion(weights: Mapping[str, Tensor], config: DiffusionConfig) -> DiffusionPolicy:
    """A fitted head from its state dict."""
    action_dim = len(weights["leave.bias"]) // config.chunk
    network = DiffusionPolicy(weights["condition.0.weight"].shape[1], action_dim, config)
    network.load_state_dict(dict(weights))
    return network.eval()


HEAD = PolicyHead(DiffusionConfig, fit_diffusion, load_diffusion, trains_readout=True)


def _sinusoids(step: Tensor, width: int) -> Tensor:
    """(B,) → (B, width) position codes (Vaswani et al. 2017)."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half) / half)
    angles = step[:, None] * rates
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width - 2 * half))
