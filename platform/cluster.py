"""Ray's environment and how to join or start a cluster.

Ray reads much of its configuration when it is imported, so
:func:`prepare_environment` comes before ``import ray``, here and nowhere else.
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dynaflip.errors import UserError
from dynaflip.files import takes_files
from dynaflip.platform.paths import home, in_submitted_job

# setdefault: whoever keeps the cluster may choose otherwise.
_ENVIRONMENT = {
    # The default of 2 s delays every report and checkpoint commit of Ray Train.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # How soon a training hears that one of its machines is to be taken away; the default is 5 s.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints of a worker would appear twice
    # Reading Parquet the new way starts 32 footer actors at every epoch.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


_CONNECT_S = 5.0
_SERVER_PORTS = range(20_000, 32_000)
# A socket's path has at most 107 bytes; Ray's own part (/ray/session_…/sockets/…) takes 66.
_LONGEST_TMPDIR = 40
_CGROUP = Path("/sys/fs/cgroup")


def prepare_environment() -> None:
    """Set what Ray reads at import; harmless to call again."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _choose_authentication()
    os.environ["DYNAFLIP_HOME"] = str(home())


def await_causes_of_death() -> None:
    """Have calls of a lost actor fail when Ray knows whether its machine is gone, not before.

    Ray hears of a lost machine by heartbeats that stay away, 10 s and more after connections to it
    broke; by default a call fails after 1 s, and says that the actor is unavailable. Without effect
    once Ray is imported.
    """
    os.environ.setdefault("RAY_timeout_ms_task_wait_for_death_info", "60000")


def _choose_authentication() -> None:
    """Decide whether Ray asks for a token, where ``RAY_AUTH_MODE`` leaves it open.

    A cluster that is joined was started by others: their token is used where there is one. A
    cluster of this process gets a token of its own, in this environment alone, since Ray's servers
    listen on every address of the machine: without it, whoever reaches a port runs code here.
    """
    if "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules:  # imported: Ray has decided
        return
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if joins_cluster():
        # 20 times 40 s is what Ray waits for a cluster that lets nobody in without its token.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        if named or Path(os.path.expanduser("~/.ray/auth_token")).is_file():
            os.environ["RAY_AUTH_MODE"] = "token"
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    if not named:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def joins_cluster() -> bool:
    """True if RAY_ADDRESS names a cluster to join."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def start_ray(num_cpus: int | None = None, *, dashboard: bool = False) -> None:
    """Join the cluster named by RAY_ADDRESS, or start one on this machine.

    Workers run this checkout's code whether or not the package is installed,
    and share this process's ``DYNAFLIP_HOME``.

    Args:
        num_cpus: CPUs of a cluster started here; all of the machine's by default.
        dashboard: keep the dashboard (a sweep's early stops need its State API).
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        return
    environment = {"DYNAFLIP_HOME": str(home())}
    # Workers of a submitted job get the working directory on PYTHONPATH from Ray.
    if not in_submitted_job():
        root = str(Path(__file__).resolve().parents[1])
        others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != root]
        environment["PYTHONPATH"] = os.pathsep.join([root, *others])
    # Ray refuses a variable that a submission's own runtime environment names already.
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    named = submitted.get("runtime_env", {}).get("env_vars", {})
    environment = {key: value for key, value in environment.items() if key not in named}
    address = os.environ.get("RAY_ADDRESS")
    joined = joins_cluster()
    if joined:
        _check_address(str(address))
    options: dict[str, Any] = {} if joined else {"num_cpus": num_cpus or available_cpus()}
    if not joined:
        # The State API finds its cluster by this. Unset, it may ask another of this machine, whose
        # token is another one, and wait long for the refusal.
        port = free_port()
        os.environ["RAY_GCS_SERVER_PORT"] = str(port)
        environment["RAY_ADDRESS"] = f"127.0.0.1:{port}"
    if not joined:
        options |= {"include_dashboard": dashboard, "_node_ip_address": "127.0.0.1"}
        options |= {"object_store_memory": _object_store_bytes()}
        if (folder := _short_temporary_folder()) is not None:
            options["_temp_dir"] = folder
    try:
        ray.init(
            address=address if joined else "local",
            runtime_env={"env_vars": environment},
            log_to_driver=False,
            logging_level=logging.WARNING,
            **options,
        )
    except (ConnectionError, ray.exceptions.AuthenticationError):
        raise UserError(_nobody(str(address), _TOKEN)) from None
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray has no class of its own for it
            raise
        raise UserError(
            "Ray did not start on this machine within the 30 s that it gives itself: other work "
            "fills the processors; run this again when there is less of it"
        ) from error
    finally:
        os.environ.pop("RAY_GCS_SERVER_PORT", None)  # of this cluster alone


def _short_temporary_folder() -> str | None:
    """Where Ray's files go if it cannot use TMPDIR.

    Batch systems make names too long for sockets, and name folders that other machines have.
    """
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or ""
    if not chosen or (len(os.fsencode(chosen)) <= _LONGEST_TMPDIR and takes_files(Path(chosen))):
        return None
    return f"/tmp/ray-{os.getuid()}"


def _check_address(address: str) -> None:
    """Refuse what no job can join, before Ray waits for it."""
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={address} is where `ray job submit` hands jobs in; to run this on that "
            "cluster give HEAD:6379 (or ray://HEAD:10001), or unset it to run on this machine"
        )
    if address == "auto":
        address = _found_by_ray()
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        if "://" in address:  # an addressing of Ray's own
            return
        raise UserError(f"RAY_ADDRESS={address}: give HEAD:6379, ray://HEAD:10001, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise UserError(_nobody(address, f" ({error.strerror or error})")) from None


def _found_by_ray() -> str:
    """The cluster that `auto` stands for."""
    from ray._private.services import get_ray_address_from_environment

    try:
        found = get_ray_address_from_environment("auto", None)
    except ConnectionError:
        found = None
    if not found:
        raise UserError(_nobody("auto"))
    return str(found)


# A cluster that asks for a token drops connections without it as if it were none.
_TOKEN = (
    " that accepts this environment (does it ask for a token? export RAY_AUTH_MODE=token and "
    "RAY_AUTH_TOKEN, which `ray get-auth-token` prints on the head)"
)


def _nobody(address: str, why: str = "") -> str:
    return (
        f"RAY_ADDRESS={address}: no Ray cluster answers there{why}; start one with "
        f"`ray start --head`, or unset RAY_ADDRESS to run on this machine"
    )


def wait_for(bundles: list[dict[str, float]], seconds: float) -> None:
    """Ask the cluster's autoscaler for machines, and wait until they are up or the time is over.

    Ray counts what is up: a group of machines that waits at zero would never be asked for.

    Args:
        bundles: resources that must each fit on one machine.
        seconds: to wait at most; 0 asks for nothing.
    """
    if seconds <= 0:
        return
    import ray
    from ray.autoscaler.sdk import request_resources

    wanted: Counter[str] = Counter()
    for bundle in bundles:
        wanted.update(bundle)

    def missing() -> list[str]:
        up = ray.cluster_resources()
        return [f"{up.get(k, 0):g} of {v:g} {k}s" for k, v in wanted.items() if up.get(k, 0) < v]

    request_resources(bundles=bundles)
    try:
        until, said = time.monotonic() + seconds, ""
        while (short := missing()) and time.monotonic() < until:
            if (line := f"waiting for machines: {', '.join(short)}") != said:
                print(line, flush=True)
                said = line
            time.sleep(1.0)
    finally:
        # The request would outlive the job and keep machines; from now on its workers do.
        request_resources(bundles=[])


def free_port() -> int:
    """A port of this machine on which nobody listens, for a server that starts soon.

    One that the system would choose is of those that it hands to every outgoing connection too,
    and may be gone by the time the server binds it. These lie between Ray's worker ports and those.
    """
    # Not the seeded generator: two processes of one seed would agree on one port.
    for port in random.SystemRandom().sample(_SERVER_PORTS, len(_SERVER_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(
        f"no port from {_SERVER_PORTS[0]} to {_SERVER_PORTS[-1]} is free on this machine: stop "
        "servers that are no longer needed"
    )


def available_cpus() -> int:
    """CPUs this process may use: those of its affinity mask, and its container's quota of them."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return min(seen, max(1, int(quota) // int(period))) if quota.isdigit() else seen


def _cgroup(name: str) -> str:
    """A limit of this container (control groups, version 2); empty where there is none."""
    try:
        return (_CGROUP / name).read_text().strip()
    except OSError:
        return ""


def _object_store_bytes() -> int:
    """A tenth of the memory, at most 1 GB: triplets stream, they are not kept."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    total = min(total, int(limit)) if limit.isdigit() else total
    return max(80_000_000, min(total // 10, 1_000_000_000))
