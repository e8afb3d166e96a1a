"""Plans: every row in one shard, cut once for ever, grown by new files, refused when changed."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_batch import identity
from ldm_batch.errors import JobError
from ldm_batch.generate.super_resolution import COLUMNS
from ldm_batch.identity import NEWEST_FORM
from ldm_batch.plan.cut import (
    cut_file,
    cut_files,
    describe_unknown_sizes,
    look_at,
    rows_per_shard,
    settle_rows_per_shard,
)
from ldm_batch.plan.make import select_shards
from ldm_batch.plan.own import refuse_own_sink
from ldm_batch.plan.stored import Plan, load_plan, plan_document, save_plan
from ldm_batch.read.footer import read_new_footers
from ldm_batch.records import InputFile, Shard
from ldm_batch.storage import Store, list_source

Make = Callable[..., Any]
GROUPS = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(sum)


def input_file(num_rows: int, name: str = "a.parquet") -> InputFile:
    return InputFile(name, f"/in/{name}", 1000, "1.0", num_rows, "0" * 64)


def cut(groups: list[int], num_rows: int) -> list[Shard]:
    return cut_file(input_file(sum(groups)), list(accumulate(groups)), num_rows)


def places(plan: Plan) -> list[tuple[str, int, int]]:
    return [(shard.file.name, shard.row_start, shard.num_rows) for shard in plan.shards]


@pytest.fixture
def source(tmp_path: Path, write_parquet: Make) -> Path:
    """A folder with a.parquet (5 rows) and b.parquet (3 rows)."""
    write_parquet(tmp_path / "in/a.parquet", prompt=list("abcde"))
    write_parquet(tmp_path / "in/b.parquet", prompt=list("fgh"))
    return tmp_path / "in"


@pytest.fixture
def job(tmp_path: Path, source: Path, make_job: Make) -> Any:
    return make_job(source, tmp_path / "out", rows_per_shard=2)


@pytest.fixture
def store(job: Any) -> Store:
    return Store(job.sink.uri)


# Cutting


@given(GROUPS, st.integers(1, 20))
def test_shards_cover_a_file_in_order(groups: list[int], num_rows: int) -> None:
    shards = cut(groups, num_rows)
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert shards[0].row_start == 0
    assert all(a.row_start + a.num_rows == b.row_start for a, b in pairwise(shards))
    assert shards[-1].row_start + shards[-1].num_rows == sum(groups)


@given(GROUPS, st.integers(1, 20))
def test_shards_are_small_enough_and_the_fewest(groups: list[int], num_rows: int) -> None:
    shards = cut(groups, num_rows)
    assert all(1 <= shard.num_rows <= num_rows for shard in shards)
    assert len(shards) == -(-sum(groups) // num_rows)


@given(GROUPS, st.integers(1, 20))
def test_a_cut_inside_a_row_group_could_not_be_moved(groups: list[int], num_rows: int) -> None:
    """Where a shard ends inside a row group, ending it earlier would cost another shard."""
    ends, total = {*accumulate(groups)}, sum(groups)
    for shard in cut(groups, num_rows):
        end = shard.row_start + shard.num_rows
        if end not in ends:
            earlier = [e for e in ends if shard.row_start < e < end]
            left = -(-(total - end) // num_rows)
            assert all(-(-(total - e) // num_rows) > left for e in earlier)


def test_cuts_move_to_row_groups_where_that_is_free() -> None:
    def rows(groups: list[int], num_rows: int) -> list[int]:
        return [shard.num_rows for shard in cut(groups, num_rows)]

    assert rows([4, 4, 4], 6) == [6, 6]
    assert rows([4, 4, 4], 5) == [4, 4, 4]
    assert rows([10], 4) == [4, 4, 2]
    assert rows([3, 3, 3], 1000) == [9]


# Making a plan


def test_a_plan_covers_every_file(job: Any, plan_job: Make) -> None:
    plan = plan_job(job)
    assert places(plan) == [
        ("a.parquet", 0, 2),
        ("a.parquet", 2, 2),
        ("a.parquet", 4, 1),
        ("b.parquet", 0, 2),
        ("b.parquet", 2, 1),
    ]
    assert [shard.id for shard in plan.shards] == ["00000", "00001", "00002", "00003", "00004"]
    assert (plan.num_rows, plan.new_shards, plan.notes) == (
        8,
        plan.shards,
        ("columns used: prompt",),
    )


def test_a_stored_plan_comes_back(job: Any, store: Store, plan_job: Make) -> None:
    plan = plan_job(job)
    assert load_plan(store) is None
    assert save_plan(store, plan)
    stored = load_plan(store)
    assert stored == dataclasses.replace(plan, num_segments=1, new_shards=(), notes=())


def test_planning_again_changes_nothing(job: Any, store: Store, plan_job: Make) -> None:
    save_plan(store, plan_job(job))
    again = plan_job(job)
    assert (again.new_shards, again.notes) == ((), ())
    assert save_plan(store, again)
    assert store.names(identity.PLAN_FOLDER) == {"00000.parquet"}


def test_new_files_append_shards(
    job: Any, source: Path, plan_job: Make, write_parquet: Make
) -> None:
    """Whatever their names: nothing that is planned is numbered anew."""
    store = Store(job.sink.uri)
    save_plan(store, before := plan_job(job))
    write_parquet(source / "0.parquet", prompt=["first by name"])
    write_parquet(source / "c/d.parquet", prompt=["a", "b", "c"])
    save_plan(store, plan_job(job))
    stored = load_plan(store)
    assert stored is not None
    assert stored.shards[: len(before.shards)] == before.shards
    assert places(stored)[5:] == [("0.parquet", 0, 1), ("c/d.parquet", 0, 2), ("c/d.parquet", 2, 1)]
    assert (stored.num_segments, [s.index for s in stored.shards]) == (2, list(range(8)))


def test_other_shard_sizes_do_not_cut_again(job: Any, store: Store, plan_job: Make) -> None:
    save_plan(store, before := plan_job(job))
    assert plan_job(dataclasses.replace(job, rows_per_shard=1000)).shards == before.shards


def test_files_that_give_no_rows_are_told(
    job: Any, source: Path, plan_job: Make, write_parquet: Make
) -> None:
    write_parquet(source / "none.parquet", prompt=[], seed=[])
    (source / "empty.parquet").touch()
    (source / "_hidden.parquet").write_bytes(b"x")
    assert plan_job(job).notes == (
        f"skipped {source}/empty.parquet: empty",
        f"skipped {source}/_hidden.parquet: hidden (a name starts with '.' or '_')",
        "columns used: prompt",
        f"skipped {source}/none.parquet: no rows",
    )


@pytest.mark.parametrize(
    ("source", "sink", "is_refused"),
    [
        ("in", "in/out", True),
        ("in", "in", True),
        (".", "out/x", True),
        ("in/", "in/../in/a b", True),
        ("in/**/*.parquet", "in/deep/out", True),
        ("link", "in/out", True),
        (["x.parquet", "in"], "in/out", True),
        ("s3://bucket/in", "s3://bucket/in/out", True),
        ("in/*.parquet", "in/out", False),
        ("in", "inn", False),
        ("in", "in/_out", False),
        ("in", "in/.out", False),
        ("in/out", "in", False),
        ("s3://bucket/in", "in/out", False),
    ],
)
def test_a_job_does_not_feed_on_its_own_images(
    source: Any, sink: str, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    refused = pytest.raises(JobError, match="where the images of this job go")
    with refused if is_refused else nullcontext():
        refuse_own_sink(source if isinstance(source, list) else [source], Store(sink))


def test_a_source_without_rows_tells_why(tmp_path: Path, make_job: Make, plan_job: Make) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/_a.parquet").write_bytes(b"x")
    with pytest.raises(JobError, match=r"(?s)source.uri: no rows in .*/in.*_a.parquet: hidden"):
        plan_job(make_job(tmp_path / "in", tmp_path / "out"))


def test_a_file_that_is_no_parquet_is_named(job: Any, source: Path, plan_job: Make) -> None:
    (source / "c.parquet").write_bytes(b"not Parquet at all")
    with pytest.raises(JobError, match=r"c.parquet: not a Parquet file"):
        plan_job(job)


def test_carried_columns_have_one_type(
    tmp_path: Path, make_job: Make, plan_job: Make, write_parquet: Make
) -> None:
    write_parquet(tmp_path / "in/a.parquet", prompt=["a"], tag=[1])
    write_parquet(tmp_path / "in/b.parquet", prompt=["a"], tag=["x"])
    with pytest.raises(JobError, match=r"b.parquet: carried column 'tag' has type string, planned"):
        plan_job(make_job(tmp_path / "in", tmp_path / "out", source__carry=["tag"]))


# Input that changes


def set_time(path: Path, seconds: float) -> None:
    os.utime(path, (seconds, seconds))


def test_a_changed_file_is_refused(
    job: Any, source: Path, plan_job: Make, write_parquet: Make
) -> None:
    save_plan(Store(job.sink.uri), plan_job(job))
    write_parquet(source / "a.parquet", prompt=[*"abcde", "one more row"])
    message = r"a.parquet: changed after it was planned \(\d+ -> \d+ bytes, 5 -> 6 rows\)"
    with pytest.raises(JobError, match=message):
        plan_job(job)


def test_a_file_of_the_same_size_with_another_footer_is_refused(
    job: Any, source: Path, plan_job: Make, write_parquet: Make
) -> None:
    save_plan(Store(job.sink.uri), plan_job(job))
    write_parquet(source / "a.parquet", prompt=list("vwxyz"))
    set_time(source / "a.parquet", 1000)
    with pytest.raises(JobError, match=r"a.parquet: changed .*\(its footer differs\)"):
        plan_job(
            dataclasses.replace(job, source=dataclasses.replace(job.source, allow_touched=True))
        )


def test_a_touched_file_is_accepted_only_on_request(job: Any, source: Path, plan_job: Make) -> None:
    save_plan(Store(job.sink.uri), before := plan_job(job))
    set_time(source / "a.parquet", 1000)
    with pytest.raises(JobError, match=r"time stamp differs.*source.allow_touched=true"):
        plan_job(job)
    allowing = dataclasses.replace(job.source, allow_touched=True)
    assert plan_job(dataclasses.replace(job, source=allowing)).shards == before.shards


def test_a_renamed_file_is_refused(job: Any, source: Path, plan_job: Make) -> None:
    save_plan(Store(job.sink.uri), plan_job(job))
    (source / "a.parquet").rename(source / "z.parquet")
    with pytest.raises(JobError, match=r"z.parquet: looks like the planned file 'a.parquet'"):
        plan_job(job)


def test_a_source_may_move(job: Any, tmp_path: Path, source: Path, plan_job: Make) -> None:
    save_plan(Store(job.sink.uri), before := plan_job(job))
    shutil.move(source, tmp_path / "moved")
    moved = dataclasses.replace(job.source, uri=str(tmp_path / "moved"))
    plan = plan_job(dataclasses.replace(job, source=moved))
    assert places(plan) == places(before)
    assert {Path(shard.file.uri).parent for shard in plan.shards} == {tmp_path / "moved"}


def test_a_gone_file_matters_only_for_its_shards(job: Any, source: Path, plan_job: Make) -> None:
    save_plan(Store(job.sink.uri), plan_job(job))
    (source / "b.parquet").unlink()
    plan = plan_job(job)
    assert plan.gone_files == {"b.parquet"}
    assert select_shards(plan, {3, 4}, named=[], overwrite=False) == list(plan.shards[:3])
    assert select_shards(plan, set(), named=[range(1, 2)], overwrite=False) == [plan.shards[1]]
    with pytest.raises(JobError, match=r"source.uri: planned input is gone: b.parquet"):
        select_shards(plan, {3}, named=[], overwrite=False)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 1}, "  seed: planned 0, now 1"),
        ({"batch_size": 7}, "  batch_size: planned 16, now 7"),
        ({"image__format": "png"}, "  image.format: planned webp, now png"),
        ({"call__eta": 0.5}, "  call.eta: planned 0.0, now 0.5"),
        ({"model__attention": "plain"}, "  model.attention: planned sdpa, now plain"),
        ({"source__columns": {"id": None}}, "  source.columns.id: planned nothing, now null"),
        ({"source__long_prompts": "reject"}, "  source.long_prompts: planned truncate, now rej"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, source: Path, make_job: Make, plan_job: Make, change: Any, line: str
) -> None:
    job = make_job(source, tmp_path / "out")
    save_plan(Store(job.sink.uri), plan_job(job))
    with pytest.raises(JobError, match="planned with other settings") as refused:
        plan_job(make_job(source, tmp_path / "out", **change))
    assert [text for text in str(refused.value).splitlines() if text.startswith(line)]


@pytest.mark.parametrize(
    "change",
    [
        {"cluster__num_workers": 4},
        {"cluster__executor": "ray"},
        {"cluster__max_attempts": 9},
        {"name": "other"},
        {"max_rejected_fraction": 0.5},
        {"dry_run": True},
    ],
)
def test_where_and_how_a_job_runs_is_no_part_of_it(
    tmp_path: Path, source: Path, make_job: Make, plan_job: Make, change: Any
) -> None:
    save_plan(Store(str(tmp_path / "out")), before := plan_job(make_job(source, tmp_path / "out")))
    assert plan_job(make_job(source, tmp_path / "out", **change)).shards == before.shards


# Storing


def test_of_two_drivers_one_stores_its_plan(job: Any, store: Store, plan_job: Make) -> None:
    one, other = plan_job(job), plan_job(job)
    assert (save_plan(store, one), save_plan(store, other)) == (True, False)
    assert save_plan(store, plan_job(job))


def test_many_drivers_that_race_agree_on_one_plan(
    job: Any, store: Store, source: Path, plan_job: Make, write_parquet: Make
) -> None:
    def settle(_: int) -> Plan:
        while not save_plan(store, plan := plan_job(job)):
            pass
        return plan

    with ThreadPoolExecutor(8) as pool:
        for i in range(5):
            settled = list(pool.map(settle, range(8)))
            stored = load_plan(store)
            assert stored is not None
            assert {plan.shards for plan in settled} == {stored.shards}
            assert stored.num_segments == i + 1
            write_parquet(source / f"new{i}.parquet", prompt=["a", "b", "c"])


def test_a_driver_that_stopped_between_document_and_shards(
    job: Any, store: Store, plan_job: Make
) -> None:
    plan = plan_job(job)
    save_plan(store, dataclasses.replace(plan, shards=(), new_shards=()))
    assert load_plan(store).shards == ()
    assert save_plan(store, plan_job(job))
    assert load_plan(store).shards == plan.shards


def test_racing_drivers_of_different_jobs(
    tmp_path: Path, source: Path, make_job: Make, plan_job: Make
) -> None:
    one, other = (plan_job(make_job(source, tmp_path / "out", seed=seed)) for seed in (0, 1))
    store = Store(str(tmp_path / "out"))
    save_plan(store, dataclasses.replace(one, new_shards=()))
    assert not save_plan(store, other)
    with pytest.raises(JobError, match="seed: planned 0, now 1"):
        plan_job(make_job(source, tmp_path / "out", seed=1))


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        (identity.PLAN_PATH, b"{", "plan.json: damaged plan"),
        (identity.PLAN_PATH, b"[]", "plan.json: damaged plan"),
        (identity.PLAN_PATH, b"{}", "plan.json: damaged plan"),
        (identity.PLAN_PATH, b"\xff", "plan.json: damaged plan"),
        (identity.PLAN_PATH, b'{"format": 99}', "made by another version"),
        (f"{identity.PLAN_FOLDER}/00000.parquet", b"PAR1", "00000.parquet: damaged plan"),
        (f"{identity.PLAN_FOLDER}/00000.parquet", None, "shards are missing"),
    ],
)
def test_a_damaged_plan_is_refused(
    job: Any,
    store: Store,
    source: Path,
    plan_job: Make,
    write_parquet: Make,
    path: str,
    content: bytes | None,
    message: str,
) -> None:
    save_plan(store, plan_job(job))
    write_parquet(source / "c.parquet", prompt=["a"])
    save_plan(store, plan_job(job))
    store.remove(path) if content is None else store.publish(path, content, exclusive=False)
    with pytest.raises(JobError, match=message):
        load_plan(store)


MEASURE = """
import sys
from ldm_batch.plan.make import select_shards
from ldm_batch.plan.stored import load_plan
from ldm_batch.storage import Store

def peak_kb():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

before = peak_kb()
plan = load_plan(Store(sys.argv[1]))
todo = select_shards(plan, {*range(len(plan.shards) - 10)}, named=[], overwrite=False)
print(len(plan.shards), len({id(s.file) for s in plan.shards}), len(todo), peak_kb() - before)
"""


def test_200_000_shards(tmp_path: Path) -> None:
    """A plan of that size is stored, loaded and selected from in little memory."""
    files = [input_file(1000, f"{number:03d}.parquet") for number in range(200)]
    cuts = [shard for file in files for shard in cut_file(file, [1000], 1)]
    shards = tuple(dataclasses.replace(shard, index=i) for i, shard in enumerate(cuts))
    images = {"seed": 0, "num_images_per_prompt": 1, "batch_size": 1}
    environment = {"command": "python -m ldm_batch.run"}
    document = plan_document(
        images, NEWEST_FORM, columns=[], models={}, config={}, environment=environment
    )
    store = Store(str(tmp_path))
    assert save_plan(store, Plan(document, shards, 0, new_shards=shards))
    assert Path(tmp_path, identity.PLAN_FOLDER, "00000.parquet").stat().st_size < 2_000_000
    plan = load_plan(store)
    assert plan is not None
    assert plan.shards == shards
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    num_shards, num_files, num_todo, grown_kb = map(int, ended.stdout.split())
    assert (num_shards, num_files, num_todo) == (200_000, 200, 10)
    assert grown_kb < 180_000


# What to do


@given(st.sets(st.integers(0, 9)), st.lists(st.integers(0, 9)), st.booleans())
def test_what_is_selected(done: set[int], named: list[int], overwrite: bool) -> None:
    shards = tuple(cut_file(input_file(10), [10], 1))
    plan = Plan({"fingerprint": ""}, shards, 1)
    overwrite = overwrite and bool(named)
    ranges = [range(index, index + 1) for index in named]
    selected = [s.index for s in select_shards(plan, done, named=ranges, overwrite=overwrite)]
    wanted = set(named) or set(range(10))
    assert selected == sorted(wanted if overwrite else wanted - done)


def test_a_shard_that_is_not_planned_is_named() -> None:
    plan = Plan({}, tuple(cut_file(input_file(3), [3], 1)), 1)
    with pytest.raises(JobError, match="no shard 3; the plan has 0 to 2"):
        select_shards(plan, set(), named=[range(1, 4)], overwrite=False)


@pytest.mark.parametrize(
    ("size", "num_rows"), [((64, 64), 500), ((512, 512), 304), ((4096, 4096), 5)]
)
def test_large_images_make_short_shards(
    make_job: Make, size: tuple[int, int], num_rows: int
) -> None:
    job = make_job("in", "out", rows_per_shard=500)
    assert rows_per_shard(job, size) == num_rows


def test_rows_per_shard_counts_all_images_of_a_row(make_job: Make) -> None:
    job = make_job("in", "out", rows_per_shard=1000, num_images_per_prompt=10)
    assert rows_per_shard(job, (512, 512)) == 24  # 240 images fill batches of 16


def test_images_too_large_for_any_object_are_refused(make_job: Make) -> None:
    job = make_job("in", "out", max_object_bytes=1_000_000)
    with pytest.raises(JobError, match=r"max_object_bytes: 1000000 is too small .*\(1 of 640x640"):
        rows_per_shard(job, (640, 640))


@pytest.mark.parametrize("heights", [[8, 4096], [8.0, 4096.0], [1e9, 8.0], [float("inf"), 8.0]])
def test_the_largest_row_decides(
    tmp_path: Path, make_job: Make, plan_job: Make, write_parquet: Make, heights: list[float]
) -> None:
    write_parquet(tmp_path / "a.parquet", prompt=["a", "b"], height=heights, width=heights)
    job = make_job(tmp_path / "a.parquet", tmp_path / "out", max_object_bytes=60_000_000)
    assert [shard.num_rows for shard in plan_job(job).shards] == [1, 1]


def paths_of(form: str, num_rows: int) -> Any:
    """A column of images that are named by their paths alone."""
    paths = [f"{number}.png" for number in range(num_rows)]
    if form == "text":
        return pa.array(paths)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": None, "path": path} for path in paths], kind)


def cut_source(job: Any) -> tuple[list[Shard], list[str]]:
    """The shards of a job that enlarges, and what is told of them."""
    [file] = list_source([str(job.source.uri)], None).files
    [footer] = read_new_footers([file])
    document = {"images": {"source": {"carry": {}}}}
    new = [look_at(job, COLUMNS, file, footer, native_size=(64, 64))]
    job, _ = settle_rows_per_shard(job, new, document)
    return cut_files(job, new, first=0), describe_unknown_sizes(job, new)


@pytest.mark.parametrize("form", ["text", "struct"])
@pytest.mark.parametrize(("side", "auto"), [(256, 80), (32, 1024), (1024, 8)])
def test_images_that_paths_name_may_be_as_large_as_a_job_allows(
    tmp_path: Path, make_job: Make, write_parquet: Make, form: str, side: int, auto: int
) -> None:
    """`auto` goes by that, down to one batch; a number is taken at its word, with a note."""
    source = write_parquet(tmp_path / "a.parquet", image=paths_of(form, 50_000))
    limit = {"source__max_image_pixels": side * side, "batch_size": 8, "cluster__num_workers": 1}
    shards, notes = cut_source(make_job(source, tmp_path, rows_per_shard="auto", **limit))
    assert shards[0].num_rows == auto
    assert len(notes) == (side == 1024)
    shards, [note] = cut_source(make_job(source, tmp_path, rows_per_shard=20_000, **limit))
    assert shards[0].num_rows == 20_000
    assert f"paths name is not known yet: of {4 * side}x{4 * side} pixels" in note


def test_what_holds_images_is_cut_by_their_bytes(
    tmp_path: Path, make_job: Make, write_parquet: Make
) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": os.urandom(3000), "path": "a.png"} for _ in range(2000)]
    source = write_parquet(tmp_path / "a.parquet", image=pa.array(images, kind))
    shards, notes = cut_source(make_job(source, tmp_path, rows_per_shard=2000))
    assert 500 < shards[0].num_rows < 2000
    assert not notes


@pytest.mark.parametrize("height", [float("-inf"), float("nan"), -1.0])
def test_sides_of_no_size_count_for_nothing(
    tmp_path: Path, make_job: Make, plan_job: Make, write_parquet: Make, height: float
) -> None:
    write_parquet(tmp_path / "a.parquet", prompt=["a", "b"], height=[height, height])
    job = make_job(tmp_path / "a.parquet", tmp_path / "out")
    assert [shard.num_rows for shard in plan_job(job).shards] == [2]


def test_auto_rows_per_shard_is_settled_with_the_first_plan(
    make_job: Make, plan_job: Make, write_parquet: Make, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", prompt=["x"] * 1000)
    job = make_job(tmp_path / "in", tmp_path / "out", rows_per_shard="auto", cluster__num_workers=2)
    plan = plan_job(job)
    assert [shard.num_rows for shard in plan.shards] == [64] * 15 + [40]
    assert plan.document["config"]["rows_per_shard"] == 64
    save_plan(Store(str(tmp_path / "out")), plan)
    write_parquet(tmp_path / "in" / "b.parquet", prompt=["x"] * 100_000)
    wider = dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, num_workers=500))
    grown = plan_job(wider)
    assert grown.shards[: len(plan.shards)] == plan.shards
    assert {shard.num_rows for shard in grown.new_shards} == {64, 100_000 % 64}
    assert not any("rows_per_shard" in note for note in grown.notes)
