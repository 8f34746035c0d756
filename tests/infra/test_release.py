"""What is released: the wheel and the source archive, built and used, and the files beside them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from checkout import REPOSITORY

import dynaflip

FOLDERS = ("losses", "encoders", "platform", "eval", "jobs")
ENCODER = REPOSITORY / "tests" / "encoders" / "made_at_e8dc758"
OTHER_VERSIONS = [v for v in ("3.11", "3.12", "3.13") if v != sysconfig.get_python_version()]


def python_of(version: str) -> str | None:
    """An interpreter of a version, on the path or of pyenv, that starts; None: there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    name = f"python{version}"
    known = [shutil.which(name), *map(str, pyenv.glob(f"versions/{version}*/bin/{name}"))]
    starts = (
        p
        for p in known
        if p and subprocess.run([p, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0
    )
    return next(starts, None)


def run(python: str | Path, *words: str, cwd: Path, **environment: str) -> str:
    """What a Python that knows nothing of this checkout prints; fails the test with its error."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), *words]
    result = subprocess.run(
        command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive of a clean copy of this checkout, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("release")
    ignore = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY, folder / "source", ignore=ignore)
    # Without --sdist or --wheel, `build` makes the wheel of the source archive that it has made.
    words = ("-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), "source")
    run(sys.executable, *words, cwd=folder)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and, as a plain path, the locked packages."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
    places = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--no-index")
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", str(python), *pip[2:], str(built[1]), cwd=folder)
    # After the wheel; .pth files in there, the editable install's among them, are not read.
    Path(places["purelib"], "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return python


@pytest.mark.integration
def test_the_wheel_holds_every_module_and_what_belongs_to_it(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    expected = {
        f"dynaflip/{path.relative_to(REPOSITORY).as_posix()}"
        for folder in FOLDERS
        for pattern in ("*.py", "*.yaml")
        for path in (REPOSITORY / folder).rglob(pattern)
    }
    expected |= {f"dynaflip/{path.name}" for path in (REPOSITORY / "dynaflip").glob("*.py")}
    expected |= {"dynaflip/py.typed"}
    assert expected <= names, expected - names
    assert {n.split("/")[0] for n in names} == {
        "dynaflip",
        f"dynaflip-{dynaflip.__version__}.dist-info",
    }
    assert f"Version: {dynaflip.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.integration
def test_the_source_archive_holds_what_a_checkout_has(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "requirements.lock"):
        assert name in names
    for folder in (*FOLDERS, "tests", "infra"):
        expected = {str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / folder).rglob("*.py")}
        assert expected <= names, expected - names


@pytest.mark.integration
def test_the_installed_wheel_runs_jobs_and_loads_an_encoder(
    installed: Path, tmp_path: Path
) -> None:
    command = str(installed.parent / "dynaflip")
    assert "pretrain" in run(installed, command, "--help", cwd=tmp_path)
    assert "usage" in run(installed, command, "pretrain", "--help", cwd=tmp_path)
    code = (
        "import sys, torch, dynaflip, dynaflip.losses.config as config\n"
        "encoder = dynaflip.load_encoder(sys.argv[1])\n"
        "print(tuple(encoder(torch.zeros(1, 3, 64, 64)).shape) == (1, encoder.dim))\n"
        "print(dynaflip.__file__, config.__file__, dynaflip.__version__)\n"
    )
    loads, places = run(installed, "-c", code, str(ENCODER), cwd=tmp_path).splitlines()
    assert loads == "True"
    package, module, version = places.split()
    assert version == dynaflip.__version__
    for file in (package, module):
        assert Path(file).is_relative_to(installed.parents[1])


@pytest.mark.integration
@pytest.mark.parametrize("version", OTHER_VERSIONS)
def test_the_wheel_installs_and_compiles_under_another_python(
    built: tuple[Path, Path], version: str, tmp_path: Path
) -> None:
    python = python_of(version)
    if python is None:
        pytest.skip(f"Python {version} is not here")
    run(python, "-m", "venv", "v", cwd=tmp_path)
    there = tmp_path / "v" / "bin" / "python"
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile")
    run(there, *pip, str(built[1]), cwd=tmp_path)
    find = "import os, dynaflip; print(os.path.dirname(dynaflip.__file__))"
    (package,) = run(there, "-c", find, cwd=tmp_path).split()
    run(there, "-m", "compileall", "-q", package, cwd=tmp_path)


def test_the_version_stands_in_one_place_and_the_changelog_knows_it() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "dynaflip.__version__"}
    changes = re.findall(r"^## .*", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.M)
    assert dynaflip.__version__ in changes[0]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == dynaflip.__version__
    assert citation["license"] == project["project"]["license"]


def test_a_commit_is_judged_by_make_check() -> None:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    ((hook,),) = (repository["hooks"] for repository in config["repos"])
    assert hook["entry"] == "make check"
    assert re.search(r"^check:", (REPOSITORY / "Makefile").read_text(), flags=re.M)
