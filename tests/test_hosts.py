"""The hosts of the tests: what is cut is cut, nothing else is, and nothing of them stays."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import finish, is_alive, kill, wait_until
from hosts import Host, Hosts, why_no_hosts

PORT = 8000

pytestmark = pytest.mark.skipif(bool(why_no_hosts()), reason=str(why_no_hosts()))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Three hosts, each of which listens."""
    with Hosts(tmp_path, os.environ) as hosts:
        for name in ("a", "b", "c"):
            host = hosts.add(name)
            command = (sys.executable, "-m", "http.server", str(PORT))
            host.start_service(tmp_path / name, *command)
        for name in ("a", "b", "c"):
            wait_until(lambda name=name: reaches(hosts[name], hosts[name]))
        yield hosts


def reaches(host: Host, other: Host) -> bool:
    """Tell whether a host can connect to another within a second."""
    try:
        with host.network(), socket.create_connection((other.address, PORT), timeout=1):
            return True
    except OSError:
        return False


def test_a_host_has_a_name_and_processes_of_its_own(hosts: Hosts) -> None:
    ended = hosts["a"].run("sh", "-c", "hostname; getent hosts b; ls -d /proc/[0-9]*")
    name, other, *processes = ended.out.splitlines()
    assert (name, other.split()) == ("a", [hosts["b"].address, "b"])
    assert "/proc/1" in processes
    assert len(processes) < 10
    assert len(hosts["a"].pids("http.server")) == 1


def test_links_are_cut_and_healed(hosts: Hosts) -> None:
    a, b, c = hosts["a"], hosts["b"], hosts["c"]
    assert reaches(a, b)
    hosts.cut("a")
    assert not reaches(a, b)
    assert not reaches(b, a)
    assert reaches(b, c)
    hosts.heal("a")
    wait_until(lambda: reaches(a, b))
    hosts.cut_between("a", "b")
    assert not reaches(a, b)
    assert not reaches(b, a)
    assert reaches(a, c)
    assert reaches(b, c)
    hosts.heal_between("a", "b")
    wait_until(lambda: reaches(a, b) and reaches(b, a))


def test_a_killed_host_is_gone_and_comes_back_with_its_address(hosts: Hosts) -> None:
    (pid,), address = hosts["a"].pids("http.server"), hosts["a"].address
    hosts.kill("a")
    assert not is_alive(pid)
    assert hosts.add("a").address == address
    wait_until(lambda: reaches(hosts["a"], hosts["b"]))


def test_hosts_end_with_the_process_that_made_them(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from hosts import Hosts\n"
        f"with Hosts(Path({str(tmp_path)!r}), os.environ) as hosts:\n"
        "    host = hosts.add('a'); host.start_service(Path('log'), 'sleep', '1000')\n"
        "    while not (found := host.pids('sleep')): pass\n"
        "    print(*found, flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert is_alive(pid)
    kill(process.pid)
    assert finish(process).code == -signal.SIGKILL
    wait_until(lambda: not is_alive(pid))
