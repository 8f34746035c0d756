"""Proxies are for hosts outside; servers on this machine are reached directly."""

from __future__ import annotations

import os
import socket

import pytest

from dynaflip.errors import UserError
from dynaflip.platform.proxies import bypass_proxies_on_this_machine
from dynaflip.platform.tracking import store


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("no_proxy", "NO_PROXY"):  # so that what is set below is undone
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_this_machine_joins_the_hosts_that_are_reached_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "store.example")
    bypass_proxies_on_this_machine()
    assert os.environ["no_proxy"] == "store.example,localhost,127.0.0.1,::1"
    bypass_proxies_on_this_machine()
    assert (
        os.environ["NO_PROXY"] == os.environ["no_proxy"] == "store.example,localhost,127.0.0.1,::1"
    )


def test_without_a_proxy_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "store.example")
    bypass_proxies_on_this_machine()
    assert os.environ["no_proxy"] == "store.example"
    assert "NO_PROXY" not in os.environ


def test_a_proxy_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"the proxy of http_proxy does not answer.*no_proxy"):
        store._check_answers(f"http://mlflow.example:{port}")
