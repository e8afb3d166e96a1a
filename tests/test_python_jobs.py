"""Jobs and datasets from Python: what a notebook runs, looks at and makes again."""

import asyncio
import dataclasses
import io
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import digests
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import getbase
from PIL import Image
from s3_server import BUCKET

import ldm_batch
from ldm_batch import JobConfig, LdmBatchError, SuperResolution, TextToImage
from ldm_batch.commands.status import read_status
from ldm_batch.config import CallConfig, S3Config, SchedulerConfig, SinkConfig, SourceConfig
from ldm_batch.errors import JobError
from ldm_batch.plan.command_line import settings_of
from ldm_batch.run import compose_job
from ldm_batch.storage import Store

PROMPTS = ["a red circle", None, "a small blue triangle", "a green square on a white background"]
MACHINERY = ["conf=machinery", "cluster=in_process", "max_rejected_fraction=1"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with prompts in `in.parquet`."""
    table = pa.table({"id": ["a", "b", "c", "d"], "prompt": PROMPTS})
    pq.write_table(table, tmp_path / "in.parquet", write_page_checksum=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the demo model: three rows of two images, one row rejected, in two shards."""
    folder = tmp_path_factory.mktemp("drawn")
    pq.write_table(pa.table({"id": ["a", "b", "c", "d"], "prompt": PROMPTS}), folder / "in.parquet")
    settings = {
        "conf": "demo",
        "cluster": "in_process",
        "source.uri": folder / "in.parquet",
        "sink.uri": folder / "out",
        "call.num_inference_steps": 3,
        "num_images_per_prompt": 2,
        "rows_per_shard": 2,
        "batch_size": 4,
        "max_rejected_fraction": 1,
    }
    job = [f"{name}={value}" for name, value in settings.items()]
    result = ldm_batch.run_job(job, out=io.StringIO())
    assert (result.exit_code, result.num_shards, result.num_images) == (0, 2, 6)
    return folder / "out"


def with_field(path: str, value: Any) -> JobConfig:
    """A job of which an attribute was set that there may not be."""
    job = JobConfig()
    *sections, name = path.split(".")
    setattr(reduce(getattr, sections, job), name, value)
    return job


# Jobs


def test_a_job_says_what_it_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*MACHINERY, "source.uri=in.parquet", "sink.uri=out", "rows_per_shard=2"]
    result = ldm_batch.run_job(settings)
    assert dataclasses.asdict(result) == {
        "sink": str(folder / "out"),
        "num_shards": 2,
        "num_rows": 4,
        "num_images": 3,
        "rejected": {"null_prompt": 1},
        "failed": {},
    }
    assert "plan: 1 files, 4 rows, 2 shards" in capsys.readouterr().out
    (folder / "out/data/00001.parquet").unlink()
    again = ldm_batch.run_job(tuple(settings), out=io.StringIO())
    assert (again.num_shards, again.num_rows, again.exit_code) == (1, 2, 0)
    assert ldm_batch.run_job([*settings, "dry_run=true"]).num_shards == 0
    assert "2 done, 0 to do" in capsys.readouterr().out


def test_shards_that_fail_are_named(folder: Path) -> None:
    """A damaged page is found when its rows are read: the other shard is made all the same."""
    table = pa.table({"prompt": [f"row {i} {'x' * 50}" for i in range(200)]})
    options = {"row_group_size": 100, "compression": "none", "use_dictionary": False}
    pq.write_table(table, folder / "in.parquet", write_page_checksum=True, **options)
    content = bytearray((folder / "in.parquet").read_bytes())
    content[content.index(b"row 150")] ^= 1
    (folder / "in.parquet").write_bytes(content)
    job = [*MACHINERY, "source.uri=in.parquet", "sink.uri=out", "rows_per_shard=100"]
    result = ldm_batch.run_job([*job, "cluster.max_attempts=1"], out=io.StringIO())
    assert (result.exit_code, result.num_shards, [*result.failed]) == (1, 1, [1])
    assert "in.parquet" in result.failed[1]


def test_a_document_is_a_job_too(folder: Path) -> None:
    """What is set of a JobConfig, the command that goes on with it says."""
    job = JobConfig(name="mine", source=SourceConfig(uri=[Path("in.parquet")]), rows_per_shard=2)
    job.model.engine, job.sink = "random_pixels", SinkConfig(uri=Path("out"))  # type: ignore[arg-type]
    job.cluster.executor, job.max_rejected_fraction = "in_process", 1.0
    assert ldm_batch.run_job(job, out=io.StringIO()).num_images == 3
    before = digests(folder)
    command = ldm_batch.open_dataset("out").status().resume.split()
    assert command[:3] == ["python", "-m", "ldm_batch.run"]
    (folder / "out/data/00001.parquet").unlink()
    again = ldm_batch.run_job(command[3:], out=io.StringIO())
    assert (again.num_shards, digests(folder)) == (1, before)


def test_numbers_of_numpy_are_numbers(folder: Path) -> None:
    job = JobConfig(
        source=SourceConfig(uri="in.parquet"), sink=SinkConfig(uri="out"), seed=np.int64(3)
    )
    job.model.engine, job.cluster.executor = "random_pixels", "in_process"
    job.batch_size, job.rows_per_shard = np.int32(2), np.uint8(2)
    job.max_rejected_fraction, job.shards = np.float32(1), [np.int64(1)]  # type: ignore[assignment]
    assert ldm_batch.run_job(job, out=io.StringIO()).num_shards == 1
    planned = ldm_batch.open_dataset("out").job
    assert (planned.seed, planned.batch_size, planned.rows_per_shard) == (3, 2, 2)
    assert isinstance(job.seed, np.int64)


def test_a_batch_size_of_a_dataset_is_a_number(folder: Path) -> None:
    job = [*MACHINERY, "source.uri=in.parquet", "sink.uri=out", "batch_size=auto"]
    ldm_batch.run_job(job, out=io.StringIO())
    assert isinstance(ldm_batch.open_dataset("out").job.batch_size, int)


def test_what_cannot_be_written_to_is_a_sentence(folder: Path) -> None:
    with pytest.raises(JobError, match="out: int; must be an open text file, or None"):
        ldm_batch.run_job([*MACHINERY, "source.uri=in.parquet", "sink.uri=out"], out=3)  # type: ignore[arg-type]
    assert os.listdir() == ["in.parquet"]


def test_jobs_in_several_threads(folder: Path) -> None:
    """Each composes for itself; Hydra is left as it was, whatever fails."""
    (folder / "conf").mkdir()
    (folder / "conf/config.yaml").write_text("mine: 1\n")

    def run(number: int) -> int | str:
        settings = [*MACHINERY, "source.uri=in.parquet", f"sink.uri=out-{number}", f"seed={number}"]
        try:
            wrong = ["sede=1"] if number % 3 == 2 else []
            return ldm_batch.run_job([*settings, *wrong], out=io.StringIO()).num_images
        except JobError as error:
            return str(error)

    with initialize_config_dir(str(folder / "conf"), version_base="1.2"):
        with ThreadPoolExecutor(4) as pool:
            results = [*pool.map(run, range(6))]
        assert (getbase().major, getbase().minor) == (1, 2)
        assert compose("config").mine == 1
    assert results == [3, 3, "sede: no such field; did you mean 'seed'?"] * 2
    seeds = [ldm_batch.open_dataset(f"out-{number}").job.seed for number in (0, 1, 3, 4)]
    assert seeds == [0, 1, 3, 4]
    assert not GlobalHydra.instance().is_initialized()


ODD_TEXTS = [
    *("null", "True", "nan", "12", "1e3", "-1", "", " a ", "it's", '"q"', "a\\b", "a\\", "a\\'b"),
    *(
        "º",
        "/a b",
        "{x}",
        "[y]",
        "a,b",
        "a=b",
        "a:b",
        "~/x",
        "s3://b/c",
        "*.parquet",
        "$x",
        "#a",
        "%",
    ),
]


def test_settings_say_all_of_a_document() -> None:
    for text in ODD_TEXTS:
        job = JobConfig(
            source=SourceConfig(
                uri=[text, "in"], columns={"prompt": text}, carry=[text], image_root=text
            ),
            scheduler=SchedulerConfig(name="ddim", settings={"clip_sample": False, "x": [1, text]}),
            call=CallConfig(eta=1e-07, height=64),
        )
        assert compose_job(settings_of(job, compose_job([]))) == job, text


def test_nothing_of_the_process_changes(folder: Path) -> None:
    """Handlers of signals, folder, torch's threads, and the Hydra of whoever runs the job."""
    (folder / "conf").mkdir()
    (folder / "conf/config.yaml").write_text("mine: 1\n")
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    settings = ["conf=demo", "cluster=in_process", "source.uri=in.parquet", "sink.uri=out"]
    steps = ["call.num_inference_steps=1", "batch_size=1", "max_rejected_fraction=1"]
    threads = torch.get_num_threads()
    torch.set_num_threads(3)

    async def in_a_notebook() -> int:
        return ldm_batch.run_job([*settings, *steps], out=io.StringIO()).num_images

    try:
        with initialize_config_dir(str(folder / "conf"), version_base="1.2"):
            assert asyncio.run(in_a_notebook()) == 3
            assert (getbase().major, getbase().minor) == (1, 2)
            assert compose("config").mine == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert ldm_batch.run_job([*settings, *steps], out=io.StringIO()).num_shards == 0
    assert not GlobalHydra.instance().is_initialized()
    assert not HydraConfig.initialized()
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    assert Path.cwd() == folder
    assert sorted(os.listdir()) == ["conf", "in.parquet", "out"]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"conf": "demo"}, "job: dict; must be a JobConfig, or a list of settings as the command"),
        ("conf=demo", "job: str; must be a JobConfig, or a list"),
        (["conf"], "job: 'conf' is no setting; must be FIELD=VALUE or GROUP=OPTION"),
        (["--multirun", "seed=1,2"], "job: '--multirun' is no setting"),
        ([3], "job: 3 is no setting"),
        (["conf=txt2img_1k"], "conf: no option 'txt2img_1k'; did you mean 'txt2img_1m'?"),
        (["sorce.uri=x"], "sorce: no such field; did you mean 'source'?"),
        (["+foo=1"], "foo: no such field"),
        (["num_threads=many"], "num_threads: 'many' is no whole number"),
        (["shards=["], "cannot read the override 'shards=['"),
        (["cluster=null"], "cluster: no option 'null'; known: address, auto"),
        (["source.uri=nowhere"], "source.uri: nothing found at"),
        (JobConfig(num_threads="many"), "num_threads: 'many' is no whole number"),  # type: ignore[arg-type]
        (JobConfig(), "sink.uri: not set"),
        (with_field("batchsize", 64), "batchsize: no such field; did you mean 'batch_size'?"),
        (
            with_field("model.repoid", "a/b"),
            "model.repoid: no such field; did you mean 'model.repo",
        ),
        (with_field("model", "demo:text_to_image"), "model: str; must be a ModelConfig"),
        (with_field("sink", None), "sink: NoneType; must be a SinkConfig"),
        (with_field("seed", np.float64(3)), "seed: Value '3.0'"),
        (with_field("overwrite", np.True_), "overwrite: 'True' is neither true nor false"),
        (with_field("shards", np.arange(2)), "shards: Value 'ndarray'"),
        (with_field("sink.uri", "out/\ud800"), r"sink.uri: 'out/\ud800': holds what is no text"),
        (with_field("sink.uri", "out/\0"), r"sink.uri: 'out/\x00': holds what is no text"),
        (with_field("source.uri", ["a", "\udcff"]), r"source.uri[1]: '\udcff': holds what is no"),
        (with_field("cluster.labels", {"\ud800": "a"}), r"cluster.labels.\ud800: '\ud800': holds"),
    ],
)
def test_a_mistake_is_a_sentence(folder: Path, job: Any, message: str) -> None:
    with pytest.raises(LdmBatchError) as raised:
        ldm_batch.run_job(job, out=io.StringIO())
    assert message in str(raised.value)
    assert not GlobalHydra.instance().is_initialized()
    assert os.listdir() == ["in.parquet"]


# Datasets


def test_a_dataset_tells_what_the_command_tells(drawn: Path) -> None:
    dataset = ldm_batch.open_dataset(drawn)
    assert dataset.status() == read_status(Store(str(drawn)))
    assert repr(dataset) == f"DatasetView({drawn}, shards=2 of 2 done, images=6)"
    rows = [*dataset.rows(["key", "image_index", "prompt"])]
    assert [(row["key"], row["image_index"]) for row in rows] == [
        (k, i) for k in "acd" for i in (0, 1)
    ]
    assert [row["prompt"] for row in rows[::2]] == [prompt for prompt in PROMPTS if prompt]
    assert next(iter(next(dataset.rows()))) == "image"


def test_rows_come_a_few_at_a_time(drawn: Path) -> None:
    rows = ldm_batch.open_dataset(drawn).rows()
    assert isinstance(rows, Iterator)
    first = next(rows)
    assert first["image"]["bytes"][:4] == b"RIFF"
    assert isinstance(rows, Iterator)
    rows.close()  # type: ignore[attr-defined]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


CALL = (
    "num_inference_steps",
    "guidance_scale",
    "eta",
    "height",
    "width",
    "negative_prompt",
    "seed",
)


def test_an_image_comes_back_from_its_row(drawn: Path) -> None:
    """By the dataset's own batch_size and threads; what comes back is the stored image."""
    images = [*ldm_batch.open_dataset(drawn).images()]
    pipeline = TextToImage.from_pretrained("demo:text_to_image", device="cpu", batch_size=4)
    for row in images:
        made = pipeline(row["prompt"], **{name: row[name] for name in CALL}).images[0]
        assert np.array_equal(pixels(made), pixels(row["image"]))
    first = images[0]
    of_row = {name: first[name] for name in CALL}
    both = pipeline(first["prompt"], num_images_per_prompt=2, **of_row).images
    assert np.array_equal(pixels(both[1]), pixels(images[1]["image"]))


def test_an_image_is_made_again(drawn: Path) -> None:
    dataset = ldm_batch.open_dataset(drawn)
    again = dataset.regenerate("c", 1)
    assert (again.key, again.image_index, again.is_equal) == ("c", 1, True)
    assert (again.mean_levels, again.problem) == (0.0, "")
    stored = {(row["key"], row["image_index"]): row["image"] for row in dataset.images()}
    assert again.image is not None
    assert np.array_equal(pixels(again.image), pixels(stored["c", 1]))
    with pytest.raises(JobError, match=r"no image 2 of 'c'; see the column `key`"):
        dataset.regenerate("c", 2)
    with pytest.raises(JobError, match=r"no image 0 of 'b'; its row was rejected: .*null"):
        dataset.regenerate("b")


def test_a_dataset_says_by_what_it_was_made(tmp_path: Path) -> None:
    """A pipeline of what `job` says gives its images: another scheduler, no column of keys."""
    pq.write_table(pa.table({"prompt": PROMPTS}), tmp_path / "prompts.parquet")
    settings = ["conf=demo", "cluster=in_process", f"source.uri={tmp_path}/prompts.parquet"]
    settings += [f"sink.uri={tmp_path}/out", "call.num_inference_steps=2", "batch_size=2"]
    settings += ["scheduler.name=dpmpp_2m", "max_rejected_fraction=1", "rows_per_shard=3"]
    ldm_batch.run_job([*settings, "shards=[1]"], out=io.StringIO())
    dataset = ldm_batch.open_dataset(tmp_path / "out")
    job, [row] = dataset.job, [*dataset.images()]
    assert (job.scheduler.name, job.call.num_inference_steps) == ("dpmpp_2m", 2)
    assert (job.batch_size, job.num_threads) == (2, 1)
    model = job.model
    pipeline = TextToImage.from_pretrained(
        model.path or str(model.repo_id),
        scheduler=job.scheduler,
        batch_size=job.batch_size,
        num_threads=job.num_threads,
        dtype=model.dtype,  # type: ignore[arg-type]
        scheduler_config=model.scheduler_config,
        device="cpu",
    )
    made = pipeline(row["prompt"], **{name: row[name] for name in CALL}).images[0]
    assert np.array_equal(pixels(made), pixels(row["image"]))
    assert row["key"] == "prompts.parquet#3"
    assert dataset.regenerate("prompts.parquet#3").is_equal
    job.scheduler.name = "ddim"
    assert dataset.job.scheduler.name == "dpmpp_2m"
    with pytest.raises(
        JobError, match=r"of 'prompts\.parquet#0'; the dataset is unfinished, 1 of 2"
    ):
        dataset.regenerate("prompts.parquet#0")


def test_in_two_threads_images_come_back_too(tmp_path: Path) -> None:
    """Wherever in its batch of three an image stood: the part of a thread ends inside of one."""
    pq.write_table(pa.table({"id": ["d"], "prompt": ["two stars"]}), tmp_path / "in.parquet")
    settings = ["conf=demo", "cluster=in_process", f"source.uri={tmp_path}/in.parquet"]
    settings += [f"sink.uri={tmp_path}/out", "call.num_inference_steps=3", "num_threads=2"]
    settings += ["num_images_per_prompt=2", "batch_size=3"]
    ldm_batch.run_job(settings, out=io.StringIO())
    dataset = ldm_batch.open_dataset(tmp_path / "out")
    again = dataset.regenerate("d", 1)
    assert (again.is_equal, again.mean_levels, again.problem) == (True, 0, "")


def test_where_a_model_is_now_is_a_path(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").symlink_to(Path(ldm_batch.__file__).parent / "demo/models/text_to_image")
    dataset = ldm_batch.open_dataset(drawn)
    assert dataset.regenerate("a", np.int64(1), model_path=tmp_path / "moved").is_equal
    for wrong in (3, b"moved", ["moved"]):
        with pytest.raises(JobError, match=r"model_path: \w+; must be a folder, or None"):
            dataset.regenerate("a", model_path=wrong)  # type: ignore[arg-type]
    for number in (-1, 1.0, "1", None, True):
        with pytest.raises(JobError, match=r"image_index=.*: must be a whole number from 0"):
            dataset.regenerate("a", number)  # type: ignore[arg-type]


def test_columns_are_whatever_names_them(drawn: Path) -> None:
    dataset = ldm_batch.open_dataset(drawn)
    usual = [*dataset.rows(["key", "seed"])]
    for columns in (
        ("key", "seed"),
        {"key": 0, "seed": 1},
        {"key", "seed"},
        ["key", "seed", "key"],
    ):
        assert [*dataset.rows(columns)] == usual
    assert [*dataset.rows(name for name in ("key", "seed"))] == usual
    shown = [*dataset.images(name for name in ("key", "seed"))]
    assert [{name: row[name] for name in ("key", "seed")} for row in shown] == usual
    assert all(isinstance(row["image"], Image.Image) for row in shown)
    for look in (dataset.rows, dataset.images):
        for wrong, message in [
            (3, "columns=3: must be a list of columns, or None for all"),
            ("key", "columns='key': must be a list of columns"),
            (b"key", "columns=b'key': must be a list of columns"),
            (["key", 3], "columns: 3 is no name of a column"),
            ([["key"]], r"columns: \['key'\] is no name of a column"),
            (["kee"], "columns: no column 'kee'; did you mean 'key'"),
        ]:
            with pytest.raises(JobError, match=message):
                look(wrong)  # type: ignore[arg-type]


def test_an_image_that_differs_is_told(drawn: Path, tmp_path: Path) -> None:
    """Another image in the place of a stored one, as whole as it was."""
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/.ldm_batch").symlink_to(drawn / ".ldm_batch")
    table = pq.read_table(drawn / "data/00000.parquet")
    rows = table.to_pylist()
    rows[0]["image"], rows[0]["image_sha256"] = rows[1]["image"], rows[1]["image_sha256"]
    pq.write_table(
        pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "out/data/00000.parquet"
    )
    dataset = ldm_batch.open_dataset(tmp_path / "out")
    again = dataset.regenerate("a")
    assert (again.is_equal, again.mean_levels > 1, again.problem) == (False, True, "")
    assert dataset.status().missing == [1]


def test_enlarged_images_come_back_too(tmp_path: Path, write_parquet: Callable[..., str]) -> None:
    rng = np.random.default_rng(0)
    contents = []
    for side in (8, 12):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, 8, 3), dtype=np.uint8)).save(file, "PNG")
        contents.append(file.getvalue())
    source = write_parquet(tmp_path / "in.parquet", id=["x", "y"], image=contents)
    settings = ["conf=upscale_4x", "cluster=in_process", f"source.uri={source}"]
    settings += [f"sink.uri={tmp_path}/out", "call.num_inference_steps=2", "batch_size=2"]
    ldm_batch.run_job(settings, out=io.StringIO())
    dataset = ldm_batch.open_dataset(tmp_path / "out")
    pipeline = SuperResolution.from_pretrained("demo:super_resolution", device="cpu", batch_size=2)
    for row, content in zip(dataset.images(), contents, strict=True):
        given = Image.open(io.BytesIO(content))
        made = pipeline(given, num_inference_steps=2, seed=row["seed"]).images[0]
        assert np.array_equal(pixels(made), pixels(row["image"]))
    assert dataset.regenerate("y").is_equal
    write_parquet(tmp_path / "in.parquet", id=["x", "y"], image=contents[::-1])
    again = dataset.regenerate("y")
    assert (again.image, again.is_equal) == (None, False)
    assert "its row cannot be read again: " in again.problem
    assert "in.parquet: changed after it was planned" in again.problem


def test_what_is_no_dataset_is_a_sentence(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no dataset here"):
        ldm_batch.open_dataset(tmp_path)
    with pytest.raises(JobError, match="sink: int; must be a folder or s3://bucket/prefix"):
        ldm_batch.open_dataset(3)  # type: ignore[arg-type]
    for name in ("endpoint", "region", "ca_bundle", "anonymous", "path_style"):
        with pytest.raises(
            JobError, match=f"^{name}(=3: must be True or False|: int; must be a text, or None)"
        ):
            ldm_batch.open_dataset(drawn, **{name: 3})  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"^endpoint: 'store:9000' is not a URL like https://host"):
        ldm_batch.open_dataset("s3://bucket/cats", endpoint="store:9000")
    dataset = ldm_batch.open_dataset(drawn)
    with pytest.raises(JobError, match="columns: no column 'promt'; did you mean 'prompt'"):
        next(dataset.rows(["promt"]))
    with pytest.raises(JobError, match="columns='key': must be a list of columns"):
        next(dataset.images("key"))


def test_damage_is_a_sentence(folder: Path) -> None:
    ldm_batch.run_job([*MACHINERY, "source.uri=in.parquet", "sink.uri=out"], out=io.StringIO())
    dataset, path = ldm_batch.open_dataset("out"), folder / "out/data/00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1]["image"]["bytes"] = b"RIFF, but no image"
    written = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(written, path, write_page_checksum=True, compression="none")
    images = dataset.images(["key"])
    assert next(images)["key"] == "a"
    with pytest.raises(JobError, match="image 1 of 'image', from 0, cannot be decoded"):
        next(images)
    broken = bytearray(path.read_bytes())
    broken[broken.index(b"RIFF")] ^= 1  # of a page that finding the image does not read
    path.write_bytes(broken)
    with pytest.raises(JobError, match=r"data/00000.parquet: cannot be read: .*"):
        dataset.regenerate("a")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(JobError, match=r"data/00000.parquet: cannot be read"):
        dataset.regenerate("a")
    with pytest.raises(JobError, match=r"data/00000.parquet: cannot be read"):
        next(dataset.rows())


def test_a_dataset_in_s3(folder: Path, s3: S3Config) -> None:
    sink = f"s3://{BUCKET}/cats"
    where = [f"sink.uri={sink}", f"sink.s3.endpoint={s3.endpoint}"]
    result = ldm_batch.run_job([*MACHINERY, "source.uri=in.parquet", *where], out=io.StringIO())
    dataset = ldm_batch.open_dataset(sink, endpoint=s3.endpoint)
    assert (result.sink, dataset.status().num_images) == (sink, 3)
    assert [row["image"].size for row in dataset.images(["key"])] == [(8, 8)] * 3
