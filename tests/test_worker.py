"""One shard from its rows to its committed object: no row is lost, nothing depends on the batch."""

import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_batch import identity
from ldm_batch.dataset import open_dataset
from ldm_batch.errors import FinalShardError, ShardError, StorageError
from ldm_batch.generate.random_pixels import RandomPixels
from ldm_batch.plan.stored import load_plan
from ldm_batch.records import Fault, Outcome, PromptCount, Reason, Receipt, Request
from ldm_batch.storage import Store
from ldm_batch.write.encode import sha256
from ldm_batch.write.receipt import read_receipt

Make = Callable[..., Any]


class Picky(RandomPixels):
    """Makes no picture of a prompt that says so, and knows five words."""

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        return [PromptCount(len(p.split()), len(p.split()) > 5) for p in prompts]

    def generate(self, requests: Sequence[Request]) -> list[Any]:
        fault = Fault(Reason.NOT_FINITE, "the pixels are not finite")
        made = super().generate(requests)
        return [
            fault if "bad" in request.inputs["prompt"] and request.seed % 2 == 0 else pixels
            for request, pixels in zip(requests, made, strict=True)
        ]


class Broken(RandomPixels):
    """Makes nothing."""

    def generate(self, requests: Sequence[Request]) -> list[Any]:
        raise RuntimeError("out of memory")


def read_objects(sink: str | Path) -> list[dict[str, Any]]:
    """All images of a dataset, in order."""
    paths = sorted(Path(sink, "data").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def read_rejected(sink: str | Path) -> list[tuple[str, int, str]]:
    paths = sorted(Path(sink, identity.REJECTED_FOLDER).glob("*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return [(row["key"], row["input_row"], row["reason"]) for row in rows]


@pytest.fixture
def run(tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make) -> Make:
    """Make all shards of the given columns in one worker; gives the receipts."""

    def make(pipeline: Any = None, changes: dict[str, Any] | None = None, **columns: Any) -> Any:
        source = write_parquet(tmp_path / "in/a.parquet", **columns)
        job = make_job(source, tmp_path / "out", **(changes or {}))
        worker, plan = make_worker(job, pipeline)
        return [worker.make_shard(shard) for shard in plan.shards]

    return make


def test_a_shard_becomes_an_object(run: Make, tmp_path: Path) -> None:
    changes = {"rows_per_shard": 2, "num_images_per_prompt": 2, "call__width": 16}
    receipts = run(None, changes, prompt=["a", "b b", "c"], id=["x", "y", "z"], seed=[7, 7, None])
    images = read_objects(tmp_path / "out")
    assert [(image["key"], image["image_index"]) for image in images] == [
        (key, k) for key in "xyz" for k in range(2)
    ]
    second = identity.numbered_seed(7, 1)
    assert [image["seed"] for image in images[:4]] == [7, second, 7, second]
    assert [image["prompt_tokens"] for image in images] == [1, 1, 2, 2, 1, 1]
    assert [receipt.num_images for receipt in receipts] == [4, 2]


def test_what_is_recorded_of_an_image_is_true(run: Make, tmp_path: Path) -> None:
    run(None, {"image__format": "png", "call__eta": 0.25}, prompt=["a"], height=[16])
    [image] = read_objects(tmp_path / "out")
    data = image["image"]["bytes"]
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert pixels.shape == (image["height"], image["width"], 3) == (16, 8, 3)
    assert (image["image_sha256"], image["pixel_sha256"]) == (sha256(data), sha256(pixels))
    assert image["image"]["path"] == "00000-000000.png"
    expected = {
        "key": "a.parquet#0",
        "prompt": "a",
        "negative_prompt": "",
        "num_inference_steps": 50,
        "guidance_scale": 1.0,
        "eta": 0.25,
        "scheduler": "none",
        "model": "random_pixels",
        "image_format": "png",
        "input_file": "a.parquet",
        "input_row": 0,
        "prompt_truncated": False,
    }
    assert expected.items() <= image.items()
    assert image["seed"] == identity.NEWEST_FORM.image_seed(0, "a.parquet#0", 0)


def test_a_receipt_tells_what_happened(run: Make, tmp_path: Path) -> None:
    [receipt] = run(prompt=["a", None, "", "b"])
    store = Store(str(tmp_path / "out"))
    data = store.read("data/00000.parquet") or b""
    assert read_receipt(store, 0, "") == receipt
    assert (receipt.outcome, receipt.num_rows, receipt.num_images) == (Outcome.COMMITTED, 4, 2)
    assert receipt.rejected == {"null_prompt": 1, "empty_prompt": 1}
    assert (receipt.object_bytes, receipt.object_sha256) == (len(data), sha256(data))
    assert set(receipt.laps) == {"read_s", "wait_s", "generate_s", "write_s"}
    assert receipt.pipeline["pipeline"] == "random_pixels"


def test_a_receipt_can_be_rebuilt_from_the_object(run: Make, tmp_path: Path) -> None:
    [receipt] = run(prompt=["a", None, "b"])
    store = Store(str(tmp_path / "out"))
    store.remove(identity.receipt_path("00000"))
    plan = load_plan(store)
    assert plan is not None
    rebuilt = read_receipt(store, 0, plan.fingerprint)
    names = ["num_rows", "num_rows_with_images", "num_images", "rejected", "object_sha256"]
    assert {n: getattr(rebuilt, n) for n in names} == {n: getattr(receipt, n) for n in names}


def test_order_is_that_of_the_rows_whatever_the_calls(run: Make, tmp_path: Path) -> None:
    sizes = [8, 16, 8, 24, 16, 8]
    run(None, {"batch_size": 2}, prompt=list("abcdef"), height=sizes)
    images = read_objects(tmp_path / "out")
    assert [image["prompt"] for image in images] == list("abcdef")
    decoded = [Image.open(io.BytesIO(image["image"]["bytes"])).height for image in images]
    assert decoded == sizes


def test_a_shard_made_again_is_the_same_bytes(run: Make, tmp_path: Path) -> None:
    columns = {"prompt": ["a", "bad", "c", None], "x": [[1], None, [], [2]]}
    changes = {"source__carry": ["x"], "source__allow_touched": True, "num_images_per_prompt": 3}
    path = tmp_path / "out/data/00000.parquet"
    run(Picky(), changes, **columns)
    first = path.read_bytes()
    path.unlink()
    [again] = run(Picky(), changes, **columns)
    assert (again.outcome, path.read_bytes()) == (Outcome.COMMITTED, first)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_images_do_not_depend_on_the_batch(run: Make, tmp_path: Path, batch_size: int) -> None:
    run(None, {"batch_size": batch_size}, prompt=list("abcdefg"), id=list("abcdefg"))
    seeds = [identity.NEWEST_FORM.image_seed(0, key, 0) for key in "abcdefg"]
    images = read_objects(tmp_path / "out")
    assert [image["seed"] for image in images] == seeds
    alone = np.random.Generator(np.random.Philox(seeds[4])).integers(0, 256, (8, 8, 3), np.uint8)
    assert images[4]["pixel_sha256"] == sha256(alone)


# Rejections


def odd_seed_with_an_even_second() -> int:
    """The seed of a row of which `Picky` makes the first image, and not the second."""
    return next(s for s in range(1, 99, 2) if identity.numbered_seed(s, 1) % 2 == 0)


def test_a_row_with_a_faulty_image_is_rejected_whole(run: Make, tmp_path: Path) -> None:
    columns = {"prompt": ["good", "bad", "bad"], "seed": [5, 2, odd_seed_with_an_even_second()]}
    [receipt] = run(Picky(), {"num_images_per_prompt": 2}, **columns)
    assert [image["key"] for image in read_objects(tmp_path / "out")] == ["a.parquet#0"] * 2
    assert read_rejected(tmp_path / "out") == [
        ("a.parquet#1", 1, "not_finite"),
        ("a.parquet#2", 2, "not_finite"),
    ]
    assert (receipt.num_rows_with_images, receipt.rejected) == (1, {"not_finite": 2})


def test_a_fault_names_its_image(run: Make, tmp_path: Path) -> None:
    run(
        Picky(),
        {"num_images_per_prompt": 2},
        prompt=["bad"],
        seed=[seed := odd_seed_with_an_even_second()],
    )
    [rejection] = open_dataset(Store(str(tmp_path / "out"))).rejections()
    second = identity.numbered_seed(seed, 1)
    assert [rejection["message"]] == [f"image 1, seed {second}: the pixels are not finite"]


def test_long_prompts_are_cut_and_recorded(run: Make, tmp_path: Path) -> None:
    run(Picky(), None, prompt=["one two", "one two three four five six"])
    images = read_objects(tmp_path / "out")
    assert [(i["prompt_tokens"], i["prompt_truncated"]) for i in images] == [(2, False), (6, True)]


def test_long_prompts_are_rejected_on_request(run: Make, tmp_path: Path) -> None:
    prompts = ["one two", "one two three four five six"]
    [receipt] = run(Picky(), {"source__long_prompts": "reject"}, prompt=prompts)
    assert [image["prompt"] for image in read_objects(tmp_path / "out")] == ["one two"]
    assert receipt.rejected == {"too_many_tokens": 1}
    assert read_rejected(tmp_path / "out") == [("a.parquet#1", 1, "too_many_tokens")]


def test_a_shard_without_an_image_is_done_too(run: Make, tmp_path: Path) -> None:
    [receipt] = run(None, {"source__carry": ["x"]}, prompt=[None, ""], x=["a", "b"])
    table = pq.read_table(tmp_path / "out/data/00000.parquet")
    assert (table.num_rows, table.schema.names[0], table.schema.names[-1]) == (0, "image", "x")
    assert (receipt.num_rows, receipt.num_images, receipt.num_rejected) == (2, 0, 2)


WORDS = st.sampled_from([None, "", "a", "bad", "a b c d e f", "x" * 30])
IDS = st.sampled_from([None, "", "1", "2", "3", "4", "5", "6"])
ROWS = st.lists(st.tuples(IDS, WORDS, st.integers(-1, 3)), min_size=1, max_size=12)


@settings(max_examples=25)
@given(ROWS, st.integers(1, 5), st.integers(1, 3), st.sampled_from(["truncate", "reject"]))
def test_rows_are_images_and_rejections(
    tmp_path_factory: pytest.TempPathFactory,
    write_parquet: Make,
    make_job: Make,
    make_worker: Make,
    rows: list[tuple[Any, Any, int]],
    rows_per_shard: int,
    num_images: int,
    long_prompts: str,
) -> None:
    """Conservation, for any input: every row has all its images, or one rejection."""
    folder = tmp_path_factory.mktemp("rows")
    ids, prompts, seeds = (list(column) for column in zip(*rows, strict=True))
    texts = {"id": pa.array(ids, pa.string()), "prompt": pa.array(prompts, pa.string())}
    source = write_parquet(folder / "a.parquet", seed=seeds, **texts)
    changes = {"source__long_prompts": long_prompts, "source__max_prompt_chars": 20}
    changes |= {"rows_per_shard": rows_per_shard, "num_images_per_prompt": num_images}
    worker, plan = make_worker(make_job(source, folder / "out", **changes), Picky())
    receipts = [worker.make_shard(shard) for shard in plan.shards]
    made, rejected = read_objects(folder / "out"), read_rejected(folder / "out")
    with_images = {image["input_row"] for image in made}
    assert len(made) == num_images * len(with_images)
    assert sorted([*with_images, *(place for _, place, _ in rejected)]) == list(range(len(rows)))
    assert sum(receipt.num_rows for receipt in receipts) == len(rows)
    assert sum(receipt.num_rows_with_images for receipt in receipts) == len(with_images)
    assert sum(receipt.num_rejected for receipt in receipts) == len(rejected)


# Trouble


def test_a_pipeline_that_raises_commits_nothing(run: Make, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        run(Broken(), None, prompt=["a", None])
    store = Store(str(tmp_path / "out"))
    assert [store.names(f) for f in ("data", identity.REJECTED_FOLDER)] == [set(), set()]


def test_a_worker_goes_on_after_a_failure(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    class Moody(RandomPixels):
        is_broken = True

        def generate(self, requests: Sequence[Request]) -> list[Any]:
            if self.is_broken:
                raise RuntimeError("once")
            return super().generate(requests)

    job = make_job(write_parquet(tmp_path / "a.parquet", prompt=["a"]), tmp_path / "out")
    pipeline = Moody()
    worker, plan = make_worker(job, pipeline)
    with pytest.raises(RuntimeError, match="once"):
        worker.make_shard(plan.shards[0])
    pipeline.is_broken = False
    assert worker.make_shard(plan.shards[0]).num_images == 1


def test_input_that_changed_meanwhile_is_a_shards_failure(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    source = write_parquet(tmp_path / "a.parquet", prompt=["a"])
    worker, plan = make_worker(make_job(source, tmp_path / "out"))
    write_parquet(Path(source), prompt=["b", "c"])
    with pytest.raises(ShardError, match=r"a.parquet"):
        worker.make_shard(plan.shards[0])


def test_an_object_too_large_is_a_shards_failure(run: Make, tmp_path: Path) -> None:
    changes = {"max_object_bytes": 100_000, "source__carry": ["x"]}
    told = (
        r"shard 00000: its object has (\d+) bytes, more than max_object_bytes \(100000\); go on "
        r"with max_object_bytes=\1 or more, or plan a new sink with rows_per_shard=1 or fewer"
    )
    large = np.random.default_rng(0).bytes(200_000)  # the footer tells the mean alone
    with pytest.raises(FinalShardError, match=told):
        run(None, changes, prompt=["a"] * 20, x=[large, *[b""] * 19])


def test_a_sink_that_cannot_be_written_is_told(run: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/data").write_bytes(b"in the way")
    with pytest.raises(StorageError, match=r"out/data"):
        run(None, None, prompt=["a"])


def test_the_second_worker_discards_its_own(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    job = make_job(write_parquet(tmp_path / "a.parquet", prompt=["a"]), tmp_path / "out")
    first, plan = make_worker(job)
    [shard] = plan.shards
    outcomes = []

    class Overtaken(RandomPixels):
        def generate(self, requests: Any) -> Any:
            outcomes.append(first.make_shard(shard).outcome)
            return super().generate(requests)

    second, _ = make_worker(job, Overtaken())
    outcomes.append(second.make_shard(shard).outcome)
    assert outcomes == [Outcome.COMMITTED, Outcome.LOST_TO_SAME]


def test_a_shard_that_stands_is_not_made_again(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    source = write_parquet(tmp_path / "a.parquet", prompt=["a", None])
    job = make_job(source, tmp_path / "out")
    first, plan = make_worker(job)
    made = first.make_shard(plan.shards[0])
    (tmp_path / "out/.ldm_batch/receipts/00000.json").unlink()  # as if it had died after the commit

    class Idle(RandomPixels):
        def generate(self, requests: Any) -> Any:
            raise AssertionError("made again")

    found = make_worker(job, Idle())[0].make_shard(plan.shards[0])
    assert (found.outcome, found.object_sha256) == (Outcome.FOUND, made.object_sha256)
    assert (found.num_images, found.rejected) == (1, {"null_prompt": 1})
    assert read_receipt(Store(str(tmp_path / "out")), 0, "").num_images == 1
    assert (tmp_path / "out/.ldm_batch/receipts/00000.json").exists()


def test_two_shards_may_be_under_way_but_one_generates(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    class Watched(RandomPixels):
        busy, most = 0, 0
        lock = threading.Lock()

        def generate(self, requests: Sequence[Request]) -> list[Any]:
            with self.lock:
                self.busy += 1
                self.most = max(self.most, self.busy)
            made = super().generate(requests)
            with self.lock:
                self.busy -= 1
            return made

    source = write_parquet(tmp_path / "a.parquet", prompt=["a"] * 40)
    pipeline = Watched()
    worker, plan = make_worker(make_job(source, tmp_path / "out", rows_per_shard=5), pipeline)
    receipts: list[Receipt] = []
    threads = [
        threading.Thread(target=lambda s=shard: receipts.append(worker.make_shard(s)))
        for shard in plan.shards
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (pipeline.most, len(receipts)) == (1, 8)
    assert [image["input_row"] for image in read_objects(tmp_path / "out")] == list(range(40))


def test_a_shard_is_done_although_its_receipt_cannot_be_stored(run: Make, tmp_path: Path) -> None:
    (tmp_path / "out" / ".ldm_batch").mkdir(parents=True)
    (tmp_path / "out" / ".ldm_batch" / "receipts").write_text("in the way")
    [receipt] = run(prompt=["a", None])
    assert (receipt.outcome, receipt.num_images) == (Outcome.COMMITTED, 1)
    [note] = receipt.notes
    assert note.startswith("its receipt is not stored: ")
    assert len(list((tmp_path / "out" / "data").iterdir())) == 1
