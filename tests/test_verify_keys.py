"""Keys that several shards share are counted and named, however many there are."""

import io
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ldm_batch.commands.verify import command
from ldm_batch.commands.verify.keys import KeyIndex, SharedKey, describe_shared, hash_keys
from ldm_batch.commands.verify.verification import EXIT_RIGHT, verify
from ldm_batch.config import JobConfig
from ldm_batch.drive import run_job
from ldm_batch.storage import Store


def test_shared_keys_are_those_of_two_shards() -> None:
    choose, shards_of = random.Random(0), defaultdict[str, set[int]](set)
    with KeyIndex() as index:
        for shard in range(50):
            keys = [f"k{choose.randrange(20_000)}" for _ in range(200)]
            for key in keys:
                shards_of[key].add(shard)
            index.add(shard, hash_keys(keys))
        index.add(50, hash_keys([]))
        count, examples = index.find_shared()
    shared = {int(hash_keys([k])[0]): s for k, s in shards_of.items() if len(s) > 1}
    assert count == len(shared) > 1000
    assert len(examples) == 3
    for example in examples:
        assert set(example.shards) <= shared[example.hash]
        assert example.shards[0] < example.shards[1]


def test_hashes_are_the_same_on_every_machine() -> None:
    assert hash_keys(["r0", "", "é"]).tolist() == [
        int.from_bytes(bytes.fromhex(digest), "little")
        for digest in ("5a555acca70a3f25", "e4a6a0577479b2b4", "cb1abf8beff3192f")
    ]


def test_the_largest_and_smallest_hashes_have_a_bucket() -> None:
    extremes = np.array([0, 2**57 - 1, 2**57, 2**64 - 1], dtype="<u8")
    with KeyIndex() as index:
        for shard in (7, 3, 5):
            index.add(shard, extremes)
        count, [first, *_] = index.find_shared()
    assert (count, first) == (4, SharedKey(0, (3, 7)))


def test_without_room_on_the_disk_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with KeyIndex() as index:
        index.add(0, hash_keys(["a"]))
        count, [note] = describe_shared(Store(str(tmp_path)), index)
    assert count == 0
    assert note.startswith("keys of different shards were not compared: ")
    assert "No such file or directory" in note


def test_ids_that_two_files_share_are_told_of(
    tmp_path: Path,
    write_parquet: Callable[..., str],
    make_job: Callable[..., JobConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("a", "b"):
        ids = ["same", *(f"{name}{i}" for i in range(5))]
        write_parquet(tmp_path / f"in/{name}.parquet", prompt=["text"] * 6, id=ids)
    job = make_job(str(tmp_path / "in"), tmp_path / "out")
    assert run_job(job, out=io.StringIO()) == 0
    found = verify(Store(str(job.sink.uri)))
    assert (found.exit_code, found.num_shared_keys) == (EXIT_RIGHT, 1)
    assert found.notes == [
        "1 key stands in more than one shard ('same' in 00000 and 00001): such rows get the same "
        "seeds, unless they bring their own; in another dataset source.columns.id=null makes "
        "keys of their places"
    ]
    with pytest.raises(SystemExit) as ended:
        command.main([str(job.sink.uri)])
    assert ended.value.code == EXIT_RIGHT
    assert f"  note: {found.notes[0]}\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main([str(job.sink.uri), "--json"])
    assert json.loads(capsys.readouterr().out)["num_shared_keys"] == 1
