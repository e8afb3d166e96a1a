"""A job whose settings, rows and libraries' messages hold secrets: none is stored or printed."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.parquet as pq
import pytest
from mistakes import JOB, Mistake, dataset, prompts, see

SECRET = "hf-SECRET-5b1e"
ENLARGE = "run conf=upscale_4x model=demo_upscale cluster=in_process source.uri=in sink.uri=out"


class Closed(BaseHTTPRequestHandler):
    """Lets nobody in, and repeats what it was asked, as libraries do."""

    def do_GET(self) -> None:
        self.send_error(403, f"no {self.path}")

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Closed)
    Thread(target=running.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize(
    "setting",
    [
        "source.uri=http://{host}/a.parquet?sig={secret}",
        "source.uri=http://{secret}@{host}/a.parquet",
        "source.uri=[in,'http://me:pa/ss{secret}@{host}/a.parquet']",
        "source.image_root=http://{host}/?X-Goog-Signature={secret}",
        "source.s3.endpoint=http://me:{secret}@{host}",
        "sink.s3.endpoint=http://{secret}@{host}",
        "cluster.runtime_env.pip=['git+https://{secret}@{host}/me/x.git']",
        "cluster.runtime_env.working_dir='https://{host}/x.zip?access_token={secret}'",
        "cluster.runtime_env.env_vars.HF_TOKEN={secret}",
        "cluster.runtime_env.env_vars.INDEX=https://{secret}@{host}/simple",
        "cluster.address=http://me:{secret}@{host}",
        "model.repo_id=https://{secret}@{host}/me/x",
        "+cluster.runtime_env.config.api_key={secret}",
    ],
)
def test_a_setting_that_holds_a_secret_is_refused_without_telling_it(
    setting: str, server: str, tmp_path: Path
) -> None:
    words = setting.format(host=server, secret=SECRET)
    seen = see(Mistake(f'{JOB} "{words}"', (), (prompts(),)), tmp_path)
    assert seen.code == 2, seen
    assert setting.partition("=")[0].lstrip("+") in seen.err
    assert "refused" in seen.err
    assert seen.stored == []
    assert SECRET not in seen.err + seen.out


@pytest.mark.parametrize("command", ["status", "verify", "sheet", "sweep"])
def test_a_command_tells_no_secret_of_its_options(command: str, tmp_path: Path) -> None:
    words = f"{command} s3://b/x --endpoint http://me:{SECRET}@127.0.0.1:9"
    seen = see(Mistake(words, (), (dataset,)), tmp_path)
    assert seen.code == 2, seen
    assert "--endpoint" in seen.err
    assert SECRET not in seen.err + seen.out


def stored_texts(folder: Path) -> dict[str, str]:
    """Whatever a job stored, as texts; of Parquet the cells."""
    found = {}
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            found[path.name] = repr(pq.read_table(path)) + repr(pq.read_schema(path).metadata)
        elif path.is_file():
            found[path.name] = path.read_text()
    return found


def test_what_a_row_brings_is_told_nowhere_but_in_the_row(server: str, tmp_path: Path) -> None:
    url = f"http://{server}/x.png?sig={SECRET}"
    give = prompts(image=[url, "nowhere.png"])
    words = f"{ENLARGE} source.image_root=http://{server} max_rejected_fraction=1"
    seen = see(Mistake(f"{words} call.num_inference_steps=1", (), (give,)), tmp_path)
    texts = stored_texts(tmp_path / "in it/out")
    assert seen.code == 0, seen
    assert {"plan.json", "00000.parquet"} <= texts.keys(), seen
    rejected = {name for name, text in texts.items() if SECRET in text}
    assert all(len(name) > 64 for name in rejected), rejected  # the row itself is data
    assert SECRET not in seen.err + seen.out
    for path in (tmp_path / "in it/out/.ldm_batch").glob("rejected/*"):
        for row in pq.read_table(path).to_pylist():
            assert SECRET not in str(row["message"])


def test_a_failed_shard_tells_no_secret(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ConnectionError(
            f"403 of https://me:{SECRET}@host/x?sig={SECRET}, url='https://host/?token={SECRET}'"
        )

    monkeypatch.setattr("ldm_batch.worker.Worker.make_shard", fails)
    words = f"{JOB} cluster.runtime_env.env_vars.LEVEL={SECRET}"
    seen = see(Mistake(words, (), (prompts(),)), tmp_path)
    assert seen.code == 1, seen
    texts = stored_texts(tmp_path / "in it/out")
    assert "Traceback" in texts["00000.json"]
    assert all(SECRET not in text for text in texts.values()), texts
    assert SECRET not in seen.err + seen.out
    assert "add them, their values are not recorded" in seen.out
    assert "cluster.runtime_env.env_vars.LEVEL=VALUE" in seen.out
    assert "=..." not in seen.out
