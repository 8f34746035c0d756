"""A Gymnasium environment of somebody outside, in one file: drawn with numpy, with an expert."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np


class PointReacher(gymnasium.Env):
    """Bring the red hand to the green goal; actions are metres a second."""

    metadata: ClassVar[dict] = {
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "max_episode_steps": 30,
    }
    action_space: Any = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float64)
    observation_space: Any = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)

    def __init__(self, render_mode: str | None = None, shade: int = 90) -> None:
        self.render_mode, self.shade = render_mode, shade
        self.hand, self.goal = np.zeros(2), np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.hand, self.goal = self.np_random.uniform(-0.9, 0.9, (2, 2))
        return self.hand, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.hand = np.clip(self.hand + 0.1 * action, -1, 1)
        distance = float(np.linalg.norm(self.goal - self.hand))
        return self.hand, -distance, False, False, {"is_success": distance < 0.15}

    def render(self) -> np.ndarray:
        image = np.full((48, 64, 3), self.shade, np.uint8)
        for position, colour in ((self.goal, (0, 200, 0)), (self.hand, (220, 0, 0))):
            row, column = (0.5 * (position[::-1] + 1) * (40, 56)).astype(int)
            image[row : row + 8, column : column + 8] = colour
        return image

    def expert_action(self, observation: np.ndarray, info: dict) -> np.ndarray:
        return np.clip((self.goal - self.hand) / 0.1, -2, 2)


class NoExpert(PointReacher):
    """The same without an expert."""

    expert_action: Any = None


class Discrete(PointReacher):
    action_space: Any = gymnasium.spaces.Discrete(2)


class Unbounded(PointReacher):
    action_space: Any = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)


class NoFlag(PointReacher):
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        *others, _ = super().step(action)
        return (*others, {"solved": False})  # type: ignore[return-value]


class Unseeded(PointReacher):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        return super().reset(seed=None)


class NoImage(PointReacher):
    def render(self) -> None:  # type: ignore[override]
        return None


class NoHorizon(PointReacher):
    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"]}


class Keyed(PointReacher):
    """Observes a dictionary."""

    observation_space: Any = gymnasium.spaces.Dict(
        {
            "hand": PointReacher.observation_space,
            "camera": gymnasium.spaces.Box(0, 255, (48, 64, 3), np.uint8),
        }
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, info = super().reset(seed=seed)
        return {"hand": observation}, info

    def step(self, action: np.ndarray) -> Any:
        observation, *others = super().step(action)
        return ({"hand": observation}, *others)


gymnasium.register("PointReacher-v0", entry_point=PointReacher, max_episode_steps=25)
gymnasium.register("outside/DarkReacher-v0", entry_point=PointReacher, max_episode_steps=25)


class OneBuffer(PointReacher):
    """Draws every image, and writes every observation, into the same array."""

    observation_space: Any = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.canvas = np.zeros((48, 64, 3), np.uint8)
        self.seen = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        _, info = super().reset(seed=seed)
        self.seen[:] = self.hand
        return self.seen, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        _, *others = super().step(action)
        self.seen[:] = self.hand
        return (self.seen, *others)  # type: ignore[return-value]

    def render(self) -> np.ndarray:
        self.canvas[:] = super().render()
        return self.canvas


class Dropped(PointReacher):
    """Ends without success after three steps, and may not be stepped on."""

    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.steps = 0
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.steps < 3, "the episode has ended"
        self.steps += 1
        observation, reward, *_ = super().step(action * 0)
        return observation, reward, self.steps == 3, False, {"is_success": False}


class Wider(PointReacher):
    """The same width of actions, twice as fast."""

    action_space: Any = gymnasium.spaces.Box(-4.0, 4.0, (2,), np.float64)


gymnasium.register("outside/Wider-v0", entry_point=Wider, max_episode_steps=25)
