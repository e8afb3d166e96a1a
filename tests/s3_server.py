"""An S3 server on loopback, in this process: moto's."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def reset(endpoint: str) -> None:
    """Forget everything, then make the bucket of the tests."""
    with urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")) as answer:
        assert json.load(answer)["status"] == "ok"
    connect(S3Config(endpoint=endpoint)).create_bucket(Bucket=BUCKET)
