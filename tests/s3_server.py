"""An S3 server on loopback, in this process: moto's."""

import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

from moto.server import ThreadedMotoServer

from ldm_batch.config import S3Config
from ldm_batch.storage.s3_client import connect

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "canaryid12345678",
    "AWS_SECRET_ACCESS_KEY": "canarysecret1234567890",
    "AWS_SESSION_TOKEN": "canarytoken1234567890",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
BUCKET = "bucket"
PAGE_KEYS = 7


@contextmanager
def moto_server() -> Iterator[str]:
    """Run a server on a free port; yields its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    server._server.app = one_write_at_a_time(server._server.app)
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def one_write_at_a_time(app: Any) -> Any:
    """The server, but it looks for an object and stores it in one step, as real ones do: moto's
    threads may all find none."""
    turn = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] != "PUT":
            return app(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with turn:
            return app({**environ, "wsgi.input": io.BytesIO(body)}, start_response)

    return serve


def reset(endpoint: str) -> None:
    """Forget everything, then make the bucket of the tests."""
    with urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")) as answer:
        assert json.load(answer)["status"] == "ok"
    connect(S3Config(endpoint=endpoint)).create_bucket(Bucket=BUCKET)
