"""A small Hugging Face Hub on 127.0.0.1, for the real client: repositories, errors, faults, a log.

It speaks the part of the Hub's HTTP API that `huggingface_hub` uses to look up, list, download and
upload model repositories. Large files are redirected to a second origin (the CDN of the real Hub),
which must never see a token. Nothing of `blockexpand` is imported here.

    with HubServer() as hub:
        hub.add_repo("org/name", folder)
        env = hub_environment(hub, tmp_path)      # for a subprocess
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
CHUNK_NBYTES = 1 << 16


@dataclass
class Request:
    """One served request; `nbytes` counts the body bytes handed to the socket."""

    method: str
    path: str
    range: str | None
    token: str | None
    origin: str
    status: int = 0
    nbytes: int = 0


@dataclass
class Fault:
    """A way to misbehave on requests whose `METHOD path` matches `pattern`, `times` times.

    `status`: answer with this status and `headers`. `cut_after`: promise the whole body, send so
    many bytes of it and end the connection (`reset`: with a TCP reset). `short_by`: announce and
    send a body that is so many bytes too short. `ignore_range`: answer 200 with the whole file.
    `shift_by`: answer a range with the one that begins so many bytes earlier, and say so.
    `then`: call this first. `stall`: wait for this event after `stall_at` bytes of the body.
    """

    pattern: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    reset: bool = False
    short_by: int = 0
    ignore_range: bool = False
    shift_by: int = 0
    stall: threading.Event | None = None
    stall_at: int = 0
    then: Callable[[], None] | None = None
    body: bytes | None = None


@dataclass
class Repo:
    """A repository: commits by id, each a map of file name to bytes, and the refs to them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    readers: set[str] = field(default_factory=set)
    # Empty: everybody.
    writers: set[str] = field(default_factory=set)
    # The sha256 of the large files that a commit may name.
    objects: set[str] = field(default_factory=set)
    region: str = "us"


class HubServer:
    """Two HTTP servers on free ports of 127.0.0.1: the Hub (`url`) and its CDN (`cdn_url`)."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: set[str] = set()
        self.roles: dict[str, str] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        # The first lines of the commits that clients made.
        self.messages: list[str] = []
        # Mirrors that know the sizes of files in their tree only, and listings in pages.
        self.lists_sizes = True
        self.tells_xet = True
        # JSON answers come as gzip.
        self.compresses = False
        # What a commit stores in the place of a large file, by its sha256.
        self.swapped: dict[str, bytes] = {}
        self.files_per_page = 1000
        self.lock = threading.RLock()
        self._servers = [self._make_server("hub"), self._make_server("cdn")]
        self._threads = [
            threading.Thread(target=s.serve_forever, args=(0.01,), daemon=True)
            for s in self._servers
        ]
        self.url, self.cdn_url = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )

    def __enter__(self) -> HubServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def add_repo(
        self,
        repo_id: str,
        folder: Path | Mapping[str, bytes],
        revision: str = "main",
        gated: bool = False,
        private_token: str | None = None,
    ) -> str:
        """Commit the files of a folder (or a map of name to bytes) and return the commit's id.

        Called again for the same repository it makes a new commit and moves `revision` to it.
        A private repository is readable with `private_token` only; a gated one lists its files to
        all, and gives them to tokens added with `allow`.
        """
        files = dict(folder) if isinstance(folder, Mapping) else read_folder(folder)
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo())
            repo.gated, repo.private = gated, private_token is not None
            if private_token is not None:
                self.allow(private_token, repo_id)
            return self._commit(repo, files, revision)

    def allow(self, token: str, repo_id: str | None = None) -> None:
        """Make a token known to the Hub and, if a repository is named, let it read that one."""
        self.tokens.add(token)
        if repo_id is not None:
            self.repos[repo_id].readers.add(token)

    def fail(self, pattern: str, **kwargs: Any) -> Fault:
        """Inject a fault; `pattern` is searched in `METHOD path` (`GET /org/name/resolve/…`)."""
        fault = Fault(pattern, **kwargs)
        self.faults.append(fault)
        return fault

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision, as the Hub holds them now."""
        repo = self.repos[repo_id]
        return repo.commits[repo.refs[revision]]

    def sent(self, pattern: str, method: str = "GET") -> int:
        """Return how many body bytes were sent for the requests whose path matches."""
        return sum(r.nbytes for r in self.seen(pattern, method))

    def seen(self, pattern: str, method: str | None = "GET") -> list[Request]:
        """Return the logged requests whose path matches."""
        with self.lock:
            return [
                r
                for r in self.requests
                if re.search(pattern, r.path) and method in (None, r.method)
            ]

    def _commit(self, repo: Repo, files: dict[str, bytes], revision: str) -> str:
        digest = hashlib.sha1(f"{len(repo.commits)}".encode())
        for name in sorted(files):
            digest.update(name.encode() + b"\0" + hashlib.sha1(files[name]).digest())
        commit = digest.hexdigest()
        repo.commits[commit] = files
        repo.refs[revision] = commit
        repo.branches[commit] = revision
        for data in files.values():
            digest = hashlib.sha256(data).hexdigest()
            self.uploads.setdefault(digest, data)
            repo.objects.add(digest)
        return commit

    def _take_fault(self, what: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, what):
                    fault.times -= 1
                    return fault
        return None

    def _make_server(self, origin: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub, Handler.origin = hub, origin
        return _Server(("127.0.0.1", 0), Handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is what some tests are about: stay silent."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without it a keep-alive connection waits 40 ms for each small answer.
    disable_nagle_algorithm = True
    hub: HubServer
    origin: str

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `HubServer.requests` is the log."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization") or ""
        self.token = authorization.removeprefix("Bearer ") or None
        self.entry = Request(
            self.command, self.path, self.headers.get("Range"), self.token, self.origin
        )
        with self.hub.lock:
            self.hub.requests.append(self.entry)
        self.fault = self.hub._take_fault(f"{self.command} {unquote(self.path)}")
        if self.fault and self.fault.then:
            self.fault.then()
        if self.fault and self.fault.status:
            self._send(self.fault.status, self.fault.body or b"{}", self.fault.headers)
        elif self.origin == "cdn":
            self._serve_cdn()
        else:
            self._serve_hub()

    # ------------------------------------------------------------------ answers

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        fault = self.fault or Fault("")
        if fault.body is not None:
            body = fault.body
        body = body[: len(body) - fault.short_by]
        self.entry.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = len(body) if fault.cut_after is None else min(fault.cut_after, len(body))
        for start in range(0, stop, CHUNK_NBYTES):
            if fault.stall is not None and start >= fault.stall_at:
                fault.stall.wait(30)
            chunk = body[start : min(start + CHUNK_NBYTES, stop)]
            self.entry.nbytes += len(chunk)
            self.wfile.write(chunk)
        if fault.cut_after is not None:
            self.wfile.flush()
            if fault.reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            self.connection.close()

    def _send_json(self, value: Any, status: int = 200, **headers: str) -> None:
        names = {name.replace("_", "-"): text for name, text in headers.items()}
        body = json.dumps(value).encode()
        if self.hub.compresses:
            body, names["Content-Encoding"] = gzip.compress(body), "gzip"
        self._send(status, body, {"Content-Type": "application/json", **names})

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(
            status,
            json.dumps({"error": message}).encode(),
            {"Content-Type": "application/json", "X-Request-Id": "Root=1-test", **headers},
        )

    def _send_file(self, data: bytes, headers: Mapping[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None or (self.fault and self.fault.ignore_range):
            self._send(200, data, {"Accept-Ranges": "bytes", **headers})
            return
        start = int(wanted[1])
        stop = min(int(wanted[2]) + 1, len(data)) if wanted[2] else len(data)
        if start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}", **headers})
            return
        shift = min(self.fault.shift_by, start) if self.fault else 0
        start, stop = start - shift, stop - shift
        place = f"bytes {start}-{stop - 1}/{len(data)}"
        self._send(206, data[start:stop], {"Content-Range": place, **headers})

    # ------------------------------------------------------------------ routes

    def _serve_cdn(self) -> None:
        path = urlsplit(self.path).path
        if self.token is not None:
            # The real storage refuses a request that carries both a signature and a token.
            self._refuse(400, None, "only one auth mechanism allowed")
        elif self.command == "PUT" and path.startswith("/upload/"):
            digest = hashlib.sha256(self.body).hexdigest()
            if digest != path.removeprefix("/upload/"):
                self._refuse(400, None, "the checksum does not match")
                return
            self.hub.uploads[digest] = self.body
            self._send(200, b"")
        else:
            data = self.hub.uploads.get(path.removeprefix("/blobs/"))
            if data is None:
                self._refuse(404, None, "no such object")
            else:
                self._send_file(data, {"ETag": '"s3"'})

    def _serve_hub(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.token is not None and self.token not in self.hub.tokens:
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif path == "/api/repos/create":
            self._create_repo(json.loads(self.body))
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif path == "/api/whoami-v2":
            self._tell_account()
        elif match := re.fullmatch(r"/api/models/(.+?)/auth-check/write", path):
            self._with_repo(match[1], self._check_write)
        elif match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/(batch|verify)", path):
            self._with_repo(match[1], lambda repo: self._lfs(match[1], match[2]))
        elif match := re.fullmatch(r"/api/models/(.+?)/(preupload|commit)/(.+)", path):
            self._with_repo(match[1], lambda repo: self._change(repo, match[1], match[2], match[3]))
        elif match := re.fullmatch(r"/api/models/(.+?)/lfs-files/duplicate", path):
            self._with_repo(match[1], lambda repo: self._duplicate(repo))
        elif match := re.fullmatch(r"/api/models/(.+?)/paths-info/(.+)", path):
            self._with_commit(match[1], match[2], self._tell_paths)
        elif match := re.fullmatch(r"/api/models/(.+?)/branch/(.+)", path):
            self._with_repo(match[1], lambda repo: self._create_branch(repo, match[2]))
        elif match := re.fullmatch(r"/api/models/(.+?)/commits/(.+)", path):
            self._with_commit(match[1], match[2], self._list_commits)
        elif match := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
            self._with_commit(match[1], match[2], self._describe)
        elif match := re.fullmatch(r"/api/models/(.+?)/tree/([^/]+(?:/pr/\d+)?)", path):
            self._with_commit(match[1], match[2], self._list_tree)
        elif match := re.fullmatch(r"/api/models/(.+)", path):
            self._with_commit(match[1], "main", self._describe)
        elif match := re.fullmatch(r"/(.+?)/resolve/((?:refs/pr/\d+)|[^/]+)/(.+)", path):
            name = match[3]
            self._with_commit(
                match[1], match[2], lambda *found: self._resolve(*found, name=name), gate=True
            )
        else:
            self._refuse(404, None, f"no route {path}")

    def _with_repo(self, repo_id: str, answer: Callable[[Repo], None]) -> None:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and self.token not in repo.readers):
            # To someone unknown the Hub does not tell a missing repository from a private one.
            if self.token is None:
                self._refuse(401, None, "Invalid username or password.")
            else:
                self._refuse(404, "RepoNotFound", "Repository not found")
        else:
            answer(repo)

    def _with_commit(
        self,
        repo_id: str,
        revision: str,
        answer: Callable[[str, Repo, str, dict[str, bytes]], None],
        gate: bool = False,
    ) -> None:
        def found(repo: Repo) -> None:
            commit = repo.refs.get(revision, revision)
            if gate and repo.gated and self.token not in repo.readers:
                status = 401 if self.token is None else 403
                self._refuse(
                    status, "GatedRepo", f"Access to model {repo_id} is restricted. Please log in."
                )
            elif commit not in repo.commits:
                self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            else:
                answer(repo_id, repo, commit, repo.commits[commit])

        self._with_repo(repo_id, found)

    def _describe(self, repo_id: str, repo: Repo, commit: str, files: dict[str, bytes]) -> None:
        blobs = "blobs=" in self.path and self.hub.lists_sizes
        siblings = [
            {"rfilename": name, **(_blob_info(name, data) if blobs else {})}
            for name, data in sorted(files.items())
        ]
        self._send_json(
            {
                "_id": "0",
                "id": repo_id,
                "modelId": repo_id,
                "sha": commit,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
            }
        )

    def _tell_paths(self, repo_id: str, repo: Repo, commit: str, files: dict[str, bytes]) -> None:
        asked = {value for name, value in parse_qsl(self.body.decode()) if name == "paths"}
        self._send_json(
            [self._entry(name, data) for name, data in sorted(files.items()) if name in asked]
        )

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        info = _blob_info(name, data)
        entry = {"type": "file", "path": name, "size": info["size"], "oid": info["blobId"]}
        if "lfs" in info:
            entry["lfs"] = {"oid": info["lfs"]["sha256"], "size": len(data), "pointerSize": 134}
            if self.hub.tells_xet:
                entry["xetHash"] = xet_hash(data)
        return entry

    def _list_commits(self, repo_id: str, repo: Repo, commit: str, files: object) -> None:
        """A branch's commits, the newest first; every other ref stands beside it."""
        branch = next((ref for ref, head in repo.refs.items() if head == commit), None)
        history = [number for number in repo.commits if repo.branches[number] == branch]
        self._send_json(
            [
                {
                    "id": number,
                    "title": "change",
                    "message": "",
                    "authors": [{"user": "user"}],
                    "date": "2026-01-01T00:00:00.000Z",
                }
                for number in reversed(history)
            ]
        )

    def _list_tree(self, repo_id: str, repo: Repo, commit: str, files: dict[str, bytes]) -> None:
        entries = [self._entry(name, data) for name, data in sorted(files.items())]
        address = urlsplit(self.path)
        start = int(dict(parse_qsl(address.query)).get("cursor", 0))
        stop = start + self.hub.files_per_page
        following = f"{self.hub.url}{address.path}?recursive=true&cursor={stop}"
        more = {"Link": f'<{following}>; rel="next"'} if stop < len(entries) else {}
        self._send_json(entries[start:stop], **more)

    def _resolve(
        self, repo_id: str, repo: Repo, commit: str, files: dict[str, bytes], *, name: str
    ) -> None:
        if name not in files:
            self._send(
                404,
                b"Entry not found",
                {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit},
            )
            return
        data = files[name]
        headers = {"X-Repo-Commit": commit}
        if name.endswith(LFS_SUFFIXES):
            digest = hashlib.sha256(data).hexdigest()
            self._send(
                302,
                b"",
                {
                    **headers,
                    "Location": f"{self.hub.cdn_url}/blobs/{digest}?Signature=secret-signature",
                    "ETag": '"redirect"',
                    "X-Linked-Etag": f'"{digest}"',
                    "X-Linked-Size": str(len(data)),
                },
            )
        else:
            self._send_file(data, {**headers, "ETag": f'"{git_blob_id(data)}"'})

    # ------------------------------------------------------------------ uploads

    def _create_branch(self, repo: Repo, branch: str) -> None:
        if branch in repo.refs:
            self._refuse(409, None, "Reference already exists")
        else:
            repo.refs[branch] = repo.refs["main"]
            self._send_json({})

    def _tell_account(self) -> None:
        if self.token is None:
            self._refuse(401, None, "Invalid username or password.")
            return
        role = self.hub.roles.get(self.token, "write")
        self._send_json(
            {
                "type": "user",
                "name": "user",
                "orgs": [{"name": "lab"}],
                "auth": {"type": "access_token", "accessToken": {"role": role}},
            }
        )

    def _check_write(self, repo: Repo) -> None:
        if self.token not in repo.writers and repo.writers:
            self._refuse(403, None, "You do not have write permission on this repository.")
        else:
            self._send_json({})

    def _create_repo(self, body: dict[str, Any]) -> None:
        owner = body.get("organization") or "user"
        repo_id = f"{owner}/{body['name']}"
        if self.token is None:
            self._refuse(401, None, "Invalid username or password.")
        elif repo_id in self.hub.repos:
            self._send_json({"error": "exists", "url": f"{self.hub.url}/{repo_id}"}, 409)
        else:
            private = body.get("private") or body.get("visibility") == "private"
            repo = self.hub.repos[repo_id] = Repo(private=bool(private), readers={self.token})
            self.hub._commit(repo, {}, "main")
            self._send_json({"url": f"{self.hub.url}/{repo_id}"})

    def _lfs(self, repo_id: str, what: str) -> None:
        asked = json.loads(self.body)
        if what == "verify":
            known = asked["oid"] in self.hub.uploads
            if known:
                self.hub.repos[repo_id].objects.add(asked["oid"])
            self._send_json({}, 200 if known else 404)
            return
        objects = []
        for item in asked["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.repos[repo_id].objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.cdn_url}/upload/{item['oid']}"},
                    "verify": {"href": f"{self.hub.url}/{repo_id}.git/info/lfs/objects/verify"},
                }
            objects.append(answer)
        self._send_json({"transfer": "basic", "objects": objects})

    def _change(self, repo: Repo, repo_id: str, what: str, revision: str) -> None:
        if self.token is None:
            self._refuse(401, None, "Invalid username or password.")
            return
        head = repo.refs[revision]
        files = dict(repo.commits[head])
        if what == "preupload":
            self._send_json(
                {
                    "files": [
                        {
                            "path": item["path"],
                            "uploadMode": "lfs"
                            if item["path"].endswith(LFS_SUFFIXES)
                            else "regular",
                            "shouldIgnore": False,
                            "oid": _remote_id(item["path"], files),
                        }
                        for item in json.loads(self.body)["files"]
                    ]
                }
            )
            return
        items = [json.loads(line) for line in self.body.splitlines()]
        for item in items:
            value = item["value"]
            if item["key"] == "header":
                self.hub.messages.append(value["summary"])
            if item["key"] == "header" and value.get("parentCommit", head) != head:
                self._refuse(412, None, "A commit has happened since.")
                return
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in repo.objects:
                    self._refuse(400, None, f"no such object {value['oid']}")
                    return
                files[value["path"]] = self.hub.swapped.get(
                    value["oid"], self.hub.uploads[value["oid"]]
                )
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        if "create_pr=1" in self.path:
            revision = f"refs/pr/{sum(ref.startswith('refs/pr/') for ref in repo.refs) + 1}"
        commit = self.hub._commit(repo, files, revision)
        url = f"{self.hub.url}/{repo_id}/commit/{commit}"
        self._send_json(
            {
                "commitUrl": url,
                "commitOid": commit,
                "success": True,
                "pullRequestUrl": f"{self.hub.url}/{repo_id}/discussions/1",
            }
        )

    def _duplicate(self, source: Repo) -> None:
        """Copy large files from a repository to another, as the Hub's storage does."""
        asked = json.loads(self.body)
        target = self.hub.repos[asked["target"]["name"]]
        if target.region != source.region:
            self._refuse(400, None, "Cannot copy files between storage regions")
            return
        failed = []
        for item in asked["files"]:
            data = self.hub.uploads.get(item["sha256"], b"")
            if item["sha256"] in source.objects and item["xetHash"] == xet_hash(data):
                target.objects.add(item["sha256"])
            else:
                failed.append({"sha256": item["sha256"], "error": "not found"})
        self._send_json({"failed": failed})


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, by its `/`-separated relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What people leave in a repository, and which of it an expansion needs.
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def safetensors_bytes(nbytes: int, name: str = "w", fill: int = 7) -> tuple[bytes, bytes]:
    """Return a file with one U8 tensor, and its header alone, written by hand."""
    text = json.dumps({name: {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}})
    header = len(text).to_bytes(8, "little") + text.encode()
    return header + bytes([fill]) * nbytes, header


def checkpoint_files(nbytes: int = 40_000, fill: int = 7) -> dict[str, bytes]:
    """Return a sharded repository with everything that people leave in one."""
    weight_map = {"a": SHARDS[0], "b": SHARDS[1]}
    wanted = {
        "config.json": b'{"model_type": "mistral", "fill": %d}' % fill,
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        SHARDS[0]: safetensors_bytes(nbytes, "a", fill)[0],
        SHARDS[1]: safetensors_bytes(nbytes // 2, "b", fill)[0],
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer.model": b"\x0a\x0b",
        "chat_template.jinja": b"{{ messages }}",
        "additional_chat_templates/tool[use].jinja": b"{{ tools }}",
        "modeling_own.py": b"raise SystemExit\n",
        "LICENSE": b"Apache",
    }
    return {**wanted, **dict.fromkeys(UNWANTED, b"\x80 a pickle, say")}


UNWANTED = (
    ".gitattributes",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model.bin.index.json",
    "consolidated.safetensors",
    "consolidated.00.pth",
    "original/params.json",
    "original/consolidated.00.pth",
    "model-q4.gguf",
    "onnx/model.onnx",
    "tf_model.h5",
    "flax_model.msgpack",
    "optimizer.pt",
    "model-fp16.safetensors",
)
WANTED = frozenset(checkpoint_files()) - frozenset(UNWANTED)


def xet_hash(data: bytes) -> str:
    """Return what stands here for the hash by which the Hub's storage knows a file."""
    return hashlib.sha256(b"xet" + data).hexdigest()


def git_blob_id(data: bytes) -> str:
    """Return the id that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _blob_info(name: str, data: bytes) -> dict[str, Any]:
    info: dict[str, Any] = {"size": len(data), "blobId": git_blob_id(data)}
    if name.endswith(LFS_SUFFIXES):
        digest = hashlib.sha256(data).hexdigest()
        info["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
    return info


def _remote_id(name: str, files: Mapping[str, bytes]) -> str | None:
    if name not in files:
        return None
    data = files[name]
    return hashlib.sha256(data).hexdigest() if name.endswith(LFS_SUFFIXES) else git_blob_id(data)


def hub_environment(hub: HubServer, home: Path, **more: str) -> dict[str, str]:
    """Return an environment in which a subprocess's `huggingface_hub` knows only this Hub."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    return {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "XDG_CACHE_HOME": str(home / "cache"),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        **more,
    }


def close_session() -> None:
    """Forget the client's connections, whatever its release calls that."""
    from huggingface_hub import utils
    from huggingface_hub.utils import _http

    close = getattr(utils, "close_session", None) or _http.reset_sessions
    close()


def use_hub(monkeypatch: Any, hub: HubServer, home: Path, **constants: Any) -> Path:
    """Point this process's `huggingface_hub` at the server and return the cache folder.

    The client reads the environment once, on import, so its constants are patched as well.
    """
    from huggingface_hub import constants as client_constants
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    # An older session has read the proxies of the environment already.
    close_session()
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(name)
    for name, value in _changes(hub, home):
        monkeypatch.setenv(name, value)
    cache = home / "hub"
    settings: dict[str, Any] = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_XET": True,
        **constants,
    }
    for name, value in settings.items():
        monkeypatch.setattr(client_constants, name, value, raising=False)
    # Releases before 1.0 have a copy of it there.
    template = "HUGGINGFACE_CO_URL_TEMPLATE"
    if hasattr(file_download, template):
        monkeypatch.setattr(file_download, template, settings[template])
    monkeypatch.setattr(
        _http,
        "_HUB_ORIGINS",
        frozenset({_http._url_origin(hub.url)}) if hasattr(_http, "_url_origin") else frozenset(),
        raising=False,
    )
    return cache


def _changes(hub: HubServer, home: Path) -> Iterable[tuple[str, str]]:
    environment = hub_environment(hub, home)
    return [
        (name, environment[name])
        for name in environment
        if os.environ.get(name) != environment[name]
    ]
