"""Files that are read ahead: from the web by one client, from a cloud by one request each, and
never more of them in memory than a window."""

import http.server
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
from fault_proxy import fault_proxy
from s3_server import BUCKET

from ldm_batch.config import S3Config
from ldm_batch.config.storage import StorageAccess
from ldm_batch.errors import AccessError, StorageError, UnservedError
from ldm_batch.read.window import Longer, Window
from ldm_batch.storage import Store, read_file

QUICK = StorageAccess(S3Config(retry_s=1))
AHEAD = """
import resource, sys
from ldm_batch.config import JobConfig, SourceConfig
from ldm_batch.generate.choose import choose
from ldm_batch.read.images import InputImages
from ldm_batch.records import Fault, InputFile, Shard
from ldm_batch.write.spool import Spool

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

folder, num_rows = sys.argv[1], int(sys.argv[2])
job = JobConfig(task="super_resolution", source=SourceConfig(uri=folder, image_root=folder))
columns = choose(job).task.columns
shard = Shard(0, InputFile("a", f"{folder}/a.parquet", 1, "", num_rows, ""), 0, num_rows)
images = InputImages(job, columns, shard, Spool())
rows = [{"image": {"bytes": None, "path": b"image"}}] * num_rows
before, seen = peak_mb(), 0
for row in images.read_ahead(rows):
    seen += isinstance(images.keep(0, row["image"]), Fault)
print(seen, peak_mb() - before)
"""


class Files(http.server.BaseHTTPRequestHandler):
    """A server whose paths say how it behaves: `/parts/N`, `/whole/N`, `/404`, `/500`, ..."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter[str]] = Counter()
    connections: ClassVar[set[tuple[str, int]]] = set()
    troubles: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        self.connections.add(self.client_address)
        kind, _, size = self.path.strip("/").partition("/")
        if kind in ("parts", "whole"):
            start, stop = 0, int(size)
            asked = self.headers["Range"]
            if kind == "parts" and asked and stop:
                stop = min(stop, int(asked.partition("-")[2]) + 1)
            code = 206 if kind == "parts" and stop else 200
            return self.answer(416 if kind == "parts" and not stop else code, stop - start)
        if kind == "troubled" and self.troubles[self.path] < 2:
            self.troubles[self.path] += 1
            return self.answer(503, 0)
        if kind in ("circle", "elsewhere"):
            target = self.path if kind == "circle" else "file:///etc/passwd"
            return self.answer(302, 0, Location=target)
        if kind == "nonsense":
            self.wfile.write(b"no status\r\n\r\n")
            self.close_connection = True
            return None
        return self.answer(int(kind) if kind.isdecimal() else 200, 3)

    def answer(self, code: int, size: int, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        try:
            for start in range(0, size, 65536):
                self.wfile.write(bytes(min(65536, size - start)))
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[str]:
    """URL of a server on loopback."""
    for seen in (Files.asked, Files.connections, Files.troubles):
        seen.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_no_more_is_taken_in_than_asked_for(web: str) -> None:
    for kind in ("parts", "whole"):
        assert read_file(f"{web}/{kind}/300000000", 1000, QUICK) == bytes(1000)
        assert read_file(f"{web}/{kind}/500", 1000, QUICK) == bytes(500)
        assert read_file(f"{web}/{kind}/0", 1000, QUICK) == b""
    assert set(Files.asked.values()) == {1}


def test_what_is_not_for_us_is_missing_and_an_outage_is_none(web: str) -> None:
    for status, is_absent in ((403, False), (404, True), (410, True), (451, False)):
        with pytest.raises(UnservedError) as told:
            read_file(f"{web}/{status}", 10, QUICK)
        assert told.value.is_absent is is_absent
    with pytest.raises(AccessError, match=r"/401: its server asks for credentials \(401\)"):
        read_file(f"{web}/401", 10, QUICK)
    assert read_file(f"{web}/troubled/1", 10, StorageAccess(S3Config(retry_s=10))) == bytes(3)
    assert Files.asked["/troubled/1"] == 3
    with pytest.raises(StorageError, match=r"/500: .*500.*\(tried for 1 s\)"):
        read_file(f"{web}/500", 10, QUICK)
    with pytest.raises(StorageError, match=r":9/x: .*connect.*\(tried for 1 s\)"):
        read_file("http://127.0.0.1:9/x", 10, QUICK)


@pytest.mark.parametrize("kind", ["circle", "elsewhere"])
def test_an_address_that_sends_on_to_nowhere_is_its_rows_trouble(web: str, kind: str) -> None:
    with pytest.raises(UnservedError, match=f"/{kind}: its server sends on to nowhere"):
        read_file(f"{web}/{kind}", 10, QUICK)
    assert Files.asked.total() <= 11


def test_nonsense_of_a_server_is_its_own_trouble(web: str) -> None:
    with pytest.raises(StorageError, match=r"/nonsense: .*Bad status line.*\(tried for 1 s\)$"):
        read_file(f"{web}/nonsense", 10, QUICK)
    assert Files.asked["/nonsense"] > 1


def test_one_client_reads_many_files_on_few_connections(web: str) -> None:
    with ThreadPoolExecutor(32) as pool:
        read = list(pool.map(lambda i: read_file(f"{web}/parts/{i}", 100, QUICK), range(1, 201)))
    assert [len(one or b"") for one in read] == [min(i, 100) for i in range(1, 201)]
    assert Files.asked.total() == 200
    assert len(Files.connections) <= 16


def test_an_image_in_a_cloud_is_one_request(s3: S3Config) -> None:
    with fault_proxy(str(s3.endpoint), lambda method, path: None) as proxy:
        through = S3Config(endpoint=proxy.endpoint, retry_s=5)
        store = Store(f"s3://{BUCKET}/in", through)
        for i in range(20):
            store.publish(f"{i}", bytes(i), exclusive=True)
        proxy.requests.clear()
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda i: read_file(store.uri(f"{i}"), 10, through), range(20)))
        with pytest.raises(UnservedError, match="in/20: No such file"):
            read_file(store.uri("20"), 10, through)
        assert [len(one) for one in read] == [min(i, 10) for i in range(20)]
        assert len(proxy.requests) == 21


def test_a_window_reads_what_is_short_and_says_what_is_longer(tmp_path: Path) -> None:
    window = Window(16 * 1024 * 1024, 1, None)
    for name, size in (("short", 100), ("long", 8 * 1024 * 1024), ("longer", 20 * 1024 * 1024)):
        (tmp_path / name).write_bytes(bytes(size))
    assert window.read(str(tmp_path / "short")) == bytes(100)
    with pytest.raises(UnservedError, match="none: No such file"):
        window.read(str(tmp_path / "none"))
    for name, size in (("long", 8 * 1024 * 1024), ("longer", 16 * 1024 * 1024 + 1)):
        file = window.read(str(tmp_path / name))
        assert isinstance(file, Longer)
        assert len(window.read_whole(file) or b"") == size


@pytest.mark.parametrize(
    ("num_rows", "size_mb"), [pytest.param(1000, 8, marks=pytest.mark.long), (100, 8), (20, 30)]
)
def test_a_thousand_large_images_stay_within_the_window(
    tmp_path: Path, num_rows: int, size_mb: int
) -> None:
    with (tmp_path / "image").open("wb") as file:
        file.truncate(size_mb * 10**6)
    command = [sys.executable, "-c", AHEAD, str(tmp_path), str(num_rows)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    seen, more_mb = map(int, ended.stdout.split())
    assert seen == num_rows
    assert more_mb < 64 + 2 * size_mb + 16
