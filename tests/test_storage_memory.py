"""An object is sent from its file: no copy of it is in memory, whatever its size."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from s3_server import CREDENTIALS

SIZE_MB = 96
SENDER = """
import resource, sys, tempfile
from ldm_batch.config.storage import StorageAccess
from ldm_batch.storage import Store

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

root, endpoint, size_mb = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = {"endpoint_url": endpoint, "retry_s": 0}
if root.startswith("gs:"):
    options["token"] = "anon"
store = Store(root, StorageAccess(options=options))
with tempfile.TemporaryFile() as file:
    for _ in range(size_mb):
        file.write(bytes(10**6))
    assert store.create("small", b"x").value == "won"
    before = peak_mb()
    assert store.create("large", file).value == "won"
    print(peak_mb() - before)
"""


class Taker(http.server.BaseHTTPRequestHandler):
    """Takes in whatever is sent and forgets it."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        while left and (block := self.rfile.read(min(left, 1 << 20))):
            left -= len(block)
        content = json.dumps({"name": "large"}).encode() if self.command == "POST" else b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def taker() -> Iterator[str]:
    """URL of a server on loopback that takes everything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_an_object_is_not_in_memory_while_it_is_sent(taker: str, scheme: str) -> None:
    if scheme == "gs":
        pytest.importorskip("gcsfs")
    command = [sys.executable, "-c", SENDER, f"{scheme}://bucket/sink", taker, str(SIZE_MB)]
    environment = {**os.environ, **CREDENTIALS}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < SIZE_MB / 3
