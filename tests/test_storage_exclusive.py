"""Local file systems without hard links: a rename that replaces nothing, or a named mode."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ldm_batch.errors import JobError
from ldm_batch.storage import Creation, Store, exclusive, local

SMALL_DISK_BYTES = 16 * 1024 * 1024


def without_links(*_: Any, **__: Any) -> NoReturn:
    """What `os.link` does on FAT."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk as FAT is; that real ones are so is the test with one."""
    monkeypatch.setattr(os, "link", without_links)


@pytest.fixture
def vfat(tmp_path: Path) -> Iterator[Path]:
    """A small FAT disk, mounted."""
    program = shutil.which("mkfs.vfat") or shutil.which("mkfs.fat", path="/usr/sbin:/sbin")
    if program is None:
        pytest.skip("needs mkfs.vfat (dosfstools)")
    image, folder = tmp_path / "disk", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(SMALL_DISK_BYTES)
    subprocess.run([program, str(image)], check=True, capture_output=True)
    command = ["mount", "-o", "loop", "-t", "vfat", str(image), str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a FAT disk here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_rename_replaces_nothing(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in "abc")
    one.write_text("one")
    two.write_text("two")
    try:
        assert exclusive.rename_exclusively(one, three)
    except exclusive.NotExclusive as error:
        pytest.skip(f"no such rename here: {error}")
    assert not exclusive.rename_exclusively(two, three)
    assert (three.read_text(), two.read_text(), one.exists()) == ("one", "two", False)
    with pytest.raises(FileNotFoundError, match="No such file"):
        exclusive.rename_exclusively(one, two)


@pytest.mark.usefixtures("no_links")
def test_without_links_the_first_to_create_wins(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "sink"))
    assert store.prove_exclusive()
    assert store.create("data/a", b"first") is Creation.WON
    assert store.create("data/a", b"first") is Creation.LOST_TO_SAME
    assert store.create("data/a", b"second") is Creation.LOST_TO_OTHER
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: store.create("data/b", bytes([i])), range(8)))
    assert won.count(Creation.WON) == 1
    assert store.read("data/b") == bytes([won.index(Creation.WON)])
    assert store.names(".ldm_batch/tmp") == set()


@pytest.mark.usefixtures("no_links")
def test_a_disk_with_neither_is_refused_by_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any) -> NoReturn:
        raise exclusive.NotExclusive("Invalid argument")

    monkeypatch.setattr(exclusive, "rename_exclusively", cannot)
    told = "neither hard links nor a rename that replaces nothing .Invalid argument.*accept one"
    with pytest.raises(JobError, match=told):
        Store(str(tmp_path / "sink")).prove_exclusive()
    careless = Store(str(tmp_path / "sink"), allow_unconditional=True)
    assert not careless.prove_exclusive()
    assert careless.create("data/a", b"first") is Creation.WON
    assert careless.create("data/a", b"second") is Creation.LOST_TO_OTHER
    assert careless.read("data/a") == b"first"


@pytest.mark.parametrize("number", exclusive.NO_RENAME)
def test_what_the_system_says_of_no_such_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Library:
        """A C library whose rename fails so."""

        def renameat2(self, *_: Any) -> int:
            exclusive.ctypes.set_errno(number)
            return -1

        renamex_np = renameat2

    monkeypatch.setattr(exclusive.ctypes, "CDLL", lambda *_, **__: Library())
    with pytest.raises(exclusive.NotExclusive, match=r"\w"):
        exclusive.rename_exclusively(tmp_path / "a", tmp_path / "b")


def test_a_new_folder_is_synced_into_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = local._sync_folder
    monkeypatch.setattr(local, "_sync_folder", lambda path: (synced.append(path), sync(path)))
    store = Store(str(tmp_path / "new/sink"))
    store.publish("data/a", b"x", exclusive=True)
    new = [tmp_path, tmp_path / "new", tmp_path / "new/sink", tmp_path / "new/sink/data"]
    assert set(new) <= set(synced)
    synced.clear()
    store.publish("data/b", b"x", exclusive=True)
    assert synced == [tmp_path / "new/sink/data"]


def test_on_a_real_disk_without_links(vfat: Path) -> None:
    (vfat / "a").write_text("a")
    with pytest.raises(OSError, match="not permitted"):
        os.link(vfat / "a", vfat / "b")
    store = Store(str(vfat / "sink"))
    assert store.prove_exclusive()
    assert store.create("data/a", b"first") is Creation.WON
    assert store.create("data/a", b"second") is Creation.LOST_TO_OTHER
    assert store.read("data/a") == b"first"
