"""The end of a run in MLflow: curves, figures, the registered encoder; now, or when it is back.

Everything that is sent lies in the run's folder first, so an MLflow that never comes back costs the
run nothing: ``python jobs/pretrain.py --send RUN`` does the same later.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynaflip.errors import UserError
from dynaflip.files import write_file
from dynaflip.platform import promotion, tracking
from dynaflip.platform.tracking import registry
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.curve_file import CurveFile
from dynaflip.platform.training.sending import send_curves
from dynaflip.platform.training.time_use import limited_by

RUN_FILE = "run.json"
ENCODER = "encoder"
PROFILE = "profile"


def read_run_file(run_folder: Path) -> dict[str, Any]:
    """Read a run's file: its MLflow run, its settings, and what has become of it."""
    return json.loads((run_folder / RUN_FILE).read_text())


def write_run_file(run_folder: Path, **values: Any) -> None:
    """Add to what is known of a run."""
    before = read_run_file(run_folder) if (run_folder / RUN_FILE).is_file() else {}
    write_file(run_folder / RUN_FILE, json.dumps({**before, **values}, indent=1))


def publish(run_folder: Path, run: tracking.Run, config: PretrainConfig) -> int | None:
    """Log the figures and register the encoder of a trained run; its version's number.

    None where MLflow is away; a line says so, and which command does it later.
    """
    if CurveFile(run_folder).all_sent():  # or it is away already, and would be waited for in vain
        try:
            return _publish(run_folder, run, config)
        except tracking.away_errors() as error:
            why = f" ({tracking.first_line(error)})"
    else:
        why = ""
    print(
        f"warning: MLflow is away{why}; the encoder is in {run_folder / ENCODER}, and nothing is "
        "lost. When MLflow is back, this sends it the rest of the curves and registers the "
        f"encoder:\n    python jobs/pretrain.py --send {run_folder.name}"
    )
    return None


def send(run_folder: Path, alias: str | None) -> str:
    """Send what MLflow has not had of a run that is not running; says what that was.

    Args:
        run_folder: of a run that nothing else writes to.
        alias: moves to the version, instead of the one that the run was started with.

    Raises:
        UserError: MLflow has everything, or does not know the run.
        StoreError: MLflow is away.
    """
    saved, curves = read_run_file(run_folder), CurveFile(run_folder)
    config = saved["config"]["tracking"]
    if "version" in saved and curves.all_sent():
        raise UserError(
            f"--send {run_folder.name}: MLflow has all of it; it is version {saved['version']} "
            f"of {config['model_name']}"
        )
    if alias is not None:
        write_run_file(run_folder, alias=alias)
    run = tracking.reopen_run(saved["run_id"])
    trained = "version_tags" in saved
    try:
        count = send_curves(curves, run)
        version = saved.get("version")
        if trained and version is None:
            version = _publish(run_folder, run, _saved_config(run_folder))
        run.end("FINISHED" if trained else "KILLED")
    except tracking.away_errors() as error:
        raise tracking.store_away(error) from None
    sent = f"sent {count} points of the curves"
    if version is None:
        return f"{sent}; the run is not trained to its end: --resume {run_folder.name} goes on"
    return f"{sent}; registered models:/{config['model_name']}/{version}"


def _publish(run_folder: Path, run: tracking.Run, config: PretrainConfig) -> int:
    from dynaflip.platform.training import plots

    assert config.triplets is not None, "resolved when the run was started"
    saved = read_run_file(run_folder)
    curves = CurveFile(run_folder).curves()
    plots.log_images(run, curves, config.triplets, config.objective.weighted())
    for file in sorted((run_folder / PROFILE).glob("*/*")):
        run.log_file(file, f"{PROFILE}/{file.parent.name}")
    limit = limited_by({name: points[-1][1] for name, points in curves.items()})
    if limit is not None:
        run.set_tags({"limited_by": limit})
    name = config.tracking.model_name
    version = registry.register(run_folder / ENCODER, run, name=name, tags=saved["version_tags"])
    promotion.move_alias(name, saved.get("alias"), version)
    run.set_tags({"registered_version": version})
    write_run_file(run_folder, version=version)
    return version


def _saved_config(run_folder: Path) -> PretrainConfig:
    from dynaflip.platform.config_loader import load_config

    return load_config(PretrainConfig, str(run_folder / "config.yaml"), {}, saved=True)
