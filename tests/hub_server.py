"""A model hub on loopback, in this process: as much of the protocol as a snapshot needs."""

import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO_ID = "org/model"
REVISION = "5eed" * 10
LATER = "1a7e" * 10
NOT_FETCHED = {
    "README.md": b"# A model\n",
    "pipeline.py": b"raise SystemExit('code of a model')\n",
    "unet/diffusion_pytorch_model.bin": b"a pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"another dtype",
}
"""What the repository holds besides the model; nobody may ask for it."""
JSON = {"Content-Type": "application/json"}
HARNESSES = "/api/agent-harnesses"
"""What the hub's client asks for by itself unless telemetry is off."""
DEADLINE_S = 120.0


@dataclass
class Refusal:
    """An answer in place of the right one, so many times."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 10**9
    path: str = ""
    """Only where the request's path ends so."""
    token: str | None = None
    """Only to requests without this token."""


@dataclass
class Hub:
    """What the server has, what it was asked, and how it is to misbehave."""

    files: dict[str, bytes]
    """Of `REVISION`."""
    later: dict[str, bytes] = field(default_factory=dict)
    """Of `LATER`, a commit after it."""
    main: str = REVISION
    """The commit that the branch names now."""
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of every request, in order; the file's path in the repository, `tree`,
    or what else was asked for."""
    agents: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    stalls: str | None = None
    """This file stops in its middle until `go_on` is set."""
    cuts: str | None = None
    """The connection breaks in the middle of this file, once."""
    redirects: bool = False
    """Weights lie elsewhere, behind a signed address."""
    has_stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """How often each request was made."""
        return Counter(self.requests)

    @property
    def environment(self) -> dict[str, str]:
        """What points the hub's client here."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: object) -> None:
        self.hub = hub
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.revision = LATER if LATER in path else REVISION
        files = self.hub.later if self.revision == LATER else self.hub.files
        asked = path.removeprefix(f"/{REPO_ID}/resolve/{self.revision}/")
        name = asked.removeprefix("/cdn/")
        if path == f"/api/models/{REPO_ID}/tree/{self.revision}":
            asked = name = "tree"
        if path == f"/api/models/{REPO_ID}/revision/main":
            asked = name = "main"
        self.hub.requests.append((self.command, asked))
        self.hub.agents.append(self.headers.get("User-Agent", ""))
        if (refusal := self.refusal(path)) is not None:
            self.send(refusal.status, b"{}", refusal.headers, with_body)
        elif name == "tree":
            self.send(200, listing(files), JSON, with_body, name)
        elif name == "main":
            told = {"id": REPO_ID, "sha": self.hub.main, "siblings": []}
            self.send(200, json.dumps(told).encode(), JSON, with_body, name)
        elif name == HARNESSES:
            self.send(200, b'{"standardEnvVars": [], "harnesses": {}}', {}, with_body)
        elif name not in files:
            code = "RevisionNotFound" if f"/{REPO_ID}/" in path else "RepoNotFound"
            self.send(404, b"{}", {"X-Error-Code": code}, with_body)
        else:
            self.send_file(name, files[name], with_body)

    def refusal(self, path: str) -> Refusal | None:
        for refusal in self.hub.refusals:
            has_token = self.headers.get("Authorization") == f"Bearer {refusal.token}"
            if refusal.times > 0 and path.endswith(refusal.path) and not has_token:
                refusal.times -= 1
                return refusal
        return None

    def send_file(self, name: str, data: bytes, with_body: bool) -> None:
        headers = {"ETag": f'"{etag(name, data)}"', "X-Repo-Commit": self.revision}
        if self.hub.redirects and is_large(name) and not self.path.startswith("/cdn/"):
            signed = f"{self.hub.url}/cdn/{name}?signature=canarysignature"
            linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
            self.send(302, b"", {**headers, **linked, "Location": signed}, with_body)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(206 if start else 200, data[start:], headers, with_body, name)

    def send(
        self, status: int, data: bytes, headers: dict[str, str], with_body: bool, name: str = ""
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if not with_body:
            return
        half = len(data) // 2
        self.wfile.write(data[:half])
        if name and name == self.hub.cuts:
            self.hub.cuts, self.close_connection = None, True
            return
        if name and name == self.hub.stalls:
            self.hub.has_stalled.set()
            self.hub.go_on.wait(DEADLINE_S)
        self.wfile.write(data[half:])

    def log_message(self, format: str, *arguments: object) -> None:
        logging.getLogger(__name__).debug(format, *arguments)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that were killed."""


def is_large(name: str) -> bool:
    """Tell whether a hub would keep a file apart from its git repository."""
    return name.endswith((".safetensors", ".bin"))


def etag(name: str, data: bytes) -> str:
    """SHA-256 of a large file, the id of a git blob of any other."""
    if is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def listing(files: dict[str, bytes]) -> bytes:
    """All files of the repository, as the hub's tree endpoint lists them."""
    entries: list[dict[str, object]] = [
        {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        for folder in sorted({name.split("/")[0] for name in files if "/" in name})
    ]
    for name, data in files.items():
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data)}
        entry["oid"] = hashlib.sha1(data).hexdigest()
        if is_large(name):
            entry["lfs"] = {"oid": etag(name, data), "size": len(data), "pointerSize": 134}
        entries.append(entry)
    return json.dumps(entries).encode()


def repository(folder: Path) -> dict[str, bytes]:
    """The files of a model's folder as a repository holds them, with others beside."""
    model = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {**NOT_FETCHED, **model}


@contextmanager
def hub_server(folder: Path) -> Iterator[Hub]:
    """Serve a model's folder as `REPO_ID` at `REVISION` on a free port."""
    hub = Hub(repository(folder))
    with _Server(("127.0.0.1", 0), partial(_Handler, hub)) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.go_on.set()
            server.shutdown()
            thread.join()
