"""What engineers start clusters with: every command and setting in it is one that exists."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import REPOSITORY

from dynaflip.errors import UserError
from dynaflip.jobs import preprocess, pretrain, sweep
from dynaflip.platform import cluster

INFRA = REPOSITORY / "infra"
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
