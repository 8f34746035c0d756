"""A real S3 server in a process of its own, and a proxy in front of it that fails at will."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dynaflip.platform.cluster import free_port

BUCKET = "recordings"


@contextmanager
def s3_server() -> Iterator[str]:
    """Start moto's server; yields its URL, with an empty bucket in it."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        url = f"http://127.0.0.1:{port}"
        client(url).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        process.kill()
        process.wait()


def client(url: str):
    """A boto3 client of the server."""
    import boto3

    return boto3.client("s3", endpoint_url=url, region_name="us-east-1")


def upload(url: str, folder: Path, prefix: str) -> str:
    """Put a folder into the bucket; its URI."""
    s3 = client(url)
    for path in folder.rglob("*"):
        if path.is_file():
            name = f"{prefix}/{path.relative_to(folder).as_posix()}"
            s3.upload_file(str(path), BUCKET, name)
    return f"s3://{BUCKET}/{prefix}"


class Failures:
    """What the proxy does to a request: ``None`` passes it on, a status refuses, ``cut`` breaks.

    A status may have S3's code with it: ``403 AccessDenied``. ``expired`` refuses as S3 does where
    the credentials are out of date. ``method`` of the last request.
    """

    def __init__(self) -> None:
        self.rule: Callable[[str, int], str | None] = lambda path, number: None
        self.requests: list[tuple[str, str]] = []  # path, range
        self.bytes_sent = 0
        self.latency_s = 0.0  # before each answer
        self.method = ""


@contextmanager
def failing_proxy(url: str) -> Iterator[tuple[str, Failures]]:
    """Forward to the server; count, refuse and cut off by a rule."""
    failures = Failures()
    target = url.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Quiet."""

        def _forward(self) -> None:
            asked = self._body()
            failures.requests.append((self.path, self.headers.get("Range", "")))
            failures.method = self.command
            time.sleep(failures.latency_s)
            verdict = failures.rule(self.path, len(failures.requests))
            if verdict is not None and verdict != "cut":
                verdict = "400 ExpiredToken" if verdict == "expired" else verdict
                status, _, code = verdict.partition(" ")
                self.send_response(int(status))
                told = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else told)
                return
            connection = http.client.HTTPConnection(target)
            # The signature covers the host, which is the proxy's; the server does not check it.
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("expect", "transfer-encoding", "content-length")
            }
            connection.request(self.command, self.path, body=asked, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(body)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if verdict == "cut" and len(body) > 1:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            failures.bytes_sent += len(body)
            self.wfile.write(body)

        def _body(self) -> bytes | None:
            """What came with a request; bodies of unknown length come in chunks."""
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                length = self.headers.get("Content-Length")
                return None if length is None else self.rfile.read(int(length))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", failures
    finally:
        server.shutdown()


def use(url: str) -> None:
    """Point boto3 and pyarrow at a server."""
    os.environ["AWS_ENDPOINT_URL"] = url
