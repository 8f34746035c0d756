"""The description of a registered version: its model card, with links and the results so far."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dynaflip.platform.tracking.links import run_address, ui_address
from dynaflip.platform.tracking.store import client

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from dynaflip.platform.tracking.runs import Run

TRIPLET_RUNS = "triplets"  # experiment of the runs that look at triplet folders
_HEADING = "# DynaFLIP image encoder"  # of the card; what stands before it is others'
_RESULTS = "## Results so far"
_CARD = "README.md"
_NONE = "* none yet: `python jobs/evaluate.py --suite rollouts --encoder"


def card_of(
    folder: Path, run: Run, name: str, version: int, experiment: str, settings_digest: str = ""
) -> str:
    """Markdown: results and links, then the card of the encoder's folder.

    Args:
        folder: of the encoder.
        run: that made it.
        name, version: it is registered as.
        experiment: id of the run's experiment.
        settings_digest: of the settings that decide its weights; empty where it has none.
    """
    uri = f"models:/{name}/{version}"
    path = folder / _CARD
    card = path.read_text(encoding="utf-8") if path.is_file() else f"{_HEADING}\n"
    card = card[max(card.find(_HEADING), 0) :].replace('"this folder"', f'"{uri}"')
    made_by = run_address(f"{ui_address(run.uri)}/#/experiments/{experiment}", run.run_id)
    links = (
        f"Made by the run [{run.run_name}]({made_by}), whose inputs name the triplets and whose "
        f"artifacts hold the reports. {_data_card(run)}"
    )
    if settings_digest:
        links += f" Its settings have the digest `{settings_digest}`, the tag `config_digest`."
    head, _, rest = card.partition("\n")
    results = f"{_RESULTS}\n\n{_NONE} {uri}`"
    return f"{head}\n\n{links}\n\n{results}\n\n{rest.strip()}\n"


def _data_card(run: Run) -> str:
    """A sentence with a link to the data card of a run's triplets, or how one is made.

    The newest look at triplets of the same digest is linked, wherever they lie.
    """
    from dynaflip.platform.triplets.report.data_card import CARD_NAME

    store = client(run.uri)
    looks = store.get_experiment_by_name(TRIPLET_RUNS)
    inputs = store.get_run(run.run_id).inputs
    if looks is not None and inputs is not None:
        for digest in {one.dataset.digest for one in inputs.dataset_inputs}:
            query = f"dataset.digest = '{digest}'"
            for look in store.search_runs([looks.experiment_id], query, max_results=5):
                files = store.list_artifacts(look.info.run_id)
                if any(file.path == CARD_NAME for file in files):
                    page = f"{ui_address(run.uri)}/#/experiments/{looks.experiment_id}"
                    card = f"{run_address(page, look.info.run_id)}/artifacts/{CARD_NAME}"
                    return f"The triplets' [data card]({card}) shows them."
    return (
        "`python jobs/preprocess.py inspect FOLDER` makes the triplets' data card, which the next "
        "version's card links to."
    )


def with_result(card: str, what: str, line: str) -> str:
    """A description with a result; one of the same kind is replaced.

    Args:
        card: the description; one without results gets the part.
        what: kind of the result: ``rollouts on dev``.
        line: what was found, Markdown.
    """
    before, found, after = card.partition(f"{_RESULTS}\n\n")
    old, _, rest = after.partition("\n\n") if found else ("", "", "")
    kept = [one for one in old.split("\n") if one and not one.startswith((f"* **{what}**", _NONE))]
    results = "\n".join([*kept, f"* **{what}**: {line}"])
    return f"{before.rstrip()}\n\n{_RESULTS}\n\n{results}\n\n{rest}".lstrip()


def before_card(card: str, text: str) -> str:
    """A description that begins with a text, in the place of what stood before the card."""
    start = card.find(_HEADING)
    return text if start < 0 else f"{text}\n\n{card[start:]}"


def describe_version(name: str, version: int, text: str) -> None:
    """Begin the description of a registered version with a text, Markdown; its card stays."""
    store = client()
    known = store.get_model_version(name, str(version)).description or ""
    store.update_model_version(name, str(version), description=before_card(known, text))


def add_result(made_by: str, what: str, verdict: list[str], evaluation: str) -> None:
    """Tell the versions that a run made what an evaluation found.

    Args:
        made_by: id of the run that made them.
        what: kind of the result: ``rollouts on dev``.
        verdict: the evaluation's sentences; the first is told.
        evaluation: id of its run.
    """
    if not verdict:
        return
    store = client()
    run = store.get_run(evaluation)
    page = f"{ui_address(_uri(store))}/#/experiments/{run.info.experiment_id}"
    line = f"{verdict[0]} ([{run.info.run_name}]({run_address(page, evaluation)}), with its report)"
    for version in store.search_model_versions(f"run_id='{made_by}'"):
        text = with_result(version.description or "", what, line)
        store.update_model_version(version.name, version.version, description=text)


def _uri(store: MlflowClient) -> str:
    return str(store.tracking_uri)
