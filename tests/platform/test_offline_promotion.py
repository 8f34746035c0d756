"""Promotion by evidence of the suite ``offline``: for robots without a simulator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_rollouts import encoder_folder

from dynaflip.errors import UserError
from dynaflip.eval.image_perturbations import IMAGE_FACTOR_NAMES
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.promotion_config import PromotionConfig
from dynaflip.platform.tracking.store import client

NAME = "offline-promotion-test"
CONFIG = OfflineConfig(source="mine", split="test")
NEEDED = PromotionConfig(suite="offline")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNAFLIP_HOME", str(tmp_path / "home"))
    return tmp_path


def evaluated(
    folder: Path,
    inside: float,
    outside: float,
    *,
    config: OfflineConfig = CONFIG,
    episodes: int = 24,
    first_episode: int = 0,
    factors: tuple[str, ...] = IMAGE_FACTOR_NAMES,
    level: int = 3,
) -> str:
    """A registered version whose evaluation on ``test`` found these action errors, in sigma.

    Its initialisation's are 0.5 as recorded and 0.8 perturbed.
    """
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.encoders_under_test import weights_digest
    from dynaflip.platform.evaluation.evaluation_run import FACTORS_TAG
    from dynaflip.platform.evaluation.offline_evidence import ERRORS_FILE, RUN_TAG
    from dynaflip.platform.tracking import registry

    number = len(list(folder.glob("encoder-*")))
    encoder = encoder_folder(folder / f"encoder-{number}", seed=number)
    maker = tracking.open_run("dynaflip-pretrain", f"maker-{number}", {"kind": "pretrain"})
    version = str(registry.register(encoder, maker, name=NAME))
    maker.end("FINISHED")
    digest = weights_digest(f"models:/{NAME}/{version}")
    rows = []
    for name, errors in (("trained", (inside, outside)), ("initialization", (0.5, 0.8))):
        noise = np.random.default_rng([number, len(name)])
        for seed in range(config.seeds):
            for factor in ("none", *factors):
                for episode in range(first_episode, first_episode + episodes):
                    hard = np.random.default_rng(episode).normal(0, 0.1)  # for all alike
                    error = errors[factor != "none"] + hard + noise.normal(0, 0.02)
                    rows.append(
                        {
                            "encoder": name, "seed": seed, "factor": factor, "moments": 10,
                            "encoder_digest": digest if name == "trained" else "initial",
                            "level": 0 if factor == "none" else level, "episode": episode,
                            "recording": f"r{episode}", "action_error": error,
                            "squared": 10 * error**2, "squared_of_mean": 9.0 + episode,
                        }
                    )  # fmt: skip
    tags = {"kind": "offline", FACTORS_TAG: ",".join(IMAGE_FACTOR_NAMES)}
    run = tracking.open_run("dynaflip-evaluate", f"offline-{number}", tags)
    run.log_settings(config)
    pl.DataFrame(rows).write_parquet(folder / ERRORS_FILE)
    run.log_file(folder / ERRORS_FILE)
    run.end("FINISHED")
    client().set_model_version_tag(NAME, version, RUN_TAG, run.run_id)
    return version


def test_the_better_one_is_promoted_by_the_right_sign(store: Path) -> None:
    from dynaflip.platform.promotion import promote
    from dynaflip.platform.tracking import registry

    def champion() -> str | None:
        return registry.version_of_alias(NAME, "champion")

    lost = evaluated(store, inside=0.6, outside=0.5)
    refused = promote(NAME, lost, needed=NEEDED)
    assert not refused.promoted, "what is lost as recorded is not made up for"
    assert "as recorded -0.1" in refused.explanation
    assert champion() is None
    good = evaluated(store, inside=0.5, outside=0.7)
    first = promote(NAME, good, needed=NEEDED)
    assert first.promoted, first.explanation
    evidence = json.loads(registry.version_tags(NAME, good)["champion_evidence"])
    gain, low, high = evidence["differences"]["out of distribution"]
    assert 0.09 < low < gain < high < 0.11
    assert evidence["suite"] == "offline"
    worse = evaluated(store, inside=0.5, outside=0.75)
    assert not promote(NAME, worse, needed=NEEDED).promoted, "better than its initialisation only"
    assert champion() == good
    best = evaluated(store, inside=0.5, outside=0.6)
    assert promote(NAME, best, needed=NEEDED).promoted
    assert champion() == best
    # Other recordings are no pairs, and rollouts are asked for where nothing else is said.
    elsewhere = evaluated(store, inside=0.1, outside=0.1, first_episode=5)
    with pytest.raises(UserError, match="not about the same recordings"):
        promote(NAME, elsewhere, needed=NEEDED)
    other = evaluated(store, inside=0.1, outside=0.1, config=replace(CONFIG, image_px=64))
    with pytest.raises(UserError, match="has image_px 64"):
        promote(NAME, other, needed=NEEDED)
    with pytest.raises(UserError, match="has not been evaluated on test"):
        promote(NAME, other)


def test_narrow_evidence_is_refused_unless_less_is_asked_for(store: Path) -> None:
    from dynaflip.platform.promotion import promote

    version = evaluated(store, 0.4, 0.5, episodes=4, factors=("light",), level=2)
    asked = (
        (NEEDED, "lacks blur-3, crop-3"),
        (replace(NEEDED, factors=("light",)), "lacks light-3, 20 held-out episodes"),
        (replace(NEEDED, factors=("light",), level=2), r"20 held-out episodes \(it has 4\)"),
    )
    for needed, lacks in asked:
        with pytest.raises(UserError, match=lacks):
            promote(NAME, version, needed=needed)
    enough = PromotionConfig(suite="offline", factors=("light",), level=2, episodes=4)
    assert promote(NAME, version, needed=enough).promoted
    tuned = evaluated(store, 0.4, 0.5, config=replace(CONFIG, split="dev"))
    with pytest.raises(UserError, match="an evaluation on dev"):
        promote(NAME, tuned, needed=NEEDED)
    with pytest.raises(ValueError, match="offline has none"):
        PromotionConfig(suite="offline", tasks=("reach",))
