"""A proxy before an S3 server that makes requests fail in the ways that networks and stores do."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Rule = Callable[[str, str], str | None]
"""Method and path of a request -> the name of the fault that it meets, if any."""
SLOW_S = 0.2
HANG_S = 5.0
CODES = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "denied": (403, "AccessDenied"),
    "expired": (400, "ExpiredToken"),
    "region": (400, "AuthorizationHeaderMalformed"),
}
"""Faults in which the server answers with an error: its status and code."""
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "expect"}


def random_faults(share: float, *, seed: int) -> Rule:
    """Any fault in a share of the requests."""
    dice, turn = random.Random(seed), threading.Lock()
    faults = ("500", "503", "reset", "lost", "cut", "slow")

    def rule(method: str, path: str) -> str | None:
        with turn:
            return dice.choice(faults) if dice.random() < share else None

    return rule


class FaultProxy(ThreadingHTTPServer):
    """Passes requests on, except where its rule names a fault.

    Faults: those of `CODES` (the server complains), `reset` (the connection breaks before the
    request is passed on), `lost` (it breaks before the answer), `cut` (within the answer's body),
    `slow`, `hang` (no answer), `careless` (the server ignores If-None-Match).
    """

    daemon_threads = True

    def __init__(self, upstream: str, rule: Rule) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.rule = urlsplit(upstream).netloc, rule
        self.met: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that broke is what this is for."""


@contextmanager
def fault_proxy(upstream: str, rule: Rule) -> Iterator[FaultProxy]:
    """Run a proxy on a free port before the server at a URL."""
    proxy = FaultProxy(upstream, rule)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.rule(self.command, self.path)
        self.server.met[fault or "none"] += 1
        self.server.requests.append((self.command, self.path))
        if fault == "reset":
            return self._break()
        if fault == "hang":
            time.sleep(HANG_S)
            return self._break()
        if fault in CODES:
            return self._complain(*CODES[fault])
        if fault == "slow":
            time.sleep(SLOW_S)
        answer, content = self._pass_on(body, careless=fault == "careless")
        if fault == "lost":
            return self._break()
        self._answer(answer, content, cut=fault == "cut" and len(content) > 1)
        return None

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_one

    def _pass_on(self, body: bytes, *, careless: bool) -> tuple[HTTPResponse, bytes]:
        dropped = HOP_BY_HOP | ({"if-none-match"} if careless else set())
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        connection = HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        except (OSError, HTTPException):
            self._break()
            raise
        finally:
            connection.close()

    def _answer(self, answer: HTTPResponse, content: bytes, *, cut: bool) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        if answer.status != 204:
            self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._break()

    def _complain(self, status: int, code: str) -> None:
        content = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    def _break(self) -> None:
        """Break the connection, as a machine that dies does."""
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
