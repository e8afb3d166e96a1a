"""Mistakes that people make, one after the other in one process, and how each of them ends.

    python tests/mistakes.py MODULE

runs `MISTAKES` of a module beside this one, each in a folder of its own, and prints a line of JSON
on each: the exit code, what was printed, what the command left behind, which large libraries it
imported. One process, so that the imports are seen exactly and a row takes milliseconds.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

LARGE = ("torch", "diffusers", "transformers", "ray")
"""What is imported in seconds, and only for a model or a cluster."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
Give = Callable[[Path], object]


@dataclass(frozen=True)
class Mistake:
    """What somebody does, and what they must be told."""

    words: str
    """The command line behind `python -m ldm_batch`; of Python `run_job` or `open_dataset`."""
    told: tuple[str, ...]
    """Pieces of the message: the thing, and the remedy."""
    give: tuple[Give, ...] = ()
    """What is there beforehand, made in the folder that the command is called in."""
    code: int = 2
    imports: tuple[str, ...] = ()
    """Which of `LARGE` it may need."""
    environment: Mapping[str, str] = field(default_factory=dict)
    is_nobody: bool = False
    """Whether the command has no rights but everybody's."""


@dataclass(frozen=True)
class Seen:
    """How a mistake ended."""

    code: int
    out: str
    err: str
    stored: list[str]
    """What is other than before, by name."""
    imported: list[str]


def see_all(module: str) -> list[Seen]:
    """How each mistake of a module ends, seen in one process of its own."""
    here = Path(__file__)
    ended = subprocess.run(
        [sys.executable, str(here), module],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here.parent}"},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return [Seen(**json.loads(line)) for line in ended.stdout.splitlines()]


def see(mistake: Mistake, folder: Path) -> Seen:
    """Make one mistake in this process, in an empty folder."""
    inside, spool = folder / "in it", folder / "spool"
    inside.mkdir(parents=True)
    spool.mkdir()
    spool.chmod(0o777)
    before_it = set(sys.modules)
    with _as_it_was(), contextlib.chdir(inside), _environment(mistake, spool):
        for give in mistake.give:
            give(inside)
        before = _tree(folder)
        with _rights(mistake.is_nobody):
            code, out, err = _end(shlex.split(mistake.words))
    after = _tree(folder)
    return Seen(
        code,
        out,
        err,
        sorted(
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        ),
        [name for name in LARGE if name in sys.modules and name not in before_it],
    )


def _end(words: list[str]) -> tuple[int, str, str]:
    """Exit code and output of a command line."""
    from ldm_batch.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    sys.argv[:] = ["ldm_batch", *words]
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if words and words[0] in ("run_job", "open_dataset"):
                _from_python(*words)
            else:
                main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return code, out.getvalue(), err.getvalue()


def _from_python(name: str, *arguments: str) -> None:
    import ldm_batch

    try:
        if name == "run_job":
            ldm_batch.run_job(list(arguments))
        else:
            for _ in ldm_batch.open_dataset(arguments[0]).images(list(arguments[1:]) or None):
                pass
    except ldm_batch.LdmBatchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _tree(folder: Path) -> dict[str, str]:
    """What stands below a folder: a digest of each file, of a link where it leads to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith("torchinductor"):  # torch's own, wherever it is imported
            continue
        if path.is_symlink():
            what = f"link to {path.readlink()}"
        elif path.is_dir():
            what = "folder"
        elif path.is_file():
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            what = "special"
        found[str(path.relative_to(folder))] = what
    return found


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """Leave signals, hooks and the command line of the process as they were."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    argv, hook = sys.argv[:], sys.unraisablehook
    try:
        yield
    finally:
        sys.argv[:], sys.unraisablehook = argv, hook
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment(mistake: Mistake, spool: Path) -> Iterator[None]:
    before, folder = dict(os.environ), tempfile.tempdir
    for name in [name for name in before if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update({"TMPDIR": str(spool), **mistake.environment})
    tempfile.tempdir = None
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        tempfile.tempdir = folder


@contextlib.contextmanager
def _rights(is_nobody: bool) -> Iterator[None]:
    """Those of everybody, also where the tests are root's."""
    if not is_nobody or os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def check(mistake: Mistake, seen: Seen) -> None:
    """Hold what was seen to what a user may expect: one message with thing and remedy, the right
    code, nothing stored, and no wait for what is not needed."""
    told = f"{mistake.words}: exit {seen.code}\n{seen.out}{seen.err}"
    assert seen.code == mistake.code, told
    starts = [line for line in seen.err.splitlines() if re.match(r"(python -m.*: )?error: ", line)]
    assert len(starts) == 1, told
    before = seen.err[: seen.err.index(starts[0])]
    assert not before or before.startswith("usage: "), told
    assert "Traceback" not in seen.err + seen.out, told
    missing = [piece for piece in mistake.told if piece not in seen.err]
    assert not missing, f"{missing} not in {told}"
    assert seen.stored == [], told
    assert set(seen.imported) <= set(mistake.imports), f"{seen.imported} imported by {told}"


def named(mistakes: Sequence[Mistake]) -> list[str]:
    """A name for each, with the number by which `see_all` returns them."""
    return [f"{number}-{mistake.words[:70]}" for number, mistake in enumerate(mistakes)]


# What is there beforehand


def prompts(name: str = "in/a.parquet", num: int = 10, **columns: Any) -> Give:
    """A table of prompts, or of other columns."""

    def give(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(columns or {"prompt": [f"row {row}" for row in range(num)]})
        pq.write_table(table, folder / name)

    return give


def file(name: str, content: bytes | str = b"junk") -> Give:
    """A file of some bytes."""

    def give(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return give


def empty(name: str) -> Give:
    """A folder with nothing in it."""
    return lambda folder: (folder / name).mkdir(parents=True)


def gone(name: str) -> Give:
    """What was there is not any more."""

    def give(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return give


def cut(name: str, num_bytes: int) -> Give:
    """A file ends after so many bytes."""
    return lambda folder: os.truncate(folder / name, num_bytes)


def closed(name: str, mode: int = 0o555) -> Give:
    """A file or folder that not everybody may write, or read."""
    return lambda folder: (folder / name).chmod(mode)


JOB = "run conf=machinery cluster=in_process source.uri=in sink.uri=out"
_made: dict[str, Path] = {}


def dataset(folder: Path) -> None:
    """A dataset of ten prompts in `out`, and its input in `in`; made once and copied."""
    if not _made:
        place = Path(tempfile.mkdtemp())
        with contextlib.chdir(place):
            prompts()(place)
            code, _, err = _end([*JOB.split(), "rows_per_shard=5"])
            assert code == 0, err
        _made["dataset"] = place
    shutil.copytree(_made["dataset"], folder, dirs_exist_ok=True)
    folder.chmod(0o755)


def main() -> None:
    """See the mistakes of the module that is named."""
    importlib.invalidate_caches()
    mistakes: list[Mistake] = importlib.import_module(sys.argv[1]).MISTAKES
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o755)
        for number, mistake in enumerate(mistakes):
            seen = see(mistake, Path(above, str(number)))
            print(json.dumps(asdict(seen)), flush=True)


if __name__ == "__main__":
    sys.modules.setdefault("mistakes", sys.modules["__main__"])
    main()
