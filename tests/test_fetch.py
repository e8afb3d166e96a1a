"""A hub's model is fetched once per node, whole, and then used without the hub; in jobs too."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import descendants, kill, wait_until
from hub_server import NOT_FETCHED, REPO_ID, REVISION, Hub, Refusal, hub_server

from ldm_batch.config import ModelConfig
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.errors import JobError

MODEL = find_model(ModelConfig(path="demo:text_to_image"))
WANTED = sorted(
    str(path.relative_to(MODEL))
    for path in MODEL.rglob("*")
    if path.is_file() and path.name != "README.md"
)
ONCE = {("GET", "tree"): 1} | {(way, name): 1 for way in ("HEAD", "GET") for name in WANTED}
"""The requests of one fetch."""
UNET = "unet/diffusion_pytorch_model.safetensors"
TOKEN = "hf_canarytoken1234567890"
HIDDEN = ("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
FIND = f"""
import sys
from ldm_batch.config import ModelConfig
from ldm_batch.diffusion.models import files, find
from ldm_batch.errors import JobError
try:
    model = ModelConfig(repo_id="{REPO_ID}", revision="{REVISION}")
    print(find.find_model(model), *files.lock_model(find.find_model(model)))
except JobError as error:
    sys.exit(str(error))
"""
FROM_HUB = ("model.path=null", f"model.repo_id={REPO_ID}", f"model.revision={REVISION}")
IMPATIENT = "import time; time.sleep = lambda seconds: None\n"
"""Goes before a program that would wait before each new try."""
Process = subprocess.Popen[str]
STARTED: list[Process] = []


@pytest.fixture(autouse=True)
def leave_no_process() -> Iterator[None]:
    """End what a failed test leaves waiting."""
    yield
    while STARTED:
        kill_tree(STARTED.pop())


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server(MODEL) as hub:
        yield hub


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in HIDDEN}
    return {**kept, **hub.environment, "HF_HOME": str(home), **more}


def run(command: Sequence[str], folder: Path, env: dict[str, str]) -> Process:
    """Start a process whose output can be read."""
    pipe = subprocess.PIPE
    STARTED.append(
        subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)
    )
    return STARTED[-1]


def kill_tree(process: Process) -> None:
    """Kill a process that has not ended, and all below it."""
    if process.poll() is None:
        for pid in [*descendants(process.pid), process.pid]:
            kill(pid)
        process.communicate(timeout=120)


def start(
    hub: Hub, home: Path, program: str = FIND, *, before: Sequence[str] = (), **more: str
) -> Process:
    """Start a process that finds the model, on the node whose cache is `home`."""
    command = [*before, sys.executable, "-c", program]
    return run(command, Path(__file__).parent.parent, environment(hub, home, **more))


def found(process: Process) -> Path:
    """The folder that a process found; what it locks is what was planned."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    folder, *locked = out.split()
    assert sorted(locked) == WANTED
    return Path(folder)


def refused(process: Process) -> str:
    """The one message with which a process gave up."""
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert "Traceback" not in err
    assert TOKEN not in err
    message = err.splitlines()[-1]
    assert message.startswith(
        f"model.repo_id={REPO_ID}: cannot fetch {REVISION} on {os.uname()[1]}: "
    )
    return message


def is_waiting(process: Process) -> bool:
    """Tell whether the kernel has a process waiting for a file lock."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and str(process.pid) in line.split() for line in lines)


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in WANTED}


def contents(folder: Path) -> dict[str, int]:
    """Every name below a folder and when it was last changed."""
    return {str(path): path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


# Once


def test_processes_of_a_node_fetch_once(hub: Hub, tmp_path: Path) -> None:
    hub.stalls = UNET
    processes = [start(hub, tmp_path) for _ in range(6)]
    wait_until(lambda: hub.has_stalled.is_set() and sum(map(is_waiting, processes)) == 5)
    hub.go_on.set()
    folders = {found(process) for process in processes}
    assert hub.counts == ONCE
    assert [digests(folder) for folder in folders] == [digests(MODEL)]
    assert not any((folder / name).exists() for folder in folders for name in NOT_FETCHED)
    later = [start(hub, tmp_path) for _ in range(6)]
    assert {found(process) for process in later} == folders
    assert hub.counts == ONCE


def test_nodes_with_folders_of_their_own_fetch_once_each(hub: Hub, tmp_path: Path) -> None:
    hub.redirects = True
    processes = [start(hub, tmp_path / node) for node in "abab"]
    for process in processes:
        assert digests(found(process)) == digests(MODEL)
    got = Counter(name.removeprefix("/cdn/") for way, name in hub.requests if way == "GET")
    assert got == dict.fromkeys(["tree", *WANTED], 2)


def test_another_process_takes_over_from_a_killed_one(hub: Hub, tmp_path: Path) -> None:
    hub.stalls = UNET
    first = start(hub, tmp_path)
    wait_until(hub.has_stalled.is_set, first)
    second = start(hub, tmp_path)
    wait_until(partial(is_waiting, second), second)
    wait_until(lambda: len(list(tmp_path.rglob("snapshots/*/*/*"))) == len(WANTED) - 2, first)
    snapshot = next(tmp_path.glob("hub/*/snapshots/*"))
    assert not (snapshot / UNET).exists()
    hub.stalls = None
    kill(first.pid)
    first.communicate(timeout=120)
    assert digests(found(second)) == digests(MODEL)
    assert hub.counts == {**ONCE, ("HEAD", UNET): 2, ("GET", UNET): 2}


@pytest.mark.parametrize("listed", [True, False])
def test_a_partial_snapshot_is_not_used(hub: Hub, tmp_path: Path, listed: bool) -> None:
    """Without its list of files the hub's client would give it out: as an older client left it."""
    snapshot = found(start(hub, tmp_path))
    optional = snapshot / "tokenizer" / "tokenizer_config.json"
    optional.resolve().unlink()
    optional.unlink()
    if not listed:
        shutil.rmtree(snapshot.parents[1] / "trees")
    assert "HF_HUB_OFFLINE is set" in refused(start(hub, tmp_path, HF_HUB_OFFLINE="1"))
    hub.requests.clear()
    assert digests(found(start(hub, tmp_path))) == digests(MODEL)
    assert hub.counts[("GET", "tokenizer/tokenizer_config.json")] == 1
    assert hub.counts[("GET", UNET)] == 0


def test_a_cut_connection_is_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = UNET
    assert digests(found(start(hub, tmp_path))) == digests(MODEL)
    assert hub.counts == {**ONCE, ("GET", UNET): 2}


def test_a_whole_snapshot_may_be_read_only(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    found(start(hub, home))
    before = contents(home)
    mount = f'mount --bind {home} {home} && mount -o remount,ro,bind {home} && exec "$@"'
    read_only = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if subprocess.run([*read_only, "true"], capture_output=True, check=False).returncode != 0:
        read_only = []  # what is not written at all may be read-only too
    hub.requests.clear()
    found(start(hub, home, before=read_only))
    assert hub.requests == []
    assert contents(home) == before
    if read_only:
        shutil.rmtree(next(home.glob("hub/models--*")))
        assert "no right to read or write in " in refused(start(hub, home, before=read_only))


# Refusals


REFUSALS: dict[str, tuple[Refusal, str, str]] = {
    "gated": (
        Refusal(403, {"X-Error-Code": "GatedRepo"}, token=TOKEN),
        FIND,
        "HTTP 403: .* accept the licence on its page, and set HF_TOKEN .*is not set here",
    ),
    "unauthorised": (Refusal(401), FIND, "HTTP 401: the repository does not exist, is private"),
    "no_such_revision": (
        Refusal(404, {"X-Error-Code": "RevisionNotFound"}),
        FIND,
        f"no commit {REVISION} .HTTP 404.; copy model.revision",
    ),
    "limited_for_an_hour": (
        Refusal(429, {"Retry-After": "3600"}),
        FIND,
        "limits our requests .HTTP 429. for another 3600 s; run the same command again later",
    ),
    "limited_by_window": (
        Refusal(429, {"RateLimit": '"api";r=0;t=1800'}, path=UNET),
        FIND,
        "limits our requests .HTTP 429. for another 1800 s",
    ),
    "limited_for_ever": (
        Refusal(429, {"Retry-After": "1"}),
        IMPATIENT + FIND,
        "limits our requests .HTTP 429. after several retries; .* set HF_TOKEN",
    ),
    "down": (Refusal(503, path=UNET), IMPATIENT + FIND, "HTTP 503; run the same command again"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_ends_in_one_message(hub: Hub, tmp_path: Path, name: str) -> None:
    refusal, program, message = REFUSALS[name]
    hub.refusals = [refusal]
    assert re.search(message, refused(start(hub, tmp_path, program)))
    assert len(hub.requests) <= 60  # tried again a few times, not for ever


def test_a_limit_is_waited_for_and_a_token_is_sent_from_the_environment(
    hub: Hub, tmp_path: Path
) -> None:
    hub.refusals = [
        Refusal(401, token=TOKEN),
        Refusal(429, {"Retry-After": "0"}, times=1, path="tree/" + REVISION),
        Refusal(429, {"Retry-After": "0"}, times=1, path=UNET),
        Refusal(503, times=1, path="bert/config.json"),
    ]
    found(start(hub, tmp_path, HF_TOKEN=TOKEN))
    assert hub.counts[("GET", "tree")] == 2
    assert TOKEN not in " ".join(hub.agents)
    assert "HF_TOKEN was refused" in refused(start(hub, tmp_path / "b", HF_TOKEN=TOKEN + "5"))


def test_a_broken_off_weight_names_no_signed_address(hub: Hub, tmp_path: Path) -> None:
    hub.redirects = True
    hub.refusals = [Refusal(403, path=f"/cdn/{UNET}")]
    message = refused(start(hub, tmp_path))
    assert "HTTP 403" in message
    assert "canarysignature" not in message


def test_no_answer_ends_in_one_message(hub: Hub, tmp_path: Path) -> None:
    closed = start(hub, tmp_path, IMPATIENT + FIND, HF_ENDPOINT="http://127.0.0.1:9")
    assert re.search(r"no whole answer from 127.0.0.1 \(ConnectError\)", refused(closed))
    hub.stalls = "tree"
    program = "from ldm_batch.diffusion.models import hub; hub.REQUEST_TIMEOUT_S = 0.5\n"
    silent = start(hub, tmp_path, IMPATIENT + program + FIND)
    assert re.search(r"no whole answer from 127.0.0.1 \(ReadTimeout\)", refused(silent))


def test_a_full_disk_ends_in_one_message(hub: Hub, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
    assert "no room for it in " in refused(start(hub, tmp_path, limit + FIND))
    found(start(hub, tmp_path))


def test_a_damaged_cache_is_named(hub: Hub, tmp_path: Path) -> None:
    snapshot = found(start(hub, tmp_path))
    (snapshot / UNET).resolve().write_bytes(b"cut")
    message = refused(start(hub, tmp_path))
    assert str(snapshot / UNET) in message
    assert f"delete the folder {snapshot.parents[1]}" in message
    shutil.rmtree(snapshot.parents[1])
    assert digests(found(start(hub, tmp_path))) == digests(MODEL)


def test_a_repository_of_something_else_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files = NOT_FETCHED
    assert "none of the files of a diffusers pipeline" in refused(start(hub, tmp_path))


def test_a_folder_that_a_node_lacks_is_named_with_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JobError, match=rf"{os.uname()[1]}.*all share, or set model\.repo_id"):
        find_model(ModelConfig(path=str(tmp_path / "model")))
    (tmp_path / "model").symlink_to(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert digests(find_model(ModelConfig(path="model"))) == digests(MODEL)
    assert digests(find_model(ModelConfig(path="~/model"))) == digests(MODEL)


# Real jobs


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A folder with an input of four prompts."""
    table = {"prompt": ["a red circle", "a blue square", "a green star", "a yellow triangle"]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    return tmp_path


def start_job(folder: Path, out: str, *arguments: str, env: dict[str, str]) -> Process:
    """Start the job's command on the four prompts."""
    command = ["-m", "ldm_batch.run", "conf=demo", "source.uri=in.parquet", f"sink.uri={out}"]
    small = ["call.num_inference_steps=2", "batch_size=2", "rows_per_shard=2"]
    return run([sys.executable, *command, *small, *arguments], folder, env)


def pixels(folder: Path, out: str, job: Process) -> list[str]:
    """Wait for a job; the hashes of its pixels in the order of its rows."""
    printed = job.communicate(timeout=300)
    assert job.returncode == 0, printed
    made = pq.read_table(folder / out / "data", columns=["key", "pixel_sha256"]).to_pydict()
    return [digest for _, digest in sorted(zip(*made.values(), strict=True))]


@pytest.mark.long
def test_a_job_fetches_once_and_later_ones_need_no_hub(prompts: Path) -> None:
    with hub_server(MODEL) as hub:
        env = environment(hub, prompts / "home")
        job = start_job(prompts, "ray", *FROM_HUB, "cluster.num_workers=2", env=env)
        fetched = pixels(prompts, "ray", job)
        assert hub.counts == ONCE
    later = start_job(prompts, "later", *FROM_HUB, "cluster=in_process", env=env)
    local = start_job(prompts, "local", "cluster=in_process", env=env)
    assert pixels(prompts, "later", later) == pixels(prompts, "local", local) == fetched
    assert len(set(fetched)) == 4


def test_a_job_that_may_not_fetch_ends_before_it_begins(hub: Hub, prompts: Path) -> None:
    hub.refusals = [Refusal(401)]
    env = environment(hub, prompts / "home", HF_TOKEN=TOKEN)
    job = start_job(prompts, "out", *FROM_HUB, env=env)
    out, err = job.communicate(timeout=300)
    assert job.returncode == 2
    assert f"model.repo_id={REPO_ID}: cannot fetch {REVISION} on {os.uname()[1]}" in err
    assert "Traceback" not in err
    assert TOKEN not in out + err
    assert not (prompts / "out").exists()
