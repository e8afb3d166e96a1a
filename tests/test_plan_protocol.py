"""What a sink holds and when: a plan is stored last, by one driver, beside its own objects only."""

import dataclasses
import io
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import objects, run, start, wait_until, write_prompts

from ldm_batch import identity
from ldm_batch import worker as worker_module
from ldm_batch.commands import status
from ldm_batch.commands.verify import command as verify
from ldm_batch.config import CallConfig, JobConfig, ModelConfig
from ldm_batch.drive import budget, run_job, settle
from ldm_batch.errors import JobError
from ldm_batch.identity import FORMS
from ldm_batch.plan import runs
from ldm_batch.storage import Store
from ldm_batch.worker import Worker

Make = Callable[..., Any]
NUM_ROWS, NUM_SHARDS = 48, 3
TINY_MODEL = Path(__file__).parent / "fixtures" / "form_1" / "tiny" / "model" / "text_to_image"
PAUSED = """
import os, signal, sys
from ldm_batch.drive import settle
save = settle.save_plan
def pause(store, plan):
    print("paused", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    return save(store, plan)
settle.save_plan = pause
from ldm_batch.run import main
main()
"""
"""The command, stopped between the first worker's load and the plan."""


@pytest.fixture
def source(tmp_path: Path, write_parquet: Make) -> Path:
    rows = {"prompt": [f"p {i}" for i in range(NUM_ROWS)], "topic": ["x"] * NUM_ROWS}
    write_parquet(tmp_path / "in" / "a.parquet", **rows)
    return tmp_path / "in"


@pytest.fixture
def job(tmp_path: Path, source: Path, make_job: Make) -> JobConfig:
    made: JobConfig = make_job(source, tmp_path / "out", rows_per_shard=16, source__carry=["topic"])
    return made


@pytest.fixture
def expected(tmp_path: Path, job: JobConfig) -> dict[str, bytes]:
    """The objects of the job where nothing disturbs it."""
    elsewhere = dataclasses.replace(
        job, sink=dataclasses.replace(job.sink, uri=f"{tmp_path}/apart")
    )
    assert do(elsewhere)[0] == 0
    return data_of(tmp_path / "apart")


def do(job: JobConfig) -> tuple[int, str]:
    out = io.StringIO()
    return run_job(job, out=out), out.getvalue()


def data_of(sink: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(sink.glob("data/*"))}


def everything(folder: Path) -> dict[str, bytes | None]:
    """All that stands below a folder, folders too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def plan_of(sink: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((sink / identity.PLAN_PATH).read_text())
    return document


class Pauses:
    """Steps of a driver at which the test does something before it goes on, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def at(self, step: str, act: Callable[[], object]) -> None:
        owner, name, is_before = STEPS[step]
        plain, acted = getattr(owner, name), threading.Lock()

        def stepping(*arguments: Any, **named: Any) -> Any:
            if is_before and acted.acquire(blocking=False):
                act()
            result = plain(*arguments, **named)
            if not is_before and acted.acquire(blocking=False):
                act()
            return result

        self._patch.setattr(owner, name, stepping)


STEPS: dict[str, tuple[Any, str, bool]] = {
    "looked": (settle.Planning, "look", False),
    "loaded": (settle.Planning, "begin", True),
    "to be stored": (settle, "save_plan", True),
    "stored": (settle, "save_plan", False),
    "begun": (settle.Planning, "begin", False),
    "handed out": (Worker, "make_shard", True),
}
BEFORE = ["looked", "loaded", "to be stored"]
AFTER = ["stored", "begun", "handed out"]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    return Pauses(monkeypatch)


# Stored last


def refusals(job: JobConfig, tmp_path: Path) -> dict[str, JobConfig]:
    """Jobs of which each is refused for a reason of its own."""
    replace = dataclasses.replace
    model = replace(job.model, engine="ldm", path="demo:text_to_image")
    damaged = tmp_path / "damaged"
    shutil.copytree(Path(settle.__file__).parents[1] / "demo" / "models" / "text_to_image", damaged)
    weights = damaged / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    ray = replace(job.cluster, executor="ray", address="127.0.0.1:1")
    return {
        "no such input": replace(job, source=replace(job.source, uri=f"{tmp_path}/nowhere")),
        "no such column": replace(job, source=replace(job.source, columns={"prompt": "captoin"})),
        "no such carried column": replace(job, source=replace(job.source, carry=["topik"])),
        "no such shard": replace(job, shards=[99]),
        "no such model": replace(job, model=replace(model, path=f"{tmp_path}/no_model")),
        "a model of another task": replace(job, model=replace(model, path="demo:super_resolution")),
        "no such setting": replace(
            job, model=model, scheduler=replace(job.scheduler, settings={"beta_strat": 1})
        ),
        "no CUDA": replace(job, model=replace(model, device="cuda")),
        "damaged weights": replace(job, model=replace(model, path=str(damaged))),
        "no cluster": replace(job, cluster=ray),
        "too small an object": replace(job, max_object_bytes=64 * 1024, call=replace(
            job.call, height=512, width=512
        )),
    }  # fmt: skip


REASONS = [
    *("no such input", "no such column", "no such carried column", "no such shard", "no CUDA"),
    *("no such model", "a model of another task", "no such setting", "damaged weights"),
    *("no cluster", "too small an object"),
]


@pytest.mark.parametrize("reason", REASONS)
def test_a_refused_command_stores_nothing(job: JobConfig, tmp_path: Path, reason: str) -> None:
    before = everything(tmp_path)
    bad = refusals(job, tmp_path)[reason]
    before = everything(tmp_path)
    with pytest.raises(JobError):
        do(bad)
    assert everything(tmp_path) == before
    assert do(job)[0] == 0


@pytest.mark.parametrize("reason", ["other seed", "no cluster", "gone input"])
def test_a_refused_command_lets_no_plan_grow(
    job: JobConfig, tmp_path: Path, write_parquet: Make, reason: str
) -> None:
    assert do(job)[0] == 0
    write_parquet(tmp_path / "in" / "b.parquet", prompt=["new"], topic=["y"])
    bad = {
        "other seed": dataclasses.replace(job, seed=1),
        "no cluster": refusals(job, tmp_path)["no cluster"],
        "gone input": dataclasses.replace(job, shards=[0], overwrite=True),
    }[reason]
    if reason == "gone input":
        (tmp_path / "in" / "a.parquet").rename(tmp_path / "a.parquet")
    before = everything(tmp_path)
    with pytest.raises(JobError):
        do(bad)
    assert everything(tmp_path) == before


def test_a_dry_run_stores_nothing(job: JobConfig, tmp_path: Path) -> None:
    before = everything(tmp_path)
    assert do(dataclasses.replace(job, dry_run=True))[0] == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("step", BEFORE)
def test_until_a_worker_has_loaded_there_is_no_plan(
    job: JobConfig, tmp_path: Path, pauses: Pauses, step: str
) -> None:
    def look() -> None:
        assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []

    pauses.at(step, look)
    assert do(job)[0] == 0


def test_before_a_shard_is_handed_out_the_plan_stands(
    job: JobConfig, tmp_path: Path, pauses: Pauses
) -> None:
    seen: list[int] = []
    pauses.at("handed out", lambda: seen.append(len(plan_of(tmp_path / "out")["columns"])))
    assert do(job)[0] == 0
    assert seen


def test_killed_between_load_and_plan_nothing_is_there(tmp_path: Path) -> None:
    write_prompts(tmp_path, num_files=1, rows_per_file=40)
    arguments = ["conf=machinery", "cluster=in_process", "source.uri=in", "sink.uri=out"]
    (tmp_path / "paused.py").write_text(PAUSED)
    process = start(tmp_path, *arguments, "seed=1", module="paused")
    assert process.stdout is not None
    while process.stdout.readline().strip() != "paused":
        assert process.poll() is None
    wait_until(lambda: is_stopped(process.pid))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []
    ended = run(tmp_path, *arguments, "seed=2")
    assert ended.code == 0, ended
    assert len(objects(tmp_path)) > 0


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


# Two drivers


@pytest.mark.parametrize("step", [*BEFORE, *AFTER])
def test_two_equal_drivers_make_one_dataset(
    job: JobConfig, tmp_path: Path, expected: dict[str, bytes], pauses: Pauses, step: str
) -> None:
    others: list[int] = []
    pauses.at(step, lambda: others.append(do(job)[0]))
    assert do(job)[0] == 0
    assert others == [0]
    assert data_of(tmp_path / "out") == expected


@pytest.mark.parametrize("step", BEFORE)
def test_of_two_different_drivers_the_later_is_refused(
    job: JobConfig, tmp_path: Path, expected: dict[str, bytes], pauses: Pauses, step: str
) -> None:
    others: list[int] = []
    pauses.at(step, lambda: others.append(do(job)[0]))
    with pytest.raises(JobError, match="seed: planned 0, now 1"):
        do(dataclasses.replace(job, seed=1))
    assert others == [0]
    assert data_of(tmp_path / "out") == expected


@pytest.mark.parametrize("step", AFTER)
def test_once_a_plan_is_stored_other_settings_are_refused(
    job: JobConfig, tmp_path: Path, expected: dict[str, bytes], pauses: Pauses, step: str
) -> None:
    refused: list[str] = []

    def other() -> None:
        with pytest.raises(JobError) as error:
            do(dataclasses.replace(job, seed=1))
        refused.append(str(error.value))

    pauses.at(step, other)
    assert do(job)[0] == 0
    assert "seed: planned 0, now 1" in refused[0]
    assert data_of(tmp_path / "out") == expected


@pytest.mark.parametrize("step", [*BEFORE, "stored"])
def test_drivers_that_see_different_input_agree(
    job: JobConfig, tmp_path: Path, pauses: Pauses, write_parquet: Make, step: str
) -> None:
    def other() -> None:
        write_parquet(tmp_path / "in" / "b.parquet", prompt=["new"], topic=["y"])
        assert do(job)[0] == 0

    pauses.at(step, other)
    assert do(job)[0] == 0
    assert sorted(data_of(tmp_path / "out")) == [f"{i:05d}.parquet" for i in range(NUM_SHARDS + 1)]


@pytest.mark.parametrize("step", BEFORE)
def test_drivers_that_append_different_files_at_once_agree(
    job: JobConfig, tmp_path: Path, pauses: Pauses, write_parquet: Make, step: str
) -> None:
    """What one of them has made by then stands where the other meant its own to stand."""
    assert do(job)[0] == 0
    write_parquet(tmp_path / "in" / "c.parquet", prompt=["c", "c"], topic=["y", "y"])

    def other() -> None:
        (tmp_path / "in" / "c.parquet").rename(tmp_path / "c.parquet")
        write_parquet(tmp_path / "in" / "b.parquet", prompt=["b"], topic=["y"])
        assert do(job)[0] == 0
        (tmp_path / "c.parquet").rename(tmp_path / "in" / "c.parquet")

    pauses.at(step, other)
    assert do(job)[0] == 0
    made = [pq.read_table(path)["prompt"].to_pylist() for path in objects(tmp_path)]
    assert made[NUM_SHARDS:] == [["b"], ["c", "c"]]


@pytest.mark.parametrize("step", BEFORE)
def test_beside_an_old_driver_a_new_one_goes_on_by_its_plan(
    job: JobConfig, tmp_path: Path, pauses: Pauses, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one commits one shard and dies; its form decides how the new one seeds the rest."""

    def old() -> None:
        with monkeypatch.context() as old_code:
            old_code.setattr(settle, "NEWEST_FORM", FORMS[1])
            assert do(dataclasses.replace(job, shards=[0]))[0] == 0

    pauses.at(step, old)
    assert do(job)[0] == 0
    assert plan_of(tmp_path / "out")["fingerprint_form"] == 1
    rows = [row for path in objects(tmp_path) for row in pq.read_table(path).to_pylist()]
    assert len(rows) == NUM_ROWS
    assert {row["seed"] for row in rows} == {
        FORMS[1].image_seed(0, f"a.parquet#{i}", 0) for i in range(NUM_ROWS)
    }
    assert len({tuple(row) for row in rows}) == 1


def test_an_old_driver_is_refused_by_a_new_plan(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert do(job)[0] == 0
    monkeypatch.setattr(identity, "FORMS", {1: FORMS[1]})
    with pytest.raises(JobError, match="made by another version of ldm_batch"):
        do(job)


def test_a_measured_batch_size_gives_way_to_a_stored_one(
    job: JobConfig, tmp_path: Path, pauses: Pauses
) -> None:
    pauses.at("loaded", lambda: do(dataclasses.replace(job, batch_size=3)))
    assert do(dataclasses.replace(job, batch_size="auto"))[0] == 0
    assert plan_of(tmp_path / "out")["images"]["batch_size"] == 3


# Planning again


def planned_only(job: JobConfig, pauses: Pauses) -> None:
    """A plan by which nothing is made: its driver stops before the first shard."""

    def stop() -> None:
        raise KeyboardInterrupt

    pauses.at("handed out", stop)
    with pytest.raises(KeyboardInterrupt):
        do(job)


def test_a_plan_of_nothing_is_replaced_when_asked(
    job: JobConfig, tmp_path: Path, expected: dict[str, bytes], pauses: Pauses, write_parquet: Make
) -> None:
    write_parquet(tmp_path / "mistaken.parquet", prompt=["a"], topic=["x"])
    mistaken = dataclasses.replace(job.source, uri=f"{tmp_path}/mistaken.parquet")
    planned_only(dataclasses.replace(job, source=mistaken, seed=9), pauses)
    with pytest.raises(JobError, match="seed: planned 9, now 0"):
        do(job)
    assert do(dataclasses.replace(job, plan_again=True))[0] == 0
    assert data_of(tmp_path / "out") == expected


def test_a_plan_by_which_images_were_made_is_not_replaced(job: JobConfig, tmp_path: Path) -> None:
    assert do(job)[0] == 0
    before = everything(tmp_path)
    with pytest.raises(JobError, match=r"plan_again: .*holds 00000.parquet already"):
        do(dataclasses.replace(job, seed=1, plan_again=True))
    assert everything(tmp_path) == before


def test_no_plan_is_replaced_while_its_driver_lives(
    job: JobConfig, tmp_path: Path, expected: dict[str, bytes], pauses: Pauses
) -> None:
    refused: list[str] = []

    def other() -> None:
        with pytest.raises(JobError) as error:
            do(dataclasses.replace(job, seed=1, plan_again=True))
        refused.append(str(error.value))

    pauses.at("handed out", other)
    assert do(job)[0] == 0
    assert f"is being worked on by process {os.getpid()} on" in refused[0]
    assert data_of(tmp_path / "out") == expected


def test_whoever_was_taken_for_dead_commits_nothing_by_the_old_plan(
    job: JobConfig, tmp_path: Path, expected: dict[str, bytes], pauses: Pauses
) -> None:
    """Its record is too old, as after a minute of silence; then it goes on."""

    def other() -> None:
        for path in (tmp_path / "out" / identity.RUNS_FOLDER).iterdir():
            os.utime(path, (0, 0))
        assert do(dataclasses.replace(job, plan_again=True))[0] == 0

    pauses.at("handed out", other)
    with pytest.raises(JobError, match=r"plan.json: is another plan by now"):
        do(dataclasses.replace(job, seed=1))
    assert data_of(tmp_path / "out") == expected


def test_an_object_that_came_after_the_plan_was_replaced_is_refused_by_name(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that stalls for longer than a minute between its last look and its create."""
    plain, stalled, others = worker_module.commit_shard, [], []

    def stall(*arguments: Any, **named: Any) -> Any:
        if not stalled:
            stalled.append(True)
            for path in (tmp_path / "out" / identity.RUNS_FOLDER).iterdir():
                os.utime(path, (0, 0))
            others.append(do(dataclasses.replace(job, plan_again=True, shards=[2]))[0])
        return plain(*arguments, **named)

    with monkeypatch.context() as stalling:
        stalling.setattr(worker_module, "commit_shard", stall)
        with pytest.raises(JobError, match=r"plan.json: is another plan by now"):
            do(dataclasses.replace(job, seed=1))
    assert others == [0]
    with pytest.raises(JobError, match=r"data/00000.parquet: is no object of this dataset"):
        do(job)


def test_where_nothing_is_made_yet_the_way_out_is_named(job: JobConfig, pauses: Pauses) -> None:
    planned_only(job, pauses)
    with pytest.raises(JobError, match="plan_again=true replaces it"):
        do(dataclasses.replace(job, seed=1))


def test_a_crash_while_a_plan_makes_way_is_mended_by_the_same_command(
    job: JobConfig, tmp_path: Path, expected: dict[str, bytes], pauses: Pauses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    planned_only(dataclasses.replace(job, seed=1), pauses)
    plain, removed = Store.remove, []

    def crash(store: Store, path: str) -> None:
        if path == identity.PLAN_PATH:
            removed.append(path)
            raise KeyboardInterrupt
        plain(store, path)

    with monkeypatch.context() as crashing:
        crashing.setattr(Store, "remove", crash)
        with pytest.raises(KeyboardInterrupt):
            do(dataclasses.replace(job, plan_again=True))
    assert removed
    assert do(dataclasses.replace(job, plan_again=True))[0] == 0
    assert data_of(tmp_path / "out") == expected


def test_a_driver_shows_that_it_lives(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert runs.living_runs(store) == []
    with runs.show_life(store):
        [words] = runs.living_runs(store)
        assert f"process {os.getpid()} on" in words
        [path] = (tmp_path / identity.RUNS_FOLDER).iterdir()
        os.utime(path, (0, 0))
        assert runs.living_runs(store) == []
    os.utime(path)
    assert runs.living_runs(store) == []
    path.write_bytes(b"{")
    assert runs.living_runs(store) == [f"a driver that wrote .ldm_batch/runs/{path.name}"]


def test_a_sign_of_life_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RENEW_S", 0.01)
    with runs.show_life(Store(str(tmp_path))):
        [path] = (tmp_path / identity.RUNS_FOLDER).iterdir()
        os.utime(path, (0, 0))
        wait_until(lambda: path.stat().st_mtime > 1)


def test_a_plan_without_its_document_is_damaged(job: JobConfig, tmp_path: Path) -> None:
    assert do(job)[0] == 0
    (tmp_path / "out" / identity.PLAN_PATH).unlink()
    with pytest.raises(JobError, match=r"plan: damaged plan: .*plan.json is gone and its shards"):
        do(job)


# Whose object


def foreign(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [b"x"]}), path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("00000.parquet", "it is not ours"),
        ("train-0.parquet", "no shard of the plan has this name"),
        ("00099.parquet", "no shard of the plan has this name"),
        ("README.md", "no shard of the plan has this name"),
    ],
)
def test_a_dataset_begins_beside_none_but_its_own_objects(
    job: JobConfig, tmp_path: Path, name: str, why: str
) -> None:
    foreign(tmp_path / "out" / "data" / name)
    before = everything(tmp_path)
    with pytest.raises(JobError, match=rf"data/{name}: is no object of this dataset \({why}\)"):
        do(job)
    assert everything(tmp_path) == before


def test_objects_of_other_settings_are_not_taken_for_done(job: JobConfig, tmp_path: Path) -> None:
    assert do(dataclasses.replace(job, seed=1))[0] == 0
    shutil.rmtree(tmp_path / "out" / identity.META_FOLDER)
    with pytest.raises(JobError, match=r"data/00000.parquet: is no .*made with other settings"):
        do(job)


def test_a_dataset_that_lost_its_plan_is_its_own_still(
    job: JobConfig, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    assert do(job)[0] == 0
    shutil.rmtree(tmp_path / "out" / identity.META_FOLDER)
    (tmp_path / "out" / "data" / "00001.parquet").unlink()
    (tmp_path / "out" / "data" / ".DS_Store").write_bytes(b"")
    assert do(job)[0] == 0
    (tmp_path / "out" / "data" / ".DS_Store").unlink()
    assert data_of(tmp_path / "out") == expected


def test_a_foreign_object_that_comes_meanwhile_is_no_shard_either(
    job: JobConfig, tmp_path: Path, pauses: Pauses
) -> None:
    pauses.at("loaded", lambda: foreign(tmp_path / "out" / "data" / "00001.parquet"))
    with pytest.raises(JobError, match=r"data/00001.parquet: is no object of this dataset"):
        do(job)
    assert not (tmp_path / "out" / identity.PLAN_PATH).exists()


def test_an_object_without_a_receipt_must_be_the_datasets_own(
    job: JobConfig, tmp_path: Path, write_parquet: Make
) -> None:
    assert do(job)[0] == 0
    elsewhere = dataclasses.replace(job.sink, uri=f"{tmp_path}/other")
    assert do(dataclasses.replace(job, seed=1, sink=elsewhere))[0] == 0
    shutil.copy(tmp_path / "other/data/00001.parquet", tmp_path / "out/data/00001.parquet")
    (tmp_path / "out" / identity.receipt_path("00001")).unlink()
    (tmp_path / "out/data/00002.parquet").unlink()
    write_parquet(tmp_path / "in" / "b.parquet", prompt=["new"], topic=["y"])
    before = everything(tmp_path)
    with pytest.raises(JobError, match=r"data/00001.parquet: is no object of this dataset"):
        do(job)
    assert everything(tmp_path) == before
    assert do(dataclasses.replace(job, shards=[1], overwrite=True))[0] == 0
    assert do(job)[0] == 0


def test_a_foreign_object_in_the_place_of_a_new_shard_is_refused(
    job: JobConfig, tmp_path: Path, write_parquet: Make
) -> None:
    assert do(job)[0] == 0
    foreign(tmp_path / "out/data/00003.parquet")
    write_parquet(tmp_path / "in" / "b.parquet", prompt=["new"], topic=["y"])
    before = everything(tmp_path)
    with pytest.raises(JobError, match=r"data/00003.parquet: is no object of this dataset"):
        do(job)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet_file_is_no_object_either(
    job: JobConfig, tmp_path: Path, content: bytes
) -> None:
    foreign(tmp_path / "out/data/00000.parquet")
    (tmp_path / "out/data/00000.parquet").write_bytes(content)
    with pytest.raises(JobError, match=r"data/00000.parquet: .*remove it, or write to another"):
        do(job)


@pytest.mark.parametrize("metadata", [b"{", b"\xff", b"[]", b"{}", b'{"fingerprint": 1}'])
def test_an_object_with_damaged_facts_is_not_ours(
    job: JobConfig, tmp_path: Path, metadata: bytes
) -> None:
    path = tmp_path / "out/data/00000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"ldm_batch": metadata}), path)
    with pytest.raises(JobError, match=r"is no object of this dataset \(it is not ours\)"):
        do(job)


def test_a_dataset_of_which_nothing_is_left_to_do_gets_its_plan_back(
    job: JobConfig, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    assert do(job)[0] == 0
    shutil.rmtree(tmp_path / "out" / identity.META_FOLDER)
    assert do(job)[0] == 0
    assert plan_of(tmp_path / "out")["fingerprint_form"] == 2
    assert data_of(tmp_path / "out") == expected


@pytest.mark.parametrize("command", ["status", "verify"])
def test_a_plan_that_was_not_stored_to_its_end_is_nothing_whole(
    job: JobConfig, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a `kill -9` between the plan and its first segment."""
    plain = Store.publish

    def crash(store: Store, path: str, *arguments: Any, **named: Any) -> bool:
        if path.startswith(f"{identity.PLAN_FOLDER}/"):
            raise KeyboardInterrupt
        return plain(store, path, *arguments, **named)

    with monkeypatch.context() as crashing:
        crashing.setattr(Store, "publish", crash)
        with pytest.raises(KeyboardInterrupt):
            do(job)
    module = {"status": status, "verify": verify}[command]
    with pytest.raises(SystemExit) as ended:
        module.main([f"{tmp_path}/out"])
    assert ended.value.code == {"status": 1, "verify": 3}[command]
    assert do(job)[0] == 0


# What the plan says of every shard


def test_every_shard_has_the_columns_that_the_dataset_began_with(
    job: JobConfig, tmp_path: Path
) -> None:
    """Those of an older version, which lacked one, or of a newer one, which had one more."""
    assert do(dataclasses.replace(job, shards=[0]))[0] == 0
    document = plan_of(tmp_path / "out")
    columns = [c for c in document["columns"] if c[0] != "made_as"] + [["sharpness", "float64"]]
    document["columns"] = columns
    (tmp_path / "out" / identity.PLAN_PATH).write_text(json.dumps(document))
    assert do(job)[0] == 0
    schema = pq.read_schema(tmp_path / "out/data/00001.parquet")
    assert schema.names == [name for name, _ in columns]
    assert pq.read_table(tmp_path / "out/data/00001.parquet")["sharpness"].null_count == 16


def test_a_plan_says_its_columns(job: JobConfig, tmp_path: Path) -> None:
    assert do(job)[0] == 0
    columns = plan_of(tmp_path / "out")["columns"]
    assert [name for name, _ in columns] == pq.read_schema(
        tmp_path / "out/data/00000.parquet"
    ).names
    assert columns[0] == ["image", "image"]
    assert columns[-1] == ["topic", "string"]


def test_equal_fingerprints_give_equal_bytes_whatever_a_models_folder_is_called(
    job: JobConfig, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("ldm", "ldm-copy")]
    for folder in folders:
        shutil.copytree(TINY_MODEL, folder)
    ldm, copied = (
        dataclasses.replace(
            job, model=ModelConfig(path=str(folder)), call=CallConfig(num_inference_steps=1)
        )
        for folder in folders
    )
    apart = dataclasses.replace(job.sink, uri=f"{tmp_path}/apart")
    assert do(dataclasses.replace(ldm, sink=apart))[0] == 0
    assert do(dataclasses.replace(ldm, shards=[1]))[0] == 0
    assert do(copied)[0] == 0
    assert data_of(tmp_path / "out") == data_of(tmp_path / "apart")
    models = {row["model"] for path in objects(tmp_path) for row in pq.read_table(path).to_pylist()}
    assert models == {"ldm"}


def with_environment(sink: Path, **changes: str) -> None:
    document = plan_of(sink)
    environment = document["environment"]
    for name, value in changes.items():
        (environment if name == "device" else environment["versions"])[name] = value
    (sink / identity.PLAN_PATH).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"torch": "2.0.0"}, "torch 2.0.0, now"),
        ({"diffusers": "0.1"}, "diffusers 0.1, now"),
        ({"pillow": "1.0"}, "pillow 1.0, now"),
        ({"device": "cuda"}, "device cuda, now cpu"),
    ],
)
def test_another_environment_is_told_or_refused(
    job: JobConfig, tmp_path: Path, changes: dict[str, str], told: str
) -> None:
    assert do(dataclasses.replace(job, shards=[0]))[0] == 0
    with_environment(tmp_path / "out", **changes)
    before = everything(tmp_path)
    with pytest.raises(JobError, match=f"strict_environment: .*{told}"):
        do(dataclasses.replace(job, strict_environment=True))
    assert everything(tmp_path) == before
    _, planned = do(dataclasses.replace(job, dry_run=True))
    code, out = do(job)
    assert (code, told in out) == (0, True)
    assert (told in planned) == ("device" not in changes)


def test_the_same_environment_is_not_worth_a_word(job: JobConfig, tmp_path: Path) -> None:
    assert do(dataclasses.replace(job, shards=[0]))[0] == 0
    with_environment(tmp_path / "out", numpy="0.1", python="2.7")
    code, out = do(dataclasses.replace(job, strict_environment=True))
    assert (code, "warning" in out) == (0, False)


# The error budget


@pytest.fixture
def spoilt(tmp_path: Path, job: JobConfig, write_parquet: Make) -> JobConfig:
    """48 rows in three shards, of which 3 are rejected: 2 of the first shard, 1 of the last."""
    prompts = [None if i in (3, 5, 40) else f"p {i}" for i in range(NUM_ROWS)]
    write_parquet(tmp_path / "in" / "a.parquet", prompt=prompts, topic=["x"] * NUM_ROWS)
    return dataclasses.replace(job, max_rejected_fraction=0.1)


def test_what_a_user_names_is_never_stopped(spoilt: JobConfig) -> None:
    assert do(spoilt)[0] == 0
    again = dataclasses.replace(spoilt, shards=[0], overwrite=True)
    assert do(again)[0] == 0
    assert do(dataclasses.replace(again, max_rejected_fraction=0.0))[0] == 0


def test_a_resumed_job_is_judged_by_the_whole_dataset(spoilt: JobConfig, tmp_path: Path) -> None:
    assert do(spoilt)[0] == 0
    (tmp_path / "out/data/00000.parquet").unlink()
    assert do(spoilt)[0] == 0


def test_a_stopped_job_stops_at_once_when_it_is_run_again(
    spoilt: JobConfig, tmp_path: Path
) -> None:
    strict = dataclasses.replace(spoilt, max_rejected_fraction=0.01)
    with pytest.raises(JobError, match="stopped: "):
        do(strict)
    before = everything(tmp_path)
    with pytest.raises(JobError, match="stopped: 2 of 16 rows rejected"):
        do(strict)
    assert everything(tmp_path) == before
    assert do(spoilt)[0] == 0


def test_the_budget_counts_receipts_that_are_read_beside_the_run(
    spoilt: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "READ_AT_ONCE", 0)
    assert do(dataclasses.replace(spoilt, shards=[0, 1]))[0] == 0
    with pytest.raises(JobError, match=r"stopped: 3 of 48 rows rejected"):
        do(dataclasses.replace(spoilt, max_rejected_fraction=0.01))


def test_one_of_the_rejected_rows_is_named_with_the_remedy(
    job: JobConfig, tmp_path: Path, write_parquet: Make
) -> None:
    steps = [5000 if i > 10 else 5 for i in range(NUM_ROWS)]
    prompts = [f"p {i}" for i in range(NUM_ROWS)]
    columns = {"prompt": prompts, "topic": ["x"] * NUM_ROWS, "num_inference_steps": steps}
    write_parquet(tmp_path / "in" / "a.parquet", **columns)
    with pytest.raises(JobError) as stopped:
        do(dataclasses.replace(job, max_rejected_fraction=0.01))
    assert (
        "; one of the out_of_range: row 11 of a.parquet, num_inference_steps 5000 is not between 1 "
        "and 1000 (source.columns.num_inference_steps=null, in a new sink, leaves such a column "
        "unread). What is committed stays" in str(stopped.value)
    )


def test_what_was_done_before_counts(spoilt: JobConfig, tmp_path: Path) -> None:
    """Five per cent of 48 rows are two: the third is too many, though this run has one of 16."""
    assert do(dataclasses.replace(spoilt, shards=[0, 1]))[0] == 0
    with pytest.raises(JobError, match=r"stopped: 3 of 48 rows rejected \(3 null_prompt\)"):
        do(dataclasses.replace(spoilt, max_rejected_fraction=0.05))


# Which shards


@pytest.mark.parametrize(
    ("named", "made"),
    [(1, [1]), ("1", [1]), ("00002", [2]), ("0-1", [0, 1]), ([0, "1-2"], [0, 1, 2]), ("2-2", [2])],
)
def test_shards_are_named_by_number_or_range(
    job: JobConfig, tmp_path: Path, named: Any, made: list[int]
) -> None:
    assert do(dataclasses.replace(job, shards=named))[0] == 0
    assert sorted(data_of(tmp_path / "out")) == [f"{index:05d}.parquet" for index in made]


def test_a_range_beyond_the_plan_is_named(job: JobConfig) -> None:
    with pytest.raises(JobError, match="shards: no shard 999999999; the plan has 0 to 2"):
        do(dataclasses.replace(job, shards="1-999999999"))
