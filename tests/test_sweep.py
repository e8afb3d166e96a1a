"""Leftovers of crashes are found by their age and removed; nothing else is."""

import os
import time
from pathlib import Path

import pytest
from s3_server import BUCKET

from ldm_batch.commands import sweep
from ldm_batch.config import S3Config
from ldm_batch.storage import Store
from ldm_batch.storage.s3_client import connect


def call(*arguments: str) -> int | None:
    """Exit code of the command, None where it just ends."""
    try:
        sweep.main(arguments)
    except SystemExit as ended:
        return int(str(ended.code))
    return None


def test_old_temporary_files_go_and_objects_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path))
    store.publish("data/00000.parquet", b"x", exclusive=True)
    for name, age_h in (("old.tmp", 3), ("young.tmp", 1)):
        (tmp_path / ".ldm_batch/tmp" / name).write_bytes(b"x")
        when = time.time() - age_h * 3600
        os.utime(tmp_path / ".ldm_batch/tmp" / name, (when, when))
    os.utime(tmp_path / "data/00000.parquet", (0, 0))
    assert call(str(tmp_path), "--older-than", "2h", "--dry-run") is None
    assert "old.tmp, 3.0 hours old\n1 leftovers found" in capsys.readouterr().out
    assert store.names(".ldm_batch/tmp") == {"old.tmp", "young.tmp"}
    assert call(str(tmp_path), "--older-than", "2h") is None
    assert store.names(".ldm_batch/tmp") == {"young.tmp"}
    assert call(str(tmp_path)) is None
    assert "0 leftovers removed" in capsys.readouterr().out
    assert store.names("data") == {"00000.parquet"}


def test_uncompleted_uploads_are_aborted(s3: S3Config, capsys: pytest.CaptureFixture[str]) -> None:
    client, store = connect(s3), Store(f"s3://{BUCKET}/out", s3)
    store.publish("data/00000.parquet", b"x", exclusive=True)
    store.publish(".ldm_batch/tmp/probe-1", b"x", exclusive=True)
    for key in ("out/data/00001.parquet", "outside/data/00001.parquet"):
        client.create_multipart_upload(Bucket=BUCKET, Key=key)
    arguments = (store.root, "--endpoint", str(s3.endpoint), "--older-than", "0s")
    assert call(*arguments) is None
    shown = capsys.readouterr().out
    assert "upload s3://bucket/out/data/00001.parquet" in shown
    assert "file s3://bucket/out/.ldm_batch/tmp/probe-1" in shown
    uploads = client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    assert [upload["Key"] for upload in uploads] == ["outside/data/00001.parquet"]
    assert store.names("data") == {"00000.parquet"}
    assert store.names(".ldm_batch/tmp") == set()
    assert call(*arguments) is None


@pytest.mark.parametrize("arguments", [("/x", "--older-than", "soon"), ("s3:///x",), ()])
def test_a_mistake_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert call(*arguments) == 2
