"""What a dataset lives through: kills, full disks, changed input, two drivers at a time."""

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from commands import (
    MACHINERY,
    digests,
    finish,
    is_alive,
    kill,
    objects,
    run,
    start,
    wait_until,
    worker_pids,
    write_prompts,
)

IN_PROCESS = "cluster=in_process"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the dataset that an undisturbed run makes."""
    folder = tmp_path_factory.mktemp("reference")
    write_prompts(folder)
    ended = run(folder, *MACHINERY, IN_PROCESS)
    assert ended.code == 0, ended
    return digests(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_prompts(tmp_path)
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_driver_killed_at_a_random_moment_then_resumed(
    folder: Path, reference: dict[str, str], num_workers: int
) -> None:
    job = (*MACHINERY, f"cluster.num_workers={num_workers}")
    num_done = random.Random(num_workers).randrange(1, len(reference) - 5)
    driver = start(folder, *job)
    wait_until(lambda: len(objects(folder)) >= num_done, driver)
    workers = worker_pids(driver)
    kill(driver.pid)
    finish(driver)
    wait_until(lambda: not any(is_alive(pid) for pid in workers))
    assert len(objects(folder)) < len(reference)
    ended = run(folder, *job)
    assert ended.code == 0, ended
    assert digests(folder) == reference


def test_worker_killed_in_the_middle_is_replaced(folder: Path, reference: dict[str, str]) -> None:
    told = folder / "told"
    with told.open("w") as out:
        driver = start(folder, *MACHINERY, "cluster.num_workers=2", out=out)
    wait_until(lambda: len(worker_pids(driver)) == 2, driver)
    killed, other = worker_pids(driver)
    wait_until(lambda: len(objects(folder)) >= 2, driver)
    os.kill(other, signal.SIGSTOP)  # or it might end the job before the driver looks
    kill(killed)
    try:
        wait_until(lambda: "\na worker died " in told.read_text(), driver)
    finally:
        os.kill(other, signal.SIGCONT)
    ended = finish(driver)
    assert ended.code == 0, ended
    assert digests(folder) == reference
    assert run(folder, "status", "out", module="ldm_batch").code == 0


def test_interrupt_stops_workers_and_the_next_run_goes_on(
    folder: Path, reference: dict[str, str]
) -> None:
    driver = start(folder, *MACHINERY, "cluster.num_workers=2")
    wait_until(lambda: len(worker_pids(driver)) == 2, driver)
    workers = worker_pids(driver)
    wait_until(lambda: len(objects(folder)) >= 1, driver)
    os.kill(driver.pid, signal.SIGINT)
    ended = finish(driver)
    assert (ended.code, "Traceback" in ended.err) == (130, False), ended
    wait_until(lambda: not any(is_alive(pid) for pid in workers))
    kept = {path.name: path.stat().st_mtime_ns for path in objects(folder)}
    assert kept
    assert run(folder, *MACHINERY, IN_PROCESS).code == 0
    assert digests(folder) == reference
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in objects(folder)}.items()


@pytest.mark.parametrize(
    ("sent", "code", "told"),
    [(signal.SIGINT, 130, "interrupted;"), (signal.SIGTERM, 143, "terminated;")],
)
def test_a_signal_is_heard_while_workers_take_long(
    folder: Path, sent: int, code: int, told: str
) -> None:
    driver = start(folder, *MACHINERY, "cluster.num_workers=1")
    wait_until(lambda: len(objects(folder)) >= 1, driver)
    [worker] = worker_pids(driver)
    os.kill(worker, signal.SIGSTOP)  # from now on the driver waits and nothing answers
    os.kill(driver.pid, sent)
    ended = finish(driver)
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGCONT)
    assert (ended.code, ended.err.split()[:1]) == (code, [told]), ended
    assert "Traceback" not in ended.err
    wait_until(lambda: not is_alive(worker))


def test_two_drivers_at_once_make_each_shard_once(folder: Path, reference: dict[str, str]) -> None:
    drivers = [start(folder, *MACHINERY, IN_PROCESS) for _ in range(2)]
    ended = [finish(driver) for driver in drivers]
    assert [e.code for e in ended] == [0, 0], ended
    assert digests(folder) == reference
    assert "other bytes" not in ended[0].out + ended[1].out
    receipts = sorted((folder / "out/.ldm_batch/receipts").iterdir())
    assert sum(json.loads(path.read_text())["num_rows"] for path in receipts) == 600


def test_a_deleted_object_comes_back_as_the_same_bytes(
    folder: Path, reference: dict[str, str]
) -> None:
    assert run(folder, *MACHINERY, IN_PROCESS).code == 0
    (folder / "out/data/00003.parquet").unlink()
    ended = run(folder, *MACHINERY, IN_PROCESS)
    assert "1 to do" in ended.out
    assert digests(folder) == reference


@pytest.mark.long
def test_model_that_does_not_load_ends_the_job(folder: Path) -> None:
    demo = Path(__file__).parents[1] / "ldm_batch/demo/models/text_to_image"
    model = folder / "model"
    subprocess.run(["cp", "-r", str(demo), str(model)], check=True)
    weights = model / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    ended = run(folder, "source.uri=in", "sink.uri=out", "model=local", "model.path=model")
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ")
    assert "unet" in ended.err
    assert "Traceback" not in ended.err
    assert objects(folder) == []


@pytest.mark.long
def test_a_shard_that_always_fails_is_recorded_and_can_be_resumed(
    folder: Path, reference: dict[str, str]
) -> None:
    victim = folder / "in/1.parquet"
    times, good = victim.stat(), victim.read_bytes()
    assert run(folder, *MACHINERY, IN_PROCESS, "shards=[0]").code == 0
    victim.write_bytes(b"PAR1" + bytes(len(good) // 2) + good[4 + len(good) // 2 :])
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    ended = run(folder, *MACHINERY, "cluster.num_workers=1")
    assert ended.code == 1, ended
    failed = json.loads((folder / "out/.ldm_batch/failures/00015.json").read_text())
    assert (failed["attempts"], "1.parquet" in failed["message"]) == (3, True)
    assert digests(folder).items() < reference.items()
    status = run(folder, "status", "out", module="ldm_batch")
    assert (status.code, "15 of 30 done, 15 failed" in status.out) == (1, True)
    victim.write_bytes(good)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    command = shlex.split(next(line for line in ended.out.splitlines() if "shards=[" in line))
    assert run(Path("/"), *command[3:]).code == 0
    assert digests(folder) == reference
    assert not list((folder / "out/.ldm_batch/failures").iterdir())


def test_a_full_disk_stops_the_job_and_loses_nothing(
    folder: Path, reference: dict[str, str]
) -> None:
    sink = folder / "out"
    sink.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(sink)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        ended = run(folder, *MACHINERY, IN_PROCESS)
        assert ended.code == 75, ended
        assert ended.err.startswith("error: stopped: ")
        assert "No space left on device" in ended.err
        assert "the same command goes on" in ended.err
        assert " failed: " not in ended.out  # the shards that follow are not made in vain
        assert digests(folder).items() < reference.items()
        subprocess.run(["mount", "-o", "remount,size=64m", str(sink)], check=True)
        assert run(folder, *MACHINERY, IN_PROCESS).code == 0
        assert digests(folder) == reference
    finally:
        subprocess.run(["umount", str(sink)], check=True)


def test_truncated_input_is_refused_before_any_work(folder: Path) -> None:
    victim = folder / "in/1.parquet"
    victim.write_bytes(victim.read_bytes()[:1000])
    ended = run(folder, *MACHINERY, IN_PROCESS)
    assert (ended.code, "in/1.parquet" in ended.err, "cut off" in ended.err) == (2, True, True)
    assert not (folder / "out").exists()


def test_changed_input_is_refused(folder: Path) -> None:
    assert run(folder, *MACHINERY, IN_PROCESS, "shards=[0]").code == 0
    write_prompts(folder, rows_per_file=301)
    ended = run(folder, *MACHINERY, IN_PROCESS)
    assert (ended.code, "in/0.parquet" in ended.err) == (2, True)
    assert "300 -> 301 rows" in ended.err


def test_other_seed_on_the_same_sink_is_refused(folder: Path) -> None:
    assert run(folder, *MACHINERY, IN_PROCESS, "shards=[0]").code == 0
    ended = run(folder, *MACHINERY, IN_PROCESS, "seed=1")
    assert (ended.code, "seed: planned 0, now 1" in ended.err) == (2, True)


def test_too_many_rejections_stop_the_job(folder: Path) -> None:
    ended = run(folder, *MACHINERY, IN_PROCESS, "source.max_prompt_chars=12", "rows_per_shard=50")
    assert ended.code == 2, ended
    assert "max_rejected_fraction" in ended.err
    assert "prompt_too_large" in ended.err
