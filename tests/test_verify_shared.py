"""Keys that shards share, and seeds that images share, are counted and named, however many."""

import io
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_batch.commands.verify import command
from ldm_batch.commands.verify.shared import (
    BUCKET_STARTS,
    Example,
    SharedIndex,
    describe_shared_keys,
    describe_shared_seeds,
    gather_seed,
    hash_keys,
    spread_seeds,
)
from ldm_batch.commands.verify.verification import EXIT_RIGHT, verify
from ldm_batch.config import JobConfig
from ldm_batch.drive import run_job
from ldm_batch.storage import Store


def test_shared_keys_are_those_of_two_shards() -> None:
    choose, shards_of = random.Random(0), defaultdict[str, set[int]](set)
    with SharedIndex() as index:
        for shard in range(50):
            keys = [f"k{choose.randrange(20_000)}" for _ in range(200)]
            for key in keys:
                shards_of[key].add(shard)
            index.add(shard, hash_keys(keys))
        index.add(50, hash_keys([]))
        found = index.find_shared()
    shared = {int(hash_keys([k])[0]): s for k, s in shards_of.items() if len(s) > 1}
    assert found.num_values == len(shared) > 1000
    assert found.num_places == sum(len(shards) for shards in shared.values())
    assert len(found.examples) == 3
    for example in found.examples:
        assert set(example.shards) <= shared[example.value]
        assert example.shards[0] < example.shards[1]


def test_hashes_are_the_same_on_every_machine() -> None:
    assert hash_keys(["r0", "", "é"]).tolist() == [
        int.from_bytes(bytes.fromhex(digest), "little")
        for digest in ("5a555acca70a3f25", "e4a6a0577479b2b4", "cb1abf8beff3192f")
    ]


def test_the_largest_and_smallest_hashes_have_a_bucket() -> None:
    extremes = np.array([0, 2**57 - 1, 2**57, 2**64 - 1], dtype="<u8")
    with SharedIndex() as index:
        for shard in (7, 3, 5):
            index.add(shard, extremes)
        found = index.find_shared()
    assert (found.num_values, found.examples[0]) == (4, Example(0, (3, 7)))


def test_seeds_are_shared_within_and_across_shards() -> None:
    choose, places = random.Random(1), defaultdict[int, list[int]](list)
    with SharedIndex(within_shards=True) as index:
        for shard in range(40):
            seeds = [choose.randrange(9000) for _ in range(100)]
            seeds += [choose.randrange(2**64) for _ in range(100)] + [7] * (shard == 3) * 50
            for seed in seeds:
                places[seed].append(shard)
            index.add(shard, spread_seeds(np.array(seeds, np.uint64)))
        index.add(40, spread_seeds(np.empty(0, np.uint64)))
        found = index.find_shared()
    shared = {seed: shards for seed, shards in places.items() if len(shards) > 1}
    assert found.num_values == len(shared) > 500
    assert found.num_places == sum(map(len, shared.values()))
    for example in found.examples:
        [first, *others] = sorted(set(shared[gather_seed(example.value)]))
        assert example.shards == (first, *(others or [first])[:1])


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_spread_seeds_are_seeds_still(seeds: list[int]) -> None:
    spread = spread_seeds(np.array(seeds, np.uint64)).tolist()
    assert [gather_seed(value) for value in spread] == seeds


@pytest.mark.parametrize("step", [1, 2, 2**16, 2**32, 2**40])
def test_seeds_in_a_row_fill_all_buckets_alike(step: int) -> None:
    """So that a 64th of them is in memory at a time, whatever seeds people bring."""
    seeds = np.arange(64_000, dtype=np.uint64) * np.uint64(step)
    sizes = np.bincount(np.searchsorted(BUCKET_STARTS, spread_seeds(seeds), side="right"))
    assert len(sizes) == 64
    assert sizes.max() < 2 * 1000


def test_one_seed_for_all_takes_little_room() -> None:
    with SharedIndex(within_shards=True) as index:
        for shard in range(3):
            index.add(shard, np.zeros(10_000, np.uint64))
        assert sum(bucket.tell() for bucket in index._buckets) == 3 * 16
        assert describe_shared_seeds(index) == (
            30_000,
            [
                "30,000 images have a seed that another image has, too (0 in 00000 and 00001): "
                "they start from the same noise"
            ],
        )


def test_without_room_on_the_disk_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with SharedIndex() as index:
        index.add(0, hash_keys(["a"]))
        count, [note] = describe_shared_keys(Store(str(tmp_path)), index)
        num_seeds, [about_seeds] = describe_shared_seeds(index)
    assert (count, num_seeds) == (0, 0)
    assert note.startswith("keys of different shards were not compared: ")
    assert "No such file or directory" in note
    assert about_seeds.startswith("seeds were not compared: ")


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
    assert found.num_shared_seeds == 2
    assert found.notes[1].startswith("2 images have a seed that another image has, too (")
    assert found.notes[:1] == [
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


def test_seeds_that_rows_bring_twice_are_told_of(
    tmp_path: Path,
    write_parquet: Callable[..., str],
    make_job: Callable[..., JobConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Within a shard and across shards; the second image of a row is nobody's neighbour."""
    source = write_parquet(
        tmp_path / "in.parquet",
        prompt=["text"] * 6,
        seed=pa.array([5, 6, 5, None, 2**64 - 1, 6], pa.uint64()),
    )
    job = make_job(source, tmp_path / "out", rows_per_shard=4, num_images_per_prompt=2)
    assert run_job(job, out=io.StringIO()) == 0
    found = verify(Store(str(job.sink.uri)))
    assert (found.exit_code, found.num_shared_seeds, found.num_own_seeds) == (EXIT_RIGHT, 8, 10)
    [note] = found.notes
    assert note.startswith("8 images have a seed that another image has, too (")
    assert "5 in 00000, twice" in note or "6 in 00000 and 00001" in note
    with pytest.raises(SystemExit) as ended:
        command.main([str(job.sink.uri)])
    assert ended.value.code == EXIT_RIGHT
    shown = capsys.readouterr().out
    assert "images: 12, 10 with seeds of their own, 8 with that of another image\n" in shown
    assert f"  note: {note}\n" in shown
    with pytest.raises(SystemExit):
        command.main([str(job.sink.uri), "--json"])
    assert json.loads(capsys.readouterr().out)["num_shared_seeds"] == 8
