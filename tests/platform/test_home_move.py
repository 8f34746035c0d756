"""A home that was copied or moved: refused, then adopted, with a real MLflow store in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from checkout import REPOSITORY

from dynaflip.errors import UserError
from dynaflip.jobs import home as home_job
from dynaflip.platform import paths, tracking
from dynaflip.platform.home_move import MARKER, _Rename
from dynaflip.platform.sweep import sweep_folder


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn to another home, as a new process would."""
    monkeypatch.setenv("DYNAFLIP_HOME", str(folder))
    monkeypatch.setattr(paths, "_in_place", set())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a run, its artifact, a run folder and a sweep folder; copied by the tests."""
    folder = tmp_path_factory.mktemp("made") / "a home"
    with pytest.MonkeyPatch.context() as patch:
        use(folder, patch)
        run = tracking.open_run("dynaflip-pretrain", "one", {"triplets": str(folder / "triplets")})
        run.log_text("what was logged", "note.txt")
        run.end("FINISHED")
        run_folder = paths.runs() / "one"
        run_folder.mkdir(parents=True)
        config = {"triplets": str(folder / "triplets"), "other": f"{folder}-2/x"}
        (run_folder / "run.json").write_text(json.dumps({"run_id": run.run_id, "config": config}))
        (run_folder / "config.yaml").write_text(yaml.safe_dump(config))
        sweep = sweep_folder.folder_of("s")
        sweep.mkdir(parents=True)
        (sweep / "sweep.json").write_text(json.dumps({"storage": sweep_folder.default_storage()}))
    return folder


def read_note() -> bytes | None:
    (name,) = tracking.newest_run_names("pretrain") or ["one"]
    return tracking.read_artifact(tracking.find_run(name).run_id, "note.txt")


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "made by 0.1"])
def test_a_moved_home_is_refused_and_then_adopted(
    made: Path, tmp_path: Path, marked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old home", tmp_path / "elsewhere" / "höme"
    shutil.copytree(made, old)
    use(old, monkeypatch)
    assert home_job.main(["move"]) == 0  # the fixture's copy becomes a home of its own
    if not marked:
        (old / MARKER).unlink()
    use(old, monkeypatch)
    assert paths.home() == old, "a home that lies where it was made is used as it is"
    assert read_note() == b"what was logged"
    if not marked:
        (old / MARKER).unlink()

    new.parent.mkdir()
    old.rename(new)
    use(new, monkeypatch)
    with pytest.raises(UserError, match=r"was made at .*old home.*dynaflip home move"):
        paths.home()
    assert home_job.main(["move"]) == 0
    assert paths.home() == new
    assert read_note() == b"what was logged"
    fresh = tracking.open_run("dynaflip-pretrain", "two")
    fresh.log_text("new", "note.txt")
    fresh.end("FINISHED")
    assert not old.exists(), "nothing may be written to the old place"
    saved = json.loads((new / "runs" / "one" / "run.json").read_text())["config"]
    assert saved == yaml.safe_load((new / "runs" / "one" / "config.yaml").read_text())
    assert saved["triplets"] == str(new / "triplets")
    assert saved["other"] == f"{made}-2/x", "a neighbour of a like name is not the home"
    storage = json.loads((new / "sweeps" / "s" / "sweep.json").read_text())["storage"]
    assert storage == sweep_folder.default_storage()
    assert tracking.find_run("one").tags["triplets"] == str(new / "triplets")
    assert home_job.main(["move"]) == 0  # nothing left to do


def test_a_link_to_a_home_is_the_home(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(made)
    use(link, monkeypatch)
    assert paths.home() == link
    assert json.loads((made / MARKER).read_text())["path"] == str(made)


def test_a_job_refuses_a_copied_home_before_it_works_and_help_writes_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    before = sorted(copy.rglob("*"))

    def job(*words: str) -> subprocess.CompletedProcess:
        environment = {"DYNAFLIP_HOME": str(copy), "PATH": "/usr/bin:/bin"}
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60
        )

    refused = job("jobs/pretrain.py")
    assert refused.returncode == 2
    assert "dynaflip home move" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert job("jobs/home.py", "--help").returncode == 0
    shown = job("jobs/home.py")
    assert shown.returncode == 0, shown.stderr
    assert f"made at {made}" in shown.stdout
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "renamed"),
    [
        ("/a/b", "/c d"),
        ("/a/b/x", "/c d/x"),
        ("file:///a/b/x", "file:///c%20d/x"),
        ("sqlite:////a/b/x.db", "sqlite:////c d/x.db"),
        ('{"uri": "/a/b"}', '{"uri": "/c d"}'),
        ("/a/b-2/x /a/bc /m/a/b", "/a/b-2/x /a/bc /m/a/b"),
    ],
)
def test_a_path_is_renamed_as_a_whole(text: str, renamed: str) -> None:
    rename = _Rename("/a/b", "/c d")
    assert rename(text) == renamed
    assert rename(rename(text)) == renamed


def test_a_move_into_a_folder_of_the_old_name_can_be_repeated() -> None:
    rename = _Rename("/a", "/a/b")
    assert rename(rename("file:///a/x /a")) == "file:///a/b/x /a/b"
