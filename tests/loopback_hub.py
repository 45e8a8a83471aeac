"""A Hugging Face Hub on the loopback interface: answers the calls that huggingface_hub makes to publish and to load.

It stores what arrives, so that a test compares bytes, and can refuse or break off calls.
"""

import base64
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

TOKEN = "hf_loopback"
PART = 60_000  # bytes of one part of a large file


@dataclass
class Repository:
    """Files by name, which of them are large, and how many commits there were."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    large: set[str] = field(default_factory=set)
    commits: list[dict] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{len(self.commits)}{sorted(self.files)}".encode()).hexdigest()


@dataclass
class Hub:
    """The server's state.

    `refuse` maps a part of a call such as "POST /api/repos" to the HTTP status it gets. A call with `pause` in it sets
    `paused`, waits for `resume` and gets no answer. With `xet_store` large files may go there by Xet, and then this
    server knows only their SHA-256, which stands in for their bytes.
    """

    address: str = ""
    role: str = "write"
    repositories: dict[str, Repository] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    pause: str | None = None
    xet_store: Path | None = None
    paused: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)

    def count(self, text: str) -> int:
        return sum(text in call for call in self.calls)

    def environment(self, home: Path, **changes: str | None) -> dict[str, str]:
        """Of a process that knows this hub only."""
        offline = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}
        values = {
            **{
                name: value for name, value in os.environ.items() if name not in offline and "proxy" not in name.lower()
            },
            "HF_ENDPOINT": self.address,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        } | changes
        return {name: value for name, value in values.items() if value is not None}


@contextmanager
def loopback_hub() -> Iterator[Hub]:
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Print no traceback, which a test would take for the client's, when the client has left."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self):
        path = urlsplit(self.path).path
        self.hub.calls.append(f"{self.command} {path}")
        body = self._body()
        if self.hub.pause and self.hub.pause in f"{self.command} {path}":
            self.hub.paused.set()
            self.hub.resume.wait(60)
            self.close_connection = True
            return None
        for text, status in self.hub.refuse.items():
            if text in f"{self.command} {path}":
                return self._answer(status, {"error": "refused by the test"})
        if "/resolve/" not in path and "/storage/" not in path and self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        words = path.strip("/").split("/")
        if words[0] == "api":
            return self._api(words[1:], body)
        if words[0] == "storage":
            return self._store(words[1], body)
        repo_id, rest = "/".join(words[:2]), words[2:]
        if rest[0] == "resolve":
            return self._resolve(repo_id, "/".join(rest[2:]))
        return self._large_files(json.loads(body))  # owner/name.git/info/lfs/objects/batch

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        blocks = []
        while size := int(self.rfile.readline(), 16):
            blocks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(blocks)

    def _answer(self, status: int, content: object, **headers: str):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _api(self, words: list[str], body: bytes):
        if words == ["whoami-v2"]:
            organizations, access = [{"name": "a-lab"}], {"accessToken": {"role": self.hub.role}}
            return self._answer(200, {"type": "user", "name": "someone", "orgs": organizations, "auth": access})
        if words == ["validate-yaml"]:
            return self._answer(200, {"warnings": [], "errors": []})
        if words == ["repos", "create"]:
            return self._create(json.loads(body))
        repo_id, action = "/".join(words[1:3]), words[3:]
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            return self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if not action or action[0] == "revision":
            siblings = [{"rfilename": name} for name in repository.files]
            facts = {"id": repo_id, "sha": repository.sha, "private": repository.private, "siblings": siblings}
            return self._answer(200, facts)
        if action[0] == "xet-write-token":
            address = f"local://{self.hub.xet_store}"
            return self._answer(200, {"casUrl": address, "accessToken": "xet", "exp": int(time.time()) + 3600})
        if action[0] == "tree" and len(action) > 2:  # of a folder, and there are none
            return self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        if action[0] == "tree":
            return self._answer(200, [_entry(repository, name) for name in repository.files])
        answer = {"preupload": self._preupload, "commit": self._commit, "paths-info": self._paths_info}.get(action[0])
        return answer(repo_id, repository, body) if answer else self._answer(501, {"error": f"no {action} here"})

    def _create(self, wanted: dict):
        repo_id = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        if repo_id in self.hub.repositories:
            url = f"{self.hub.address}/{repo_id}"
            return self._answer(409, {"error": "You already created this model repo", "url": url})
        self.hub.repositories[repo_id] = Repository(private=wanted.get("visibility") == "private")
        return self._answer(200, {"url": f"{self.hub.address}/{repo_id}", "name": repo_id})

    def _preupload(self, repo_id: str, repository: Repository, body: bytes):
        def entry(file: dict) -> dict:
            large = file["path"].endswith(".safetensors")
            found = _oid(repository, file["path"]) if file["path"] in repository.files else None
            mode = "lfs" if large else "regular"
            return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": found}

        return self._answer(200, {"files": [entry(file) for file in json.loads(body)["files"]]})

    def _large_files(self, wanted: dict):
        objects = []
        for item in wanted["objects"]:
            if item["oid"] not in self.hub.storage:
                url, size = f"{self.hub.address}/storage/{item['oid']}", item["size"]
                header = {"chunk_size": str(PART), **{str(n + 1): f"{url}-{n}" for n in range(-(-size // PART))}}
                upload = {"href": url, "header": header} if size > PART else {"href": url}
                item = {**item, "actions": {"upload": upload}}
            objects.append(item)
        return self._answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, name: str, body: bytes):
        oid, _, part = name.partition("-")
        if part:
            self.hub.parts[name] = body
            return self._answer(200, b"", ETag=f'"{part}"')
        if self.command == "POST":  # all parts have arrived
            count = len(json.loads(body)["parts"])
            body = b"".join(self.hub.parts[f"{oid}-{n}"] for n in range(count))
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.storage[oid] = body
        return self._answer(200, {})

    def _commit(self, repo_id: str, repository: Repository, body: bytes):
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", repository.sha) != repository.sha:
            return self._answer(412, {"error": "A commit has happened since."})
        for line in lines[1:]:
            name, value = line["value"]["path"], line["value"]
            if line["key"] == "deletedFile":
                del repository.files[name]
                continue
            large = line["key"] == "lfsFile"
            repository.files[name] = self._large_file(value["oid"]) if large else base64.b64decode(value["content"])
            (repository.large.add if large else repository.large.discard)(name)
        repository.commits.append(header)
        url = f"{self.hub.address}/{repo_id}/commit/{repository.sha}"
        return self._answer(200, {"commitUrl": url, "commitOid": repository.sha, "success": True})

    def _large_file(self, oid: str) -> bytes:
        return oid.encode() if self.hub.xet_store else self.hub.storage[oid]

    def _paths_info(self, repo_id: str, repository: Repository, body: bytes):
        return self._answer(200, [_entry(repository, name) for name in parse_qs(body.decode())["paths"]])

    def _resolve(self, repo_id: str, name: str):
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            return self._answer(404, {}, X_Error_Code="RepoNotFound")
        if name not in repository.files:
            return self._answer(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=repository.sha)
        etag = f'"{_oid(repository, name)}"'
        return self._answer(200, repository.files[name], ETag=etag, X_Repo_Commit=repository.sha)


def _entry(repository: Repository, name: str) -> dict:
    """A file as the Hub lists it."""
    size, oid = len(repository.files[name]), _oid(repository, name)
    lfs = {"lfs": {"oid": oid, "size": size, "pointerSize": 134}} if name in repository.large else {}
    return {"type": "file", "path": name, "size": size, "oid": oid, **lfs}


def _oid(repository: Repository, name: str) -> str:
    content = repository.files[name]
    if name in repository.large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
