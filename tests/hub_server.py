"""A hub on the loopback: an HTTP server that speaks the part of the Hugging Face hub's protocol which downloads and
uploads need, with a second origin for the file bodies, as the real one has, and with faults on request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from zoo import hub


@dataclass(frozen=True)
class Request:
    """One logged request; `origin` is "hub" or "storage"."""

    origin: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Repo:
    files: dict[tuple[str, str], str] = field(default_factory=dict)  # (revision or commit, file) -> sha256
    commits: dict[str, str] = field(default_factory=dict)  # revision -> commit
    readers: set[str] | None = None  # tokens that may read; None: public
    gated: bool = False


class HubServer:
    """Serves repositories and plain urls while its `with` block lasts.

    Attributes:
        url: the hub's address, for HF_ENDPOINT.
        requests: everything asked so far.
        pause: seconds between the pieces of 16 KiB of a body.
        ranges: whether bodies can be asked for from the middle.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.bodies: dict[str, bytes] = {}  # path on the storage origin -> content
        self.names: dict[str, str] = {}  # file names that are sent along with blobs
        self.requests: list[Request] = []
        self.pause = 0.0
        self.ranges = True
        self.writers: set[str] = set()  # tokens that may write
        self._faults: list[tuple[int | None, int]] = []  # for the next bodies: (cut after n bytes | None, status)
        self._servers = [_server(self, "hub"), _server(self, "storage")]

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage_url(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def add(self, repo: str, file: str, content: bytes, revision: str = "main") -> str:
        """Puts a file into a repository. Returns the commit under which it can also be had."""
        entry = self.repos.setdefault(repo, Repo())
        commit = hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()
        digest = hashlib.sha256(content).hexdigest()
        entry.commits |= {revision: commit, commit: commit}
        entry.files |= {(revision, file): digest, (commit, file): digest}
        self.bodies[f"/blobs/{digest}"] = content
        self.names[f"/blobs/{digest}"] = file.rpartition("/")[2]
        return commit

    def add_url(self, name: str, content: bytes) -> str:
        """Serves a plain file. Returns its address."""
        self.bodies[f"/files/{name}"] = content
        return f"{self.storage_url}/files/{name}"

    def restrict(self, repo: str, *, gated: bool, readers: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Lets only some tokens read a repository."""
        self.repos[repo].readers, self.repos[repo].gated = set(readers), gated

    def corrupt(self, content: bytes, served: bytes) -> None:
        """Serves other bytes for a file than those whose hash the hub announces."""
        self.bodies[f"/blobs/{hashlib.sha256(content).hexdigest()}"] = served

    def cut(self, after: int, times: int = 1) -> None:
        """Breaks the connection of the next bodies after so many bytes."""
        self._faults += [(after, 200)] * times

    def fail(self, status: int, times: int = 1) -> None:
        """Answers the next requests for a body with this status."""
        self._faults += [(None, status)] * times

    def downloads(self) -> list[Request]:
        """The requests for bodies so far."""
        return [request for request in self.requests if request.origin == "storage" and request.method == "GET"]


def _server(served: HubServer, name: str) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        origin = name

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            headers = {key.lower(): value for key, value in self.headers.items()}
            served.requests.append(Request(self.origin, self.command, path, headers))
            if self.origin == "hub":
                self._hub(path, headers.get("authorization", "").removeprefix("Bearer "))
            else:
                self._body(path, headers)

        def do_PUT(self) -> None:
            """Storage: the body of an upload."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            digest = urlsplit(self.path).path.rpartition("/")[2]
            fits = hashlib.sha256(body).hexdigest() == digest
            if fits:
                served.bodies[f"/blobs/{digest}"] = body
            self._answer(200 if fits else 400, {})

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            headers = {key.lower(): value for key, value in self.headers.items()}
            served.requests.append(Request(self.origin, "POST", path, headers))
            body = self.rfile.read(int(headers.get("content-length", 0)))
            token = headers.get("authorization", "").removeprefix("Bearer ")
            if token not in served.writers:
                self._refuse(403 if token else 401, "Unauthorized")
                return
            answer = self._written(path, body)
            self._answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

        def _written(self, path: str, body: bytes) -> dict[str, Any]:
            """Making a repository, asking how files are to be sent, and committing them."""
            if path == "/api/repos/create":
                about = json.loads(body)
                name = f"{about['organization']}/{about['name']}" if about.get("organization") else about["name"]
                first = hashlib.sha1(f"{name}@main".encode()).hexdigest()
                served.repos.setdefault(name, Repo(commits={"main": first, first: first}))
                return {"url": f"{served.url}/{name}", "id": name, "name": name}
            if path.endswith("/preupload/main"):
                files = json.loads(body)["files"]
                mode = {True: "lfs", False: "regular"}
                return {
                    "files": [
                        {
                            "path": f["path"],
                            "uploadMode": mode[f["path"].endswith(".safetensors")],
                            "shouldIgnore": False,
                        }
                        for f in files
                    ]
                }
            if path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                href = f"{served.storage_url}/upload/"
                sent = [{**o, "actions": {"upload": {"href": href + o["oid"]}}} for o in objects]
                return {"transfer": "basic", "objects": sent}
            if path.endswith("/commit/main"):
                repo = "/".join(path.split("/")[3:5])
                for line in map(json.loads, body.decode().splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        served.add(repo, value["path"], base64.b64decode(value["content"]))
                    elif line["key"] == "lfsFile":
                        served.add(repo, value["path"], served.bodies[f"/blobs/{value['oid']}"])
                oid = served.repos[repo].commits["main"]
                return {
                    "success": True,
                    "commitOid": oid,
                    "commitUrl": f"{served.url}/{repo}/commit/{oid}",
                    "hookOutput": "",
                }
            return {}  # validation of the card's header, and of what was sent

        def _answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command in ("GET", "POST"):
                self.wfile.write(content)

        def _refuse(self, status: int, code: str, **headers: str) -> None:
            error = {"X-Error-Code": code, "X-Error-Message": code, "Content-Type": "application/json"}
            self._answer(status, error | headers, json.dumps({"error": code}).encode())

        def _hub(self, path: str, token: str) -> None:
            """HEAD or GET /{owner}/{name}/resolve/{revision}/{file}, and GET /api/models/{owner}/{name}."""
            parts = path.removeprefix("/api/models").strip("/").split("/")
            repo = served.repos.get("/".join(parts[:2]))
            if repo is None:
                self._refuse(404 if token else 401, "RepoNotFound")
            elif repo.readers is not None and token not in repo.readers:
                self._refuse(403 if token else 401, "GatedRepo" if repo.gated else "RepoNotFound")
            elif path.startswith("/api/models"):
                files = [{"rfilename": file} for revision, file in repo.files if revision == "main"]
                about = {"id": "/".join(parts[:2]), "sha": repo.commits["main"], "siblings": files}
                self._answer(200, {"Content-Type": "application/json"}, json.dumps(about).encode())
            elif parts[3] not in repo.commits:
                self._refuse(404, "RevisionNotFound")
            elif (digest := repo.files.get((parts[3], "/".join(parts[4:])))) is None:
                self._refuse(404, "EntryNotFound", **{"X-Repo-Commit": repo.commits[parts[3]]})
            else:
                announced = {
                    "Location": f"{served.storage_url}/blobs/{digest}",
                    "ETag": f'"{repo.commits[parts[3]]}"',
                    "X-Repo-Commit": repo.commits[parts[3]],
                    "X-Linked-ETag": f'"{digest}"',
                    "X-Linked-Size": str(len(served.bodies[f"/blobs/{digest}"])),
                }
                self._answer(302, announced)

        def _body(self, path: str, headers: dict[str, str]) -> None:
            content = served.bodies.get(path)
            if content is None:
                self._refuse(404, "NotFound")
                return
            after, status = served._faults.pop(0) if self.command == "GET" and served._faults else (None, 200)
            if status != 200:
                self._refuse(status, "Fault")
                return
            etag = f'"{hashlib.md5(content).hexdigest()}"'
            answer = {"ETag": etag, "Content-Type": "application/octet-stream"}
            if path in served.names:
                answer["Content-Disposition"] = f'inline; filename="{served.names[path]}";'
            start = 0
            if served.ranges and "range" in headers and headers.get("if-range", etag) == etag:
                start = int(headers["range"].removeprefix("bytes=").partition("-")[0])
                answer["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            answer["Content-Length"] = str(len(content) - start)
            self._answer(206 if "Content-Range" in answer else 200, answer)
            end = len(content) if after is None else start + after
            for position in range(start, end, 1 << 14) if self.command == "GET" else ():
                time.sleep(served.pause)
                try:
                    self.wfile.write(content[position : min(position + (1 << 14), end)])
                except OSError:  # the client is gone
                    break
            if after is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    return server


_CLIENT = """
import json, sys
from zoo import hub
sources, progress = json.loads(sys.argv[1])
for source in sources:
    try:
        path = hub.resolve(hub.WeightSource(**source), name="some_model", progress=progress)
        print(json.dumps(["", str(path)]), flush=True)
    except hub.HubError as error:
        print(json.dumps([type(error).__name__, str(error)]), flush=True)
"""


class Client:
    """Runs `resolve` in fresh processes whose huggingface_hub talks to a HubServer (it reads its environment when it is
    imported) and has an empty home of its own.
    """

    def __init__(self, folder: Path, server: HubServer) -> None:
        self.home = folder / "hf"
        foreign = [key for key in os.environ if key.lower().endswith("_proxy") or key.startswith(("HF_", "ZOO_"))]
        kept = {key: value for key, value in os.environ.items() if key not in foreign}
        root = str(Path(hub.__file__).parents[1])
        self.environment = kept | {"HF_HOME": str(self.home), "HF_ENDPOINT": server.url, "PYTHONPATH": root}

    def start(
        self, *sources: dict[str, Any], progress: bool = False, stderr: int = subprocess.PIPE, **environment: str
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _CLIENT, json.dumps([sources, progress])]
        environment = self.environment | environment
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def __call__(self, *sources: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
        """(error's name or "", path or message) for each source."""
        process = self.start(*sources, **options)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return [tuple(json.loads(line)) for line in output.splitlines()]

    def files(self) -> list[Path]:
        """Every file with content that the caches hold, links not followed."""
        found = (path for path in self.home.rglob("*") if path.is_file() and not path.is_symlink())
        return [
            path for path in found if path.stat().st_size and path.name != "CACHEDIR.TAG" and "refs" not in path.parts
        ]
