"""What foreign libraries raise where we meet them ends as an error of ours, with a message.

The kinds are found in the libraries themselves, so a new version's are tried as well.
"""

import builtins
import importlib
import inspect
import io
import string
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import fsspec
import huggingface_hub
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem

from ldm_batch.config import CallConfig, S3Config, SourceConfig
from ldm_batch.diffusion.models import fetch
from ldm_batch.errors import AccessError, JobError, ShardError, StorageError, UnservedError
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.identity import FORMS
from ldm_batch.read import batches, footer, shard
from ldm_batch.read.rows import RowContext
from ldm_batch.records import InputFile, Shard
from ldm_batch.storage import SourceFile, open_file, read_file
from ldm_batch.storage.files import list_files
from ldm_batch.storage.retry import Missing, Taken, persist
from ldm_batch.storage.s3_client import connect, judge

Kind = type[Exception]
SECRET = "signed-address"
"""Stands in every error of the hub's client; its texts may hold addresses that are keys."""
NOT_RAISED = (Warning, StopIteration, StopAsyncIteration)
CALL = CallConfig(height=8, width=8)


def kinds(*modules: str) -> list[Any]:
    """The exceptions that modules name and that are of their own package."""
    found = {
        f"{value.__module__}.{value.__name__}": value
        for module in modules
        for value in vars(importlib.import_module(module)).values()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and value.__module__.split(".")[0] == module.split(".")[0]
        and not issubclass(value, NOT_RAISED)
    }
    return [pytest.param(kind, id=name) for name, kind in sorted(found.items())]


def make(kind: Kind) -> Exception:
    """An exception of a kind, with arguments that its class takes; Python's own without any."""
    if issubclass(kind, ClientError):
        return kind({"Error": {"Code": "Odd"}, "ResponseMetadata": {}}, "Request")
    if hasattr(kind, "fmt"):
        fields = {name for _, name, _, _ in string.Formatter().parse(kind.fmt) if name}
        return kind(**{**dict.fromkeys(fields, SECRET), **_arguments(kind)})
    if issubclass(kind, UnicodeDecodeError):
        return kind("utf-8", b"\xff", 0, 1, "odd")
    if issubclass(kind, UnicodeEncodeError):
        return kind("utf-8", "\xff", 0, 1, "odd")
    if issubclass(kind, UnicodeTranslateError):
        return kind("\xff", 0, 1, "odd")
    if issubclass(kind, ExceptionGroup):
        return kind("odd", [ValueError("odd")])
    arguments = _arguments(kind)
    if arguments or kind.__module__ == "builtins" or kind.__init__ is not kind.__base__.__init__:
        return kind(**arguments)
    return kind(SECRET)


def _arguments(kind: Kind) -> dict[str, Any]:
    """What a class that Python code defines must be given, by name."""
    try:
        parameters = inspect.signature(kind).parameters.values()
    except ValueError:  # it is made as its base is, in C
        return {}
    return {
        one.name: Anything(SECRET)
        for one in parameters
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }


class Anything(str):
    """A text that also is a number, an answer or an error, as far as exceptions ask."""

    status_code, headers, errno = 400, MappingProxyType({}), 5

    def __getattr__(self, name: str) -> "Anything":
        return self

    def __call__(self) -> "Anything":
        return self

    def __int__(self) -> int:
        return 5

    def __format__(self, form: str) -> str:
        return str(self)


def raise_(error: Exception) -> NoReturn:
    raise error


# fsspec: any client's exceptions


class OddFileSystem(MemoryFileSystem):
    """A kind of storage with one file, that raises an error in one of its steps."""

    protocol = "odd"
    step, error = "", Exception()

    @classmethod
    def meet(cls, step: str) -> None:
        if cls.step == step:
            raise cls.error

    def __init__(self, **options: Any) -> None:
        self.meet("connect")
        super().__init__(**options)

    def isfile(self, path: str) -> bool:
        self.meet("look")
        return path.endswith("a.parquet")

    def isdir(self, path: str) -> bool:
        return not self.isfile(path)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": 4, "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        self.meet("list")
        return [self.info(f"{path}/a.parquet")]

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        self.meet("open")
        return OddFile(b"PAR1")


class OddFile(io.BytesIO):
    """A file that raises when it is read, or closed."""

    def read(self, size: int | None = -1, /) -> bytes:
        OddFileSystem.meet("read")
        return super().read(size)

    def close(self) -> None:
        super().close()
        OddFileSystem.meet("close")


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    fsspec.register_implementation("odd", OddFileSystem, clobber=True)
    yield monkeypatch
    OddFileSystem.step = ""


ROWS_OWN = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
FSSPEC = kinds("fsspec.exceptions", "aiohttp.client_exceptions", "builtins")
USES = {
    "connect": lambda: list_files("odd://folder"),
    "look": lambda: list_files("odd://folder/a.parquet"),
    "list": lambda: list_files("odd://folder"),
    "open": lambda: open_file("odd://folder/a.parquet"),
    "read": lambda: open_file("odd://folder/a.parquet").read(4),
    "close": lambda: open_file("odd://folder/a.parquet").close(),
}


@pytest.mark.parametrize("kind", FSSPEC)
def test_of_fsspec(kind: Kind, odd: pytest.MonkeyPatch) -> None:
    odd.setattr(OddFileSystem, "error", make(kind))
    for step, use in USES.items():
        odd.setattr(OddFileSystem, "step", step)
        with pytest.raises((StorageError, JobError), match=r"odd://folder(/a.parquet)?: .") as got:
            use()
        assert got.value.__cause__ is not None


@pytest.mark.parametrize("kind", FSSPEC)
def test_of_fsspec_where_a_row_names_a_file(kind: Kind, odd: pytest.MonkeyPatch) -> None:
    odd.setattr(OddFileSystem, "error", make(kind))
    for step in ("connect", "open", "read"):
        odd.setattr(OddFileSystem, "step", step)
        with pytest.raises((StorageError, JobError), match=r"odd://folder/a.parquet: .") as got:
            read_file("odd://folder/a.parquet", 4)
        if step != "connect" and issubclass(kind, (FileNotFoundError, NotADirectoryError)):
            assert isinstance(got.value, UnservedError)
            assert got.value.is_absent
        elif issubclass(kind, OSError) and not issubclass(kind, ROWS_OWN):
            assert not isinstance(got.value, UnservedError)


def test_a_file_of_fsspecs_is_a_file(odd: pytest.MonkeyPatch) -> None:
    with open_file("odd://folder/a.parquet") as file:
        assert (file.read(1), file.tell(), file.seek(-1, io.SEEK_END)) == (b"P", 1, 3)
        assert (file.read(), file.seek(0), file.readable()) == (b"1", 0, True)
        buffer = bytearray(8)
        assert file.readinto(buffer) == 4  # type: ignore[attr-defined]
        assert buffer == b"PAR1" + bytes(4)
    assert file.closed


# botocore, and urllib3 below it

BOTOCORE = kinds(
    "botocore.exceptions",
    "botocore.eventstream",
    "botocore.parsers",
    "urllib3.exceptions",
    "http.client",
)


@pytest.mark.parametrize("kind", BOTOCORE)
def test_of_botocore(kind: Kind) -> None:
    with pytest.raises((AccessError, StorageError), match=r"^s3://bucket/key: .") as raised:
        persist(
            lambda: raise_(make(kind)), "s3://bucket/key", 0.0, judge, pause=lambda seconds: None
        )
    assert isinstance(raised.value.__cause__, kind)


@pytest.mark.parametrize("kind", BOTOCORE)
def test_of_botocore_where_a_connection_is_set_up(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3FileSystem, "connect", lambda *_, **__: raise_(make(kind)))
    with pytest.raises(AccessError, match=r"^s3: cannot be set up: ."):
        connect(S3Config(endpoint="http://127.0.0.1:1/never-made"))


# gcsfs and what is below it, Azure's

GOOGLE = [
    kind
    for kind in kinds("gcsfs.retry", "google.auth.exceptions", "aiohttp.client_exceptions")
    if "WSMessageType" not in str(kind.id)  # of web sockets, which nobody opens
]
AZURE = kinds("azure.core.exceptions")


@pytest.mark.parametrize("kind", GOOGLE)
def test_of_googles(kind: Kind) -> None:
    check_judged(kind, "gs://bucket/key", importlib.import_module("ldm_batch.storage.gcs"))


@pytest.mark.parametrize("kind", AZURE)
def test_of_azures(kind: Kind) -> None:
    check_judged(kind, "az://bucket/key", importlib.import_module("ldm_batch.storage.azure"))


def check_judged(kind: Kind, place: str, cloud: Any) -> None:
    """Whatever a request raises, it ends as an error of ours, or as what a folder asks for."""
    ours = (AccessError, StorageError, Missing, Taken)
    with pytest.raises(ours, match=f"^{place}") as raised:
        persist(lambda: raise_(make(kind)), place, 0.0, cloud.judge, pause=lambda seconds: None)
    assert isinstance(raised.value.__cause__, kind)


# pyarrow, and Python's own where it decodes late

LATE = [UnicodeDecodeError, ValueError, OverflowError, KeyError, IndexError, MemoryError, OSError]
PYARROW = [*kinds("pyarrow.lib"), *(pytest.param(kind, id=kind.__name__) for kind in LATE)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, write_parquet: Any) -> Shard:
    path = write_parquet(tmp_path_factory.mktemp("planned") / "a.parquet", prompt=["a"])
    size_bytes = Path(path).stat().st_size
    [found] = footer.read_new_footers([SourceFile("a.parquet", path, size_bytes, "")])
    return Shard(0, InputFile("a.parquet", path, size_bytes, "", 1, found.sha256), 0, 1)


@pytest.mark.parametrize("kind", PYARROW)
def test_of_pyarrow_where_a_footer_is_parsed(
    kind: Kind, planned: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footer, "parse_footer", lambda raw: raise_(make(kind)))
    with pytest.raises(JobError, match=r"a.parquet: not a readable Parquet file: ."):
        footer.read_planned_footer(planned.file)


@pytest.mark.parametrize("kind", PYARROW)
def test_of_pyarrow_where_rows_are_read(
    kind: Kind, planned: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(pa.parquet.ParquetFile):
        def iter_batches(self, *_: Any, **__: Any) -> Iterator[Any]:
            raise make(kind)

    monkeypatch.setattr(batches.pq, "ParquetFile", Odd)
    task, context = TEXT_TO_IMAGE, RowContext(SourceConfig(), CALL, FORMS[1])
    with pytest.raises(ShardError, match=r"a.parquet: cannot be read: ."):
        shard.read_shard(planned, task.columns, task.parse_row, context)


# The hub's client, and the HTTP client below it

CLIENT = type(huggingface_hub.get_session()).__module__.split(".")[0]
HUB = kinds("huggingface_hub.errors", CLIENT, CLIENT.replace("httpx", "httpcore"), "builtins")
SHA = "0" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A hub's client that finds nothing in its cache."""
    missing = huggingface_hub.errors.LocalEntryNotFoundError(SECRET)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: raise_(missing))
    return monkeypatch


def refused() -> str:
    """The message that ends a fetch; it tells nothing that the client's own texts hold."""
    with pytest.raises(JobError, match=r"^model.repo_id=a/b: .") as raised:
        fetch.fetch_snapshot("a/b", SHA, patterns=["*"])
    return str(raised.value)


@pytest.mark.parametrize("kind", HUB)
def test_of_the_hubs_client(kind: Kind, hub: pytest.MonkeyPatch) -> None:
    missing = huggingface_hub.errors.LocalEntryNotFoundError(SECRET)
    for step in ("cache", "fetch"):

        def download(*_: Any, local_files_only: bool = False, step: str = step, **__: Any) -> None:
            raise missing if local_files_only and step == "fetch" else make(kind)

        hub.setattr(huggingface_hub, "snapshot_download", download)
        assert SECRET not in refused() or kind is huggingface_hub.errors.HFValidationError


@pytest.mark.parametrize("kind", kinds("builtins", CLIENT))
def test_of_the_hubs_client_where_it_is_set_up(kind: Kind, hub: pytest.MonkeyPatch) -> None:
    hub.setattr(huggingface_hub, "get_session", lambda: raise_(make(kind)))
    assert SECRET not in refused()


def test_an_address_that_is_none_is_no_trouble_of_its_own(hub: pytest.MonkeyPatch) -> None:
    hub.setattr(huggingface_hub.constants, "ENDPOINT", "http://[odd")
    assert "no whole answer from the hub (LocalEntryNotFoundError)" in refused()


def test_there_are_kinds_to_try() -> None:
    """An empty list would pass as well: a library may move its exceptions."""
    lists = (FSSPEC, BOTOCORE, PYARROW, HUB)
    assert all(len(found) >= least for found, least in zip(lists, (60, 120, 15, 100), strict=True))
    assert builtins.ValueError in [one.values[0] for one in FSSPEC]
