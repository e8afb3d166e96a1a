"""Three nights of one dataset by the script that cron starts, on a real Ray: new inputs, a crash,
a changed file."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import (
    DEADLINE_S,
    descendants,
    digests,
    is_alive,
    kill,
    objects,
    run,
    wait_until,
)

NIGHTLY = Path(__file__).parent.parent / "jobs" / "nightly.sh"
JOB = ("rows_per_shard=10", "cluster.num_workers=2")
ROWS, BAD_ROWS = 200, 3
SHARDS = ROWS // 10


def write_night(folder: Path, number: int, text: str = "a photograph") -> Path:
    """The prompts that came in before a night; a few of them cannot be used."""
    prompts: list[str | None] = [f"{text}, night {number}, row {row}" for row in range(ROWS)]
    prompts[7:10] = [None, "", " "]
    path = folder / "in" / f"night-{number}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"prompt": prompts}), path)
    return path


def start_night(folder: Path, verify: str = "never") -> subprocess.Popen[str]:
    variables = {"SOURCE": "in", "SINK": "out", "CONF": "machinery", "LOGS": "logs"}
    return subprocess.Popen(
        [str(NIGHTLY), *JOB, "max_rejected_fraction=1"],
        cwd=folder,
        env={**os.environ, **variables, "VERIFY": verify},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def night(folder: Path, verify: str = "never") -> tuple[int, str]:
    """Exit code of a night and what it printed."""
    process = start_night(folder, verify)
    out, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        run(folder, "status", "out", "--json", module="ldm_batch").out
    )
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one undisturbed run over the input of all three nights makes."""
    folder = tmp_path_factory.mktemp("reference")
    for number in (1, 2, 3):
        write_night(folder, number)
    arguments = ("conf=machinery", "source.uri=in", "sink.uri=out", "rows_per_shard=10")
    assert run(folder, *arguments, "cluster=in_process", "max_rejected_fraction=1").code == 0
    return digests(folder)


@pytest.mark.long
def test_three_nights_with_a_crash_and_a_changed_file(
    tmp_path: Path, reference: dict[str, str]
) -> None:
    write_night(tmp_path, 1)
    code, out = night(tmp_path)
    assert code == 0, out
    first = digests(tmp_path)
    assert len(first) == SHARDS

    write_night(tmp_path, 2)
    crash = start_night(tmp_path)
    wait_until(lambda: len(objects(tmp_path)) > SHARDS, crash)
    everyone = descendants(crash.pid)
    for pid in [crash.pid, *everyone]:
        kill(pid)
    crash.communicate()
    wait_until(lambda: not any(map(is_alive, everyone)))
    assert SHARDS < len(objects(tmp_path)) < 2 * SHARDS

    code, out = night(tmp_path)
    assert code == 0, out
    second = digests(tmp_path)
    assert first.items() < second.items()
    assert len(second) == 2 * SHARDS

    write_night(tmp_path, 3)
    good = shutil.copy2(tmp_path / "in" / "night-2.parquet", tmp_path / "good.parquet")
    changed = write_night(tmp_path, 2, "a drawing")
    code, out = night(tmp_path)
    assert code == 2, out
    assert "night-2.parquet: changed after it was planned" in out
    assert "Traceback" not in out
    assert digests(tmp_path) == second

    shutil.copy2(good, changed)
    code, out = night(tmp_path, verify="always")
    assert code == 0, out
    assert f"new input: {SHARDS} shards appended to the plan" in out
    assert "right and complete" in out
    assert digests(tmp_path) == reference
    found = status(tmp_path)
    assert found["num_rows"] == 3 * ROWS == found["num_rows_planned"]
    assert found["num_images"] == 3 * (ROWS - BAD_ROWS)
    assert sum(found["rejected"].values()) == 3 * BAD_ROWS
