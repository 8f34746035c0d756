"""A model hub on this machine: the few requests of huggingface_hub that models are loaded by."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories with commits, and a note of what is asked for."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Path]] = {}  # repository → commit → folder
        self.main: dict[str, str] = {}  # repository → commit
        self.requests: list[str] = []
        self.url = ""

    def push(self, repository: str, folder: Path) -> str:
        """Make a commit of a folder's files; returns its hash."""
        digest = hashlib.sha1(repository.encode())
        for path in sorted(folder.iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
        commit = digest.hexdigest()
        self.commits.setdefault(repository, {})[commit] = folder
        self.main[repository] = commit
        return commit

    def commit_of(self, repository: str, revision: str) -> str | None:
        commit = self.main.get(repository) if revision == "main" else revision
        return commit if commit in self.commits.get(repository, {}) else None


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub; it is that of a process whose ``HF_ENDPOINT`` is its ``url``."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *args: Any) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.requests.append(f"{self.command} {path}")
            parts = path.split("/")
            if parts[:2] == ["api", "models"] and len(parts) >= 6:
                self._list("/".join(parts[2:4]), parts[4], parts[5], body=body)
            elif len(parts) >= 5 and parts[2] == "resolve":
                self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body=body)
            else:
                self._send(404, b"", {})

        def _list(self, repository: str, what: str, revision: str, *, body: bool) -> None:
            commit = hub.commit_of(repository, revision)
            if commit is None:
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            paths = sorted(hub.commits[repository][commit].iterdir())
            answer: Any = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": _etag(p)}
                for p in paths
            ]
            if what != "tree":
                siblings = [{"rfilename": path.name} for path in paths]
                answer = {"id": repository, "sha": commit, "siblings": siblings}
            self._send(200, json.dumps(answer).encode() if body else b"", {"X-Repo-Commit": commit})

        def _file(self, repository: str, revision: str, name: str, *, body: bool) -> None:
            commit = hub.commit_of(repository, revision)
            if commit is None:
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            path = hub.commits[repository][commit] / name
            if not path.is_file():
                headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
                self._send(404, b"", headers)
                return
            headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(path)}"'}
            self._send(200, path.read_bytes(), headers, body=body)

        def _send(
            self, status: int, content: bytes, headers: dict[str, str], *, body: bool = True
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
