"""What nobody foresaw ends every command in exit code 70, one line and a report, also where it
happens in a worker; what people's files and settings may hold is never that."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import pytest
from mistakes import JOB, Mistake, dataset, prompts, see

import ldm_batch.commands.completion.command
import ldm_batch.commands.import_model
import ldm_batch.commands.init
import ldm_batch.demo.command
import ldm_batch.drive.job
from ldm_batch.__main__ import COMMANDS
from ldm_batch.run import compose
from ldm_batch.storage.local import LocalFolder

SECRET = "hf-SECRET-77c1"


def odd(*_: Any, **__: Any) -> NoReturn:
    """What a library may raise on any day."""
    raise AttributeError(f"'NoneType' has no 'x'\nof https://me:{SECRET}@host/x?sig={SECRET}")


DEEP: dict[str, tuple[str, Any, str]] = {
    "run": (JOB, LocalFolder, "read"),
    "status": ("status out", LocalFolder, "names"),
    "verify": ("verify out", LocalFolder, "open"),
    "sheet": ("sheet out --output x.png", LocalFolder, "open"),
    "sweep": ("sweep out", LocalFolder, "leftovers"),
    "tradeoff": ("tradeoff out", LocalFolder, "read"),
    "import": ("import a x", ldm_batch.commands.import_model, "_import_folder"),
    "init": ("init x", ldm_batch.commands.init.shutil, "copytree"),
    "completion": (
        "completion answer bash 'ldm-batch run '",
        ldm_batch.commands.completion.command,
        "answer",
    ),
    "demo": ("demo", ldm_batch.demo.command, "make_demo_prompts"),
}
"""Command -> words, and the place deep within where something nobody foresaw happens."""
EXTRA = [
    (JOB, compose, "_compose"),
    (JOB, ldm_batch.drive.job, "load_worker"),
    (f"{JOB} dry_run=true", compose, "refuse_code"),
    ("verify out --regenerate 1", LocalFolder, "open"),
]


@pytest.mark.parametrize(
    ("words", "where", "name"), [*(DEEP[name] for name in COMMANDS), *EXTRA], ids=str
)
def test_what_nobody_foresaw(
    words: str, where: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_it(_: Path) -> None:
        monkeypatch.setattr(where, name, odd)

    whole = (prompts(),) if words.startswith("run") else (dataset,)
    seen = see(Mistake(words, (), (*whole, break_it)), tmp_path)
    assert seen.code == 70, seen
    assert seen.err.startswith("error: not foreseen by ldm_batch: AttributeError: 'NoneType' has")
    assert seen.err.count("\n") == 1
    [report] = seen.stored
    assert report.startswith("spool/ldm_batch-")
    text = (tmp_path / report).read_text()
    assert str(tmp_path / report) in seen.err
    assert all(piece in text for piece in ("Traceback", "in odd", words.split()[0]))
    assert SECRET not in seen.err + seen.out + text


class Answer(BaseHTTPRequestHandler):
    """Answers as a sick server would; the path says how."""

    def do_GET(self) -> None:
        how = self.path[1:4]
        self.send_response(200 if how == "cut" else int(how))
        self.send_header("Content-Length", "100000")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"PAR1")
        self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


class Server(ThreadingHTTPServer):
    """A server that says nothing of clients that leave."""

    def handle_error(self, *_: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def server() -> Iterator[str]:
    running = Server(("127.0.0.1", 0), Answer)
    Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("how", ["503", "404", "403", "500", "cut"])
def test_a_sick_server_is_foreseen(how: str, server: str, tmp_path: Path) -> None:
    seen = see(Mistake(f"{JOB} source.uri={server}/{how}.parquet?part={SECRET}", ()), tmp_path)
    assert seen.code == 2, seen
    assert seen.err.startswith("error: ")
    assert f"{server}/{how}.parquet" in seen.err
    assert seen.stored == []
    assert SECRET not in seen.err
