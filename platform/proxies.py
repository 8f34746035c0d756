"""Proxies of the environment, which are for hosts outside: this machine is reached directly."""

from __future__ import annotations

import os

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def bypass_proxies_on_this_machine() -> None:
    """Name this machine in ``no_proxy``, for this process and its children.

    MLflow servers and object stores on loopback would otherwise be asked for at the proxy, which
    does not answer for them. Without a proxy nothing is changed.
    """
    names = {name.lower() for name, value in os.environ.items() if value}
    if not any(name.endswith("_proxy") and name != "no_proxy" for name in names):
        return
    stated = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in stated.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in _THIS_MACHINE if host not in hosts]
    # Libraries read one or the other.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
