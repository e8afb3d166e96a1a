"""Outage or absence: what keeps a row's file from being read rejects the row, or is its store's."""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fault_proxy import fault_proxy
from s3_server import BUCKET

from ldm_batch.config import S3Config, SourceConfig
from ldm_batch.errors import AccessError, StorageError, UnservedError
from ldm_batch.read.row_files import RowFiles
from ldm_batch.records import Fault
from ldm_batch.storage import read_file
from ldm_batch.storage.s3_client import connect

Read = Callable[..., dict[str, bytes | str]]
FIELDS = ("image", "mask")


def read(root: str, *paths: str, s3: S3Config | None = None) -> dict[str, bytes | str]:
    """What becomes of rows that name files, half of them as a mask: bytes, or the rejection."""
    source = SourceConfig(image_root=root, **({"s3": s3} if s3 else {}))
    cells = [{FIELDS[i % 2]: {"path": path.encode()}} for i, path in enumerate(paths)]
    rows = RowFiles(source, "in/a.parquet", len(FIELDS)).read_ahead(cells, FIELDS)
    found = [row[FIELDS[i % 2]]["found"] for i, row in enumerate(rows)]
    told = [one.message if isinstance(one, Fault) else one for one in found]
    return dict(zip(paths, told, strict=True))


# A local disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.png").write_bytes(b"good")
    return tmp_path


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Let the operating system say so of a file."""
    real = os.stat

    def stat(path: object, *args: object, **kwargs: object) -> os.stat_result:
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number))
        return real(path, *args, **kwargs)  # type: ignore[arg-type,call-overload]

    monkeypatch.setattr(os, "stat", stat)


def test_what_is_not_there_or_no_file_is_the_rows(folder: Path) -> None:
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    os.symlink("loop", folder / "loop")
    long = f"{'x' * 300}.png"
    found = read(str(folder), "gone.png", "good.png", "good.png/a", "folder", "pipe", "loop", long)
    assert found.pop("good.png") == b"good"
    assert found.pop("gone.png") == found.pop("good.png/a") == "no file at its path"
    assert all(str(told).startswith("the file at its path: ") for told in found.values())
    assert "no file" in str(found["folder"])
    assert "no file" in str(found["pipe"])
    assert "levels of symbolic links" in str(found["loop"])
    assert "too long" in str(found[long])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EINVAL, errno.EILSEQ])
def test_a_file_that_is_closed_to_us_is_the_rows(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "closed.png", number)
    found = read(str(folder), "closed.png", "good.png")
    assert str(found["closed.png"]).endswith(os.strerror(number))
    assert found["good.png"] == b"good"


@pytest.mark.parametrize(
    "number", [errno.ESTALE, errno.EIO, errno.ELOOP, errno.ETIMEDOUT, errno.EMFILE, errno.ENODEV]
)
def test_an_outage_is_no_rows(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "away.png", number)
    with pytest.raises(StorageError, match=r"away.png: .") as got:
        read(str(folder), "good.png", "away.png")
    assert not isinstance(got.value, UnservedError)


def test_a_mount_that_is_gone_is_no_rows_where_links_lead_to_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An automounter that finds no server says ELOOP, too."""
    (folder / "link").symlink_to(folder, target_is_directory=True)
    many = 41  # the system follows 40 at most
    for number in range(many):
        (folder / f"{number}").symlink_to("good.png" if number == 0 else f"{number - 1}")
    found = read(str(folder / "link"), f"{many - 1}", "good.png")
    assert "levels of symbolic links" in str(found[f"{many - 1}"])
    failing(monkeypatch, "away.png", errno.ELOOP)
    with pytest.raises(StorageError, match=r"away.png: Too many levels") as got:
        read(str(folder / "link"), "good.png", "away.png")
    assert not isinstance(got.value, UnservedError)


def test_a_root_that_is_gone_is_no_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"mounted here\?"):
        read(str(folder / "unmounted"), "a.png", "b.png")
    assert read(str(folder), "a.png", "b.png")["a.png"] == "no file at its path"
    failing(monkeypatch, "/.", errno.EACCES)
    failing_too = partial(failing, monkeypatch, "a.png")
    failing_too(errno.EACCES)
    with pytest.raises(AccessError, match="Permission denied"):
        read(str(folder), "a.png")


def test_a_disk_that_goes_while_it_is_read_is_no_rows(folder: Path) -> None:
    source = SourceConfig(image_root=str(folder))
    cells = [{"image": {"path": b"good.png"}}, *[{"image": {"path": b"b.png"}}] * 9]
    rows = RowFiles(source, "in/a.parquet", len(FIELDS)).read_ahead(cells, ("image",))
    next(rows)
    (folder / "good.png").unlink()
    with pytest.raises(StorageError, match="not any more"):
        list(rows)


# S3


@pytest.fixture
def bucket(s3: S3Config) -> S3Config:
    for key in ("in/a.png", "in/good.png"):
        connect(s3).put_object(Bucket=BUCKET, Key=key, Body=b"good")
    return s3


def through(bucket: S3Config, fault: str, is_met: Callable[[str, str], bool]) -> Read:
    """Read from a store that answers some requests with a fault."""

    def ask(root: str, *paths: str) -> dict[str, bytes | str]:
        def rule(method: str, path: str) -> str | None:
            return fault if is_met(method, path) else None

        assert bucket.endpoint is not None
        with fault_proxy(bucket.endpoint, rule) as proxy:
            return read(root, *paths, s3=S3Config(endpoint=proxy.endpoint, retry_s=0.3))

    return ask


def test_s3_of_one_object(bucket: S3Config) -> None:
    root = f"s3://{BUCKET}/in"
    found = read(root, "gone.png", "good.png", s3=bucket)
    assert found == {"gone.png": "no file at its path", "good.png": b"good"}
    assert read(root, "gone.png", s3=bucket) == {"gone.png": "no file at its path"}
    denied = through(bucket, "denied", lambda _, path: "a.png" in path)
    found = denied(root, "a.png", "good.png")
    assert "access denied" in str(found["a.png"])
    assert found["good.png"] == b"good"
    assert "access denied" in str(denied(root, "a.png")["a.png"])  # its prefix answers


def test_s3_of_all_objects(bucket: S3Config) -> None:
    root = f"s3://{BUCKET}/in"
    with pytest.raises(AccessError, match="access denied"):
        through(bucket, "denied", lambda *_: True)(root, "a.png", "good.png")
    with pytest.raises(AccessError, match="expired"):
        through(bucket, "expired", lambda _, path: "a.png" in path)(root, "good.png", "a.png")
    with pytest.raises(AccessError, match="no such bucket"):
        read("s3://nowhere/in", "a.png", s3=bucket)


@pytest.mark.parametrize("fault", ["503", "500", "reset"])
def test_s3_that_is_away(bucket: S3Config, fault: str) -> None:
    root = f"s3://{BUCKET}/in"
    with pytest.raises(StorageError, match="tried for") as got:
        through(bucket, fault, lambda _, path: "a.png" in path)(root, "good.png", "a.png")
    assert not isinstance(got.value, UnservedError)


# What else fsspec knows


class Statuses(BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self) -> None:
        status = int(self.path.rsplit("/", 1)[1])
        self.send_response(status)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else b"good")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Statuses) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_of_the_web(web: str) -> None:
    soon = S3Config(retry_s=0.2)
    found = read(web, "200", "404", "403", "400", "410")
    assert found["200"] == b"good"
    assert found["404"] == found["410"] == "no file at its path"
    assert all(str(found[n]).startswith("the file at its path: ") for n in ("400", "403"))
    for status in ("500", "503", "429"):
        with pytest.raises(StorageError) as got:
            read(web, "200", status, s3=soon)
        assert not isinstance(got.value, UnservedError)


def test_of_a_web_that_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(StorageError) as got:
        read_file(f"http://127.0.0.1:{port}/a", 4, S3Config(retry_s=0.2))
    assert not isinstance(got.value, UnservedError)


def test_of_memory() -> None:
    with pytest.raises(UnservedError) as got:
        read_file("memory://nothing/a.png", 4)
    assert got.value.is_absent
