"""Hosts on one machine: network namespaces on one switch, each with its own name and processes.

A host lives as long as the pipe to its first process is open, so the kernel removes every process,
address and link of it however the tests end. Nothing touches the machine's own network.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Self

from commands import Ended, finish, wait_until
from fsspec import asyn

from ldm_batch.storage import instance

NETWORK = "192.0.2"
"""TEST-NET-1: addresses that no real host has."""
PROGRAMS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
NEW_HOST = ("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child")
PROBE = "ip link add probe0 type bridge && ip link add probe1 type veth peer name probe2"
CLONE_NEWNET = 0x40000000
RAY_PORT = 6379
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "30",
}
"""Ray gives up a silent node after about 10 s, a lost head after 30 s instead of a minute."""
RETRANSMISSIONS = 4
"""TCP ends a connection after about 6 s without an answer instead of a quarter of an hour."""
BOOT = """
mount --bind "$1/hosts" /etc/hosts
test ! -e /etc/resolv.conf || mount --bind "$1/resolv.conf" /etc/resolv.conf
mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray
hostname "$2"
ip link set lo up
trap '' CHLD
echo up
exec cat > /dev/null
"""
"""What a host does first: names from a file instead of a name server, a Ray folder of its own;
then nothing, until its standard input ends. With CHLD ignored the kernel reaps orphans."""


@cache
def why_no_hosts() -> str | None:
    """Why this machine cannot be several hosts; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "several hosts on one machine need Linux and root (network namespaces)"
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"several hosts on one machine need `{program}` (install {package})"
    probe = [*NEW_HOST, "--mount-proc", "sh", "-c", PROBE]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"network namespaces are not allowed here: {tried.stderr.strip()}"
    return None


@dataclass(eq=False)
class Host:
    """A host that is up: its name, its address, and the process that keeps it."""

    name: str
    address: str
    environment: Mapping[str, str]
    _keeper: subprocess.Popen[str]
    _init: int
    _port: str = ""
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, *command: str, folder: Path = Path("/")) -> list[str]:
        """The command line that runs a command on this host, from anywhere on the machine."""
        enter = ["nsenter", f"--target={self._init}", "--net", "--uts", "--mount", "--pid"]
        return [*enter, "env", f"--chdir={folder}", *command]

    def start(self, *command: str, folder: Path = Path("/")) -> subprocess.Popen[str]:
        """Start a command on this host."""
        line = self.command(*command, folder=folder)
        return self._start(line, subprocess.PIPE, subprocess.PIPE)

    def run(self, *command: str, folder: Path = Path("/")) -> Ended:
        """Run a command on this host to its end."""
        return finish(self.start(*command, folder=folder))

    def start_service(self, log: Path, *command: str) -> subprocess.Popen[str]:
        """Start a command that stays, its output in a file."""
        with log.open("w") as out:
            return self._start(self.command(*command), out, subprocess.STDOUT)

    def _start(self, line: list[str], out: IO[str] | int, err: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            line,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    @contextmanager
    def network(self) -> Iterator[None]:
        """Connections that this thread opens meanwhile are made from this host, those of clients of
        clouds that are made meanwhile too: their thread begins here, and stays."""
        own = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        with open(own) as before, open(f"/proc/{self._init}/ns/net") as after:
            _enter_network(after.fileno())
            loop, asyn.loop[0] = asyn.loop[0], None
            thread, asyn.iothread[0] = asyn.iothread[0], None
            instance._made.cache_clear()
            try:
                yield
            finally:
                _enter_network(before.fileno())
                asyn.loop[0], asyn.iothread[0] = loop, thread
                instance._made.cache_clear()

    def pids(self, fragment: str = "") -> list[int]:
        """Processes of this host by a part of their command line, the first process left out."""
        space, found = os.readlink(f"/proc/{self._init}/ns/pid"), []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == space:
                    line = (entry / "cmdline").read_text().replace("\0", " ")
                    if fragment in line and int(entry.name) != self._init:
                        found.append(int(entry.name))
            except OSError:  # it has just ended
                continue
        return sorted(found)

    def kill(self) -> None:
        """End the host and all its processes at once, none of them warned."""
        if self._keeper.poll() is None:
            os.kill(self._init, signal.SIGKILL)
            self._keeper.wait()
        for process in self._started:
            process.wait()


def _enter_network(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Hosts:
    """Hosts of one test or some, all on one switch. They can lose their links and their lives."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._hosts: dict[str, Host] = {}
        self._numbers: dict[str, int] = {}
        self._num_ports = 0

    def __enter__(self) -> Self:
        (self._folder / "resolv.conf").touch()
        (self._folder / "hosts").write_text("127.0.0.1 localhost\n")
        self._switch = self._boot("switch", "")
        self._ip(self._switch, "link add bridge type bridge forward_delay 0")
        self._ip(self._switch, "link set bridge up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in (*self._hosts.values(), self._switch):
            host.kill()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __contains__(self, name: str) -> bool:
        return name in self._hosts

    def add(self, name: str) -> Host:
        """Boot a host; one that was killed comes back with the address that it had."""
        number = self._numbers.setdefault(name, len(self._numbers) + 1)
        address = f"{NETWORK}.{number}"
        with (self._folder / "hosts").open("a") as names:
            names.write(f"{address} {name}\n")
        host = self._hosts[name] = self._boot(name, address)
        self._num_ports += 1
        host._port = f"port{self._num_ports}"
        mac = f"02:00:00:00:00:{number:02x}"
        veth = f"type veth peer name eth0 address {mac} netns {host._init}"
        self._ip(self._switch, f"link add {host._port} {veth}")
        self._ip(self._switch, f"link set {host._port} master bridge up")
        self._ip(host, f"addr add {address}/24 dev eth0")
        self._ip(host, "link set eth0 up")
        self._ip(host, "route add default dev eth0")
        return host

    def kill(self, name: str) -> None:
        """End a host and forget it."""
        self._hosts.pop(name).kill()

    def cut(self, name: str) -> None:
        """Take a host off the network: what is sent is lost without a word."""
        self._ip(self._switch, f"link set {self._hosts[name]._port} down")

    def heal(self, name: str) -> None:
        """Put a host on the network again."""
        self._ip(self._switch, f"link set {self._hosts[name]._port} up")

    def cut_between(self, one: str, other: str) -> None:
        """Lose all that two hosts send each other, and nothing else: it goes to nobody's card.

        Connections between them break after some seconds on both sides.
        """
        for host, peer in self._both(one, other):
            host.run("sh", "-c", f"echo {RETRANSMISSIONS} > /proc/sys/net/ipv4/tcp_retries2")
            nowhere = f"{peer.address} lladdr 02:00:00:00:ff:ff dev eth0 nud permanent"
            self._ip(host, f"neigh replace {nowhere}")

    def heal_between(self, one: str, other: str) -> None:
        """Let two hosts reach each other again."""
        for host, peer in self._both(one, other):
            self._ip(host, f"neigh del {peer.address} dev eth0")

    def _both(self, one: str, other: str) -> list[tuple[Host, Host]]:
        first, second = self._hosts[one], self._hosts[other]
        return [(first, second), (second, first)]

    def _boot(self, name: str, address: str) -> Host:
        boot = ["sh", "-ec", BOOT, "boot", str(self._folder), name]
        keeper = subprocess.Popen(
            [*NEW_HOST, "--mount-proc", *boot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "up\n", keeper.communicate()
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
        return Host(name, address, self._environment, keeper, int(children[0]))

    @staticmethod
    def _ip(host: Host, command: str) -> None:
        enter = ["nsenter", f"--target={host._init}", "--net"]
        subprocess.run([*enter, "ip", *command.split()], check=True)


def start_ray(
    host: Host, log: Path, *, head: Host | None = None, num_cpus: int = 1
) -> Callable[[], None]:
    """Start a Ray node on a host: the head of a cluster, or a worker of a head's.

    Returns:
        What waits until the node is part of its cluster.
    """
    place = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"]
    if head is not None:
        place = [f"--address={head.address}:{RAY_PORT}"]
    process = host.start_service(
        log,
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *place),
        *(f"--node-ip-address={host.address}", f"--num-cpus={num_cpus}", "--num-gpus=0"),
        *("--object-store-memory=80000000", "--disable-usage-stats"),
    )
    return lambda: wait_until(lambda: "Ray runtime started" in log.read_text(), process)
