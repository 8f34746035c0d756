"""A tiny encoder and a policy evaluation of seconds."""

from __future__ import annotations

from pathlib import Path

from dynaflip.platform.evaluation.config import RolloutConfig


def encoder_folder(path: Path, seed: int = 0) -> Path:
    """An encoder of 32 px with random weights."""
    from dynaflip.encoders.checkpoint import save_folder
    from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
    from dynaflip.encoders.model import DynaFLIP
    from dynaflip.platform.training.checkpoint_format import seed_step

    seed_step(seed, 0, 0)  # as the training loop does, so that its initialisation is known
    image = ImageConfig(image_px=32, pretrained=False)
    flow = FlowConfig(width=16, layers=1, heads=2, channels=8, cnn_layers=2)
    model = DynaFLIP(ModelConfig(image=image, flow=flow, embedding_dim=16, hidden_dim=32))
    info = {"config": {"train": {"seed": seed}}, "caption_groups": ["drawer-open-v3"]}
    return save_folder(path, model, info)


def compared(*runs: str) -> str:
    """The table that ``evaluate.py compare`` prints where the output is no terminal."""
    from dynaflip.platform.evaluation.compare import comparison_sections, read_runs
    from dynaflip.platform.evaluation.report.tables import as_text

    return as_text(comparison_sections(read_runs(runs[0], runs[1:])))


def tiny(encoder: Path, **changes: object) -> RolloutConfig:
    """Settings of a policy evaluation that takes seconds."""
    from dynaflip.eval.policies.config import BehaviourCloningConfig

    settings: dict[str, object] = {
        "encoder": str(encoder),
        "baselines": ("initialization",),
        "tasks": ("reach",),
        "seeds": 2,
        "factors": ("light_tint",),
        "all_at_once": False,
        "episodes": 2,
        "demonstrations": 3,
        "image_px": 32,
        "horizon_steps": 60,
        "steps_after_success": 5,
        "environments": 2,
        "check_harness": True,
        "behaviour_cloning": BehaviourCloningConfig(hidden_dim=16, layers=1, steps=50),
    }
    return RolloutConfig(**{**settings, **changes})  # type: ignore[arg-type]
