"""A Hugging Face hub on this machine: the part of its HTTP API that downloads and uploads of a model repository use.

Checked against the real client, which is what the tests run. Large files go by git LFS, as without ``hf_xet``.
"""

import base64
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens: one that may write below ``owner``, and one that may only read."""
Files = dict[str, bytes]


@dataclasses.dataclass
class Repository:
    """Commits of a repository, oldest first, and the names of some."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = dataclasses.field(default_factory=dict)
    refs: dict[str, str] = dataclasses.field(default_factory=dict)

    def commit(self, files: Files) -> str:
        """Adds a commit with these files to ``main``."""
        oid = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[oid] = files
        self.refs["main"] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        """A revision as a commit."""
        return revision if revision in self.commits else self.refs.get(revision)

    @property
    def newest(self) -> Files:
        """The files of ``main``."""
        return self.commits[self.refs["main"]]


class RefusedError(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str = "", message: str = "", **body: str) -> None:
        super().__init__(code)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}
        self.body = json.dumps({"error": message, **body}).encode()


class Hub:
    """Repositories by name, uploaded LFS objects by hash, and what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken = False
        self.url = ""

    def find(self, name: str, token: str | None) -> Repository:
        """A repository that a token may read; the hub does not say which are private."""
        found = self.repositories.get(name)
        if found is None or (found.private and token not in (WRITER, READER)):
            raise RefusedError(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if found.gated and token != WRITER:
            raise RefusedError(403, "GatedRepo", "Access to this model is restricted")
        return found


Answer = tuple[int, dict[str, str], bytes]


def as_json(content: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def answer(self) -> None:
        """Finds the route of a request and sends its answer."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if self.hub.broken:
                raise RefusedError(500, "", "out of order")
            if self.token not in (None, WRITER, READER):
                raise RefusedError(401, "", "Invalid credentials in Authorization header")
            status, headers, content = self.route(path, body)
        except RefusedError as refused:
            status, headers, content = refused.status, refused.headers, refused.body
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def route(self, path: str, body: bytes) -> Answer:
        repository = r"/(?:api/models/)?([\w.-]+/[\w.-]+?)"
        routes: dict[str, Callable[..., Answer]] = {
            r"POST /api/repos/create": self.create,
            r"POST /api/validate-yaml": self.validate,
            rf"GET {repository}/tree/([^/]+)": self.tree,
            rf"POST {repository}/preupload/([^/]+)": self.preupload,
            rf"POST {repository}/commit/([^/]+)": self.commit,
            rf"POST {repository}\.git/info/lfs/objects/batch": self.batch,
            r"PUT /lfs/(\w+)": self.store,
            rf"(?:GET|HEAD) {repository}/resolve/([^/]+)/(.+)": self.resolve,
            r"GET /api/models/([\w.-]+/[\w.-]+)(?:/revision/(.+))?": self.info,
        }
        for pattern, method in routes.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(*found.groups(), body=body)
        raise RefusedError(404, "EntryNotFound")

    def info(self, name: str, revision: str | None, body: bytes) -> Answer:
        found = self.hub.find(name, self.token)
        oid = found.resolve(revision or "main")
        if oid is None:
            raise RefusedError(404, "RevisionNotFound")
        siblings = [{"rfilename": path} for path in found.commits[oid]]
        return as_json({"_id": name, "id": name, "sha": oid, "private": found.private, "siblings": siblings})

    def tree(self, name: str, revision: str, body: bytes) -> Answer:
        found = self.hub.find(name, self.token)
        oid = found.resolve(revision)
        assert oid is not None
        return as_json([entry(path, content) for path, content in found.commits[oid].items()])

    def resolve(self, name: str, revision: str, path: str, body: bytes) -> Answer:
        found = self.hub.find(name, self.token)
        oid = found.resolve(revision)
        if oid is None or path not in found.commits[oid]:
            raise RefusedError(404, "EntryNotFound")
        content = found.commits[oid][path]
        return 200, {"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content

    def writable(self, name: str) -> None:
        if self.token is None:
            raise RefusedError(401, "", "Invalid username or password.")
        if self.token != WRITER or not name.startswith("owner/"):
            raise RefusedError(403, "", "You don't have the rights to create a model under this namespace")

    def create(self, body: bytes) -> Answer:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self.writable(name)
        if name in self.hub.repositories:
            raise RefusedError(409, "", "You already created this model repo", url=f"{self.hub.url}/{name}")
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs"})
        return as_json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def validate(self, body: bytes) -> Answer:
        front = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        errors = [{"message": f"{key} is missing"} for key in ("library_name", "tags") if key not in front]
        status, headers, content = as_json({"errors": errors, "warnings": []})
        return (400 if errors else status), headers, content

    def preupload(self, name: str, revision: str, body: bytes) -> Answer:
        self.writable(name)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return as_json({"files": modes})

    def batch(self, name: str, body: bytes) -> Answer:
        self.writable(name)
        return as_json(
            {
                "transfer": "basic",
                "objects": [
                    {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ],
            }
        )

    def store(self, oid: str, body: bytes) -> Answer:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        return 200, {}, b""

    def commit(self, name: str, revision: str, body: bytes) -> Answer:
        self.writable(name)
        found = self.hub.find(name, self.token)
        files = dict(found.newest)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = found.commit(files)
        return as_json({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file in the listing of a tree."""
    found = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(".safetensors"):
        oid = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return found


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub at ``hub.url`` for the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
