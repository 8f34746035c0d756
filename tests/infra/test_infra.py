"""What engineers start clusters with: every command and setting in it is one that exists."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from checkout import REPOSITORY

from dynaflip.errors import UserError
from dynaflip.jobs import preprocess, pretrain, sweep
from dynaflip.platform import cluster
from dynaflip.platform.paths import home
from dynaflip.platform.triplets.sources.folder import VIDEO_ENDINGS

INFRA = REPOSITORY / "infra"
SCHEMAS = REPOSITORY.parent / "shared" / "kuberay"
JOBS = {
    "jobs/preprocess.py": preprocess.main,
    "jobs/pretrain.py": pretrain.main,
    "jobs/sweep.py": sweep.main,
}
RECIPES = sorted((INFRA / "recipes").glob("*.sh"))


def jobs_of(script: Path) -> list[list[str]]:
    """The words of each `python jobs/…` in a shell script, its input by the name ARGUMENT."""
    text = re.sub(r"--train\.wait_s \d+", "--train.wait_s 0", script.read_text())  # nobody comes
    commands = text.replace("\\\n", " ").splitlines()
    found = [c.split("python ", 1)[1] for c in commands if "python jobs/" in c and c[0] != "#"]
    return [shlex.split(re.sub(r'"\$\d"|(?<=--triplets )triplets', "ARGUMENT", c)) for c in found]


@pytest.mark.ray
@pytest.mark.parametrize("script", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_shell_script_whose_settings_exist(
    script: Path, home: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111
    monkeypatch.chdir(REPOSITORY)
    found = jobs_of(script)
    assert found
    for job, *words in found:
        # Settings are read before anything else; there is no such input, and no such cluster.
        with pytest.raises(UserError, match=r"ARGUMENT|the cluster has"):
            JOBS[job](words)


def test_every_service_of_the_compose_file_is_made_of_something_and_waits_for_what_exists() -> None:
    content: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
    services = content["services"]
    for name, service in services.items():
        assert service["image"], name
        if "build" in service:
            assert (INFRA / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            place = volume.split(":")[0]
            there = (
                (INFRA / place).is_dir() if place.startswith(".") else place in content["volumes"]
            )
            assert there, name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is open to others"


def test_the_image_brings_what_the_lock_file_names() -> None:
    text = (INFRA / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+)", text, flags=re.M)
    assert copied == ["infra/system-libraries.sh", "requirements.lock"]
    allowed = (REPOSITORY / ".dockerignore").read_text().split()
    for name in copied:
        assert (REPOSITORY / name).is_file()
        assert f"!{name}" in allowed


def test_the_cluster_s_nodes_share_state_and_ask_for_what_they_get() -> None:
    (cluster,) = yaml.safe_load_all((INFRA / "kuberay" / "cluster.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {"name": "DYNAFLIP_HOME", "value": "/state"} in container["env"]
        assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
        asked, limits = (container["resources"][kind] for kind in ("requests", "limits"))
        assert asked["memory"] == limits["memory"]
        assert asked.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


def test_a_head_that_others_can_reach_asks_for_a_token() -> None:
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    for name in ("head", "worker"):
        environment = compose["services"][name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?"), "no default token"
    assert "RAY_AUTH_MODE=token" in (INFRA / "Dockerfile").read_text()
    (manifest,) = yaml.safe_load_all((INFRA / "kuberay" / "cluster.yaml").read_text())
    assert manifest["spec"]["authOptions"] == {"mode": "token"}
    assert manifest["spec"]["rayVersion"] == metadata.version("ray"), "that of the image"
    for script in RECIPES:
        text = script.read_text()
        assert "RAY_AUTH_MODE=token" in text or "ray job submit" not in text
    for file in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), *INFRA.rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            assert "RAY_AUTH_MODE=disabled" not in file.read_text(), file


def test_no_password_stands_in_a_command() -> None:
    for file in (INFRA / "compose.yaml", *RECIPES, *(REPOSITORY / "docs").glob("*.md")):
        found = re.findall(r"\w+://[^\s/@:]+:[^\s/@]+@", file.read_text())
        assert not found, file


def unknown(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """Fields that a Kubernetes schema lacks: the API server would drop or refuse them."""
    if isinstance(value, list):
        items = schema.get("items", {})
        return [w for i, item in enumerate(value) for w in unknown(item, items, f"{where}[{i}]")]
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    found = []
    for key, inner in value.items():
        if where == "" and key in ("apiVersion", "kind", "metadata"):  # the API server's own
            continue
        there = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
        name = f"{where}.{key}"
        if there is None:
            found.append(name)
        elif isinstance(there, dict):
            found += unknown(inner, there, name)
    return found


def test_the_manifest_is_one_of_kuberay() -> None:
    path = SCHEMAS / "ray.io_rayclusters.yaml"
    if not path.is_file():
        pytest.skip("not validated: KubeRay's schemas (shared/kuberay beside the checkout) lack")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(path.read_text(), Loader=loader)["spec"]["versions"]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    (manifest,) = yaml.safe_load_all((INFRA / "kuberay" / "cluster.yaml").read_text())
    assert unknown(manifest, schema) == []
    jsonschema.validate(manifest, schema)
    manifest["spec"]["authOption"] = {"mode": "token"}
    assert unknown(manifest, schema) == [".spec.authOption"]


def tracked_files() -> list[str]:
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files"], capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no git checkout")
    return listed.stdout.splitlines()


def test_an_upload_leaves_no_code_behind_and_takes_no_data() -> None:
    from ray._private.runtime_env.packaging import _get_ignore_file

    ignored = _get_ignore_file(REPOSITORY, ".rayignore")
    assert ignored is not None

    def left_out(name: str) -> bool:  # Ray skips a folder with all that is in it
        path = REPOSITORY / name
        return any(ignored(p) for p in (path, *path.parents) if p.is_relative_to(REPOSITORY))

    code = [name for name in tracked_files() if not name.startswith(("docs/", "tests/"))]
    assert not [name for name in code if left_out(name)]
    for name in ("v/a.mp4", "t/triplets/p.parquet", "h/mlflow/mlflow.db", "mlruns/0/x", ".venv/x"):
        assert left_out(name), name
    for ending in VIDEO_ENDINGS:
        assert left_out(f"v/a{ending}"), ending


def test_a_home_of_any_name_in_the_checkout_is_not_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.runtime_env.packaging import _dir_travel

    (tmp_path / "code.py").touch()
    monkeypatch.setenv("DYNAFLIP_HOME", str(tmp_path / "mine"))
    (home() / "mlflow").mkdir()
    (home() / "mlflow" / "report.html").touch()
    found: list[str] = []
    _dir_travel(tmp_path, [], lambda path: found.append(path.name), include_gitignore=True)
    assert "code.py" in found
    assert "report.html" not in found


def test_a_server_s_port_is_free_and_not_one_that_the_system_hands_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed_out = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not handed_out.exists():
        pytest.skip("no Linux")
    first, last = map(int, handed_out.read_text().split())
    port = cluster.free_port()
    assert not first <= port <= last
    monkeypatch.setattr(cluster, "_SERVER_PORTS", [port])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(UserError, match="is free"):
        cluster.free_port()
