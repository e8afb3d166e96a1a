"""A full disk: the job stops with what it has, and does not make what would be lost."""

import errno
import os
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from ldm_batch.cluster.attempts import run_in_process
from ldm_batch.config import ClusterConfig
from ldm_batch.errors import NoRoomError, StorageError, TryLaterError
from ldm_batch.records import Receipt, Shard
from ldm_batch.storage import Store, local
from ldm_batch.write.spool import Spool, told_of_no_room

Make = Callable[..., Any]
FULL = [errno.ENOSPC, errno.EDQUOT]


@pytest.mark.parametrize("number", FULL)
def test_the_sink_is_full(
    number: int,
    tmp_path: Path,
    write_parquet: Make,
    make_job: Make,
    make_worker: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_parquet(tmp_path / "in/a.parquet", prompt=["a", "b", "c", "d"])
    worker, plan = make_worker(make_job(source, tmp_path / "out", rows_per_shard=1))
    num_tries = 0

    def full(path: Path, content: object) -> None:
        nonlocal num_tries
        num_tries += 1
        raise OSError(number, os.strerror(number))

    class Loaded:
        def environment(self) -> dict[str, str]:
            return {}

        def make_shard(self, shard: Shard, _terms: object) -> Receipt:
            if shard.index == 2:
                monkeypatch.setattr(local, "_write_durably", full)
            return worker.make_shard(shard)  # type: ignore[no-any-return]

    events = run_in_process(Loaded, plan.shards, ClusterConfig(max_attempts=3))
    made = [next(events), next(events)]
    assert all(isinstance(one, Receipt) for one in made)
    with pytest.raises(TryLaterError, match=rf"^stopped: .*{os.strerror(number)}\. What is comm"):
        next(events)
    assert num_tries == 1
    assert Store(str(tmp_path / "out")).names("data") == {"00000.parquet", "00001.parquet"}


@pytest.mark.parametrize("number", FULL)
def test_the_disk_of_temporary_files_is_full(number: int) -> None:
    told = pytest.raises(NoRoomError, match=rf"^{tempfile.gettempdir()}: .*TMPDIR")
    with told as got, told_of_no_room(), Spool():
        raise OSError(number, os.strerror(number))
    assert got.value.is_of_node
    with pytest.raises(FileNotFoundError), told_of_no_room():
        raise FileNotFoundError


def test_other_trouble_of_a_disk_is_a_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, content: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(local, "_write_durably", broken)
    with pytest.raises(StorageError) as got:
        Store(str(tmp_path)).create("data/a", BytesIO(b"a"))
    assert not isinstance(got.value, NoRoomError)
