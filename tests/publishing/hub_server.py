"""A Hub on this machine: the protocol that `huggingface_hub` speaks, with checks of all that arrives, and faults."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

TOKEN = "hf_" + "s3cret" * 5
READ_TOKEN = "hf_" + "reader" * 5
USER = "me"


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """Branches are names of commits, commits are whole states: path -> (content, is it in the large file storage)."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, tuple[bytes, bool]]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    storage: dict[str, bytes] = field(default_factory=dict)
    proposals: list[tuple[str, str]] = field(default_factory=list)  # author and title of pull requests 1, 2, ...

    def add(self, branch: str, state: dict, message: str) -> str:
        commit = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = state, commit
        self.messages.append(message)
        return commit

    def resolve(self, revision: str) -> str | None:
        found = self.branches.get(revision) or self.tags.get(revision)
        return found or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: content for path, (content, _) in self.commits[self.resolve(revision)].items()}


@dataclass
class Fault:
    """The next `times` requests of that method and path get `status`, or lose their connection if it is `None`."""

    method: str
    path: str
    status: int | None
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    done: bool = False  # the server does what is asked, and only then fails


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", errors: list | None = None):
        self.status, self.code, self.message = status, code, message
        self.body = {"error": message} if errors is None else {"errors": errors, "warnings": []}


class HubServer:
    """Attributes: `repos`, `requests` (method, path, bytes of the body), `faults`, `problems` (protocol broken)."""

    def __init__(self, rules):
        self.rules, self.repos, self.requests, self.faults, self.problems = rules, {}, [], [], []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, -1

            def log_message(self, *_):
                pass

            def do_GET(self):
                hub._handle(self)

            do_HEAD = do_POST = do_PUT = do_GET

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def sent(self, method: str, pattern: str) -> list[tuple[str, str, int]]:
        """Requests of that method whose path matches."""
        return [request for request in self.requests if request[0] == method and re.search(pattern, request[1])]

    # One request

    def _handle(self, request) -> None:
        path = unquote(urlsplit(request.path).path)
        length = int(request.headers.get("Content-Length") or 0)
        matching = (f for f in self.faults if f.times and f.method == request.command and re.search(f.path, path))
        fault = next(matching, None)
        if fault is not None:
            fault.times -= 1
            if fault.status is None and not fault.done:
                self.requests.append((request.command, path, len(request.rfile.read(length // 2))))
                return self._cut(request)
        body = self._body(request, length)
        self.requests.append((request.command, path, len(body)))
        try:
            if fault is not None and not fault.done:
                message = "Invalid credentials in Authorization header" if fault.status == 401 else "injected"
                return self._send(request, fault.status, b"", {"X-Error-Message": message, **fault.headers})
            answer = self._route(request, path, body)
        except Refusal as refusal:
            errors = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            return self._send(request, refusal.status, json.dumps(refusal.body).encode(), errors)
        if fault is not None:
            return self._cut(request)
        return self._send(request, 200, *answer)

    def _body(self, request, length: int) -> bytes:
        if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return request.rfile.read(length)
        pieces = []
        while size := int(request.rfile.readline(), 16):
            pieces.append(request.rfile.read(size))
            request.rfile.readline()
        request.rfile.readline()
        return b"".join(pieces)

    def _cut(self, request) -> None:
        request.close_connection = True
        request.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, request, status: int, data: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            if value:
                request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)

    # Routes

    def _route(self, request, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        method = "GET" if request.command == "HEAD" else request.command
        if method == "PUT":
            return self._store(request, path, body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(request, self._readable(request, match[1]), match[2], match[3])
        for pattern, handler in self.ROUTES.items():
            verb, _, place = pattern.partition(" ")
            match = re.fullmatch(place, urlsplit(request.path).path)
            if match and verb == method:
                given = json.loads(body) if body and "/commit/" not in path else body
                answer = handler(self, request, given, *map(unquote, match.groups()))
                return json.dumps(answer).encode(), {"Content-Type": "application/json"}
        if method != "GET":  # the library asks for news of its own
            self.problems.append(f"unknown request {method} {path}")
        raise Refusal(404)

    def _user(self, request) -> str | None:
        header = request.headers.get("Authorization")
        if header is None:
            return None
        if header not in (f"Bearer {TOKEN}", f"Bearer {READ_TOKEN}"):
            raise Refusal(401, message="Invalid credentials in Authorization header")
        return header.removeprefix("Bearer ")

    def _readable(self, request, name: str) -> Repository:
        token = self._user(request)
        repo = self.repos.get(name)
        if repo is None or (repo.private and token is None):
            raise Refusal(401 if token is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def _writable(self, request, name: str) -> Repository:
        repo = self._readable(request, name)
        if self._user(request) != TOKEN or not name.startswith(f"{USER}/"):
            raise Refusal(403, message="You don't have the rights to write here")
        return repo

    def _commit_of(self, repo: Repository, revision: str) -> str:
        commit = repo.resolve(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _whoami(self, request, _given):
        token = self._user(request)
        if token is None:
            raise Refusal(401, message="Invalid username or password.")
        role = "write" if token == TOKEN else "read"
        return {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": role}}}

    def _create(self, request, given):
        namespace = given.get("organization") or USER
        name = f"{namespace}/{given['name']}"
        if self._user(request) != TOKEN or namespace != USER:
            raise Refusal(403, message=f"You don't have the rights to create a model under the namespace {namespace!r}")
        if name in self.repos:
            raise Refusal(409, message="You already created this model repo")
        private = given.get("visibility") == "private" or given.get("private") is True
        self.repos[name] = Repository(private)
        self.repos[name].add("main", {".gitattributes": (b"*.safetensors filter=lfs\n", False)}, "initial commit")
        return {"url": f"{self.url}/{name}", "name": name}

    def _info(self, request, _given, name, revision="main"):
        repo = self._readable(request, name)
        commit = self._commit_of(repo, revision)
        files = repo.commits[commit].items()
        siblings = [{"rfilename": path, "blobId": git_hash(data), "size": len(data)} for path, (data, _) in files]
        return {"id": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []}

    def _discussions(self, request, _given, name):
        repo, asked = self._readable(request, name), dict(parse_qsl(urlsplit(request.path).query))
        if (asked.get("type"), asked.get("status")) != ("pull_request", "open"):
            self.problems.append(f"all discussions are asked for: {asked}")
        known = {"createdAt": "2024-01-01T00:00:00.000Z", "status": "open", "isPullRequest": True}
        known["repo"] = {"name": name, "type": "model"}
        found = [
            {"num": number, "title": title, "author": {"name": author}, **known}
            for number, (author, title) in enumerate(repo.proposals, start=1)
            if author == asked.get("author", author)
        ]
        return {"discussions": found, "count": len(found), "start": 0}

    def _refs(self, request, _given, name):
        repo = self._readable(request, name)

        def listed(kind, found):
            return [{"name": key, "ref": f"refs/{kind}/{key}", "targetCommit": value} for key, value in found.items()]

        return {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []}

    def _branch(self, request, given, name, branch):
        repo = self._writable(request, name)
        if branch in repo.branches:
            raise Refusal(409, message="Reference already exists")
        repo.branches[branch] = self._commit_of(repo, given.get("startingPoint", "main"))
        return {}

    def _tree(self, request, _given, name, revision, folder=""):
        repo = self._readable(request, name)
        files = repo.commits[self._commit_of(repo, revision)]
        found = {path: data for path, (data, _) in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if not found:
            raise Refusal(404, "EntryNotFound", "no such folder")
        return [{"type": "file", "path": p, "size": len(data), "oid": git_hash(data)} for p, data in found.items()]

    def _validate_card(self, request, given):
        if given.get("repoType") != "model":
            self.problems.append(f"validate-yaml of {given.get('repoType')}")
        errors = self.rules.card_errors(given["content"])
        if errors:
            raise Refusal(400, errors=[{"message": error} for error in errors])
        return {"errors": [], "warnings": []}

    def _preupload(self, request, given, name, revision):
        repo = self._writable(request, name)
        state = repo.commits[self._commit_of(repo, revision)]
        answers = []
        for file in given["files"]:
            sample = base64.b64decode(file["sample"])
            if len(sample) != min(512, file["size"]):
                self.problems.append(f"{file['path']}: {len(sample)} bytes of sample")
            large = file["path"].endswith(".safetensors") or b"\0" in sample or file["size"] > 10 * 2**20
            answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if file["path"] in state:
                data = state[file["path"]][0]
                answer["oid"] = hashlib.sha256(data).hexdigest() if large else git_hash(data)
            answers.append(answer)
        return {"files": answers}

    # Large files

    def _batch(self, request, given, name):
        repo = self._writable(request, name)
        if given["operation"] != "upload" or given["hash_algo"] != "sha256":
            self.problems.append(f"LFS batch: {given}")
        objects = []
        for wanted in given["objects"]:
            if not re.fullmatch("[0-9a-f]{64}", wanted["oid"]) or wanted["size"] < 1:
                raise Refusal(422, message="object is not valid")
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repo.storage:
                place = f"{name}/{wanted['oid']}/{wanted['size']}"
                answer["actions"] = {
                    "upload": {"href": f"{self.url}/storage/{place}?X-Amz-Signature=sign", "header": {}},
                    "verify": {"href": f"{self.url}/storage-verify/{name}", "header": {}},
                }
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def _store(self, request, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        match = re.fullmatch(r"/storage/([^/]+/[^/]+)/([0-9a-f]{64})/(\d+)", path)
        if match is None or "X-Amz-Signature=sign" not in request.path:
            raise Refusal(403, message="not signed")
        if "Authorization" in request.headers:
            self.problems.append("the token went to the storage")
        if len(body) != int(match[3]) or hashlib.sha256(body).hexdigest() != match[2]:
            self.problems.append(f"{match[2]}: {len(body)} bytes instead of {match[3]}, or others")
            raise Refusal(400, message="checksum mismatch")
        self.repos[match[1]].storage[match[2]] = body
        return b"", {"ETag": f'"{match[2]}"'}

    def _verify(self, request, given, name):
        stored = self._writable(request, name).storage.get(given["oid"])
        if stored is None or len(stored) != given["size"]:
            raise Refusal(404, message="not there")
        return {}

    # Commits

    def _commit(self, request, body: bytes, name, branch):
        repo = self._writable(request, name)
        if branch not in repo.branches:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        lines = [json.loads(line) for line in body.splitlines()]
        header, changes = lines[0], lines[1:]
        if header["key"] != "header" or not header["value"]["summary"] or not changes:
            raise Refusal(400, message="a commit has a summary and changes")
        state = dict(repo.commits[repo.branches[branch]])
        for change in changes:
            self._apply(repo, state, change["key"], change["value"])
        oid = repo.add(branch, state, header["value"]["summary"])
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}

    def _apply(self, repo: Repository, state: dict, key: str, value: dict) -> None:
        path = value["path"]
        if key == "deletedFile":
            if path not in state:
                raise Refusal(400, "EntryNotFound", "A file with this name doesn't exist")
            del state[path]
        elif key == "lfsFile":
            stored = repo.storage.get(value["oid"])
            if stored is None or len(stored) != value["size"] or value["algo"] != "sha256":
                raise Refusal(400, message=f"LFS pointer of {path} points to a file that does not exist")
            state[path] = (stored, True)
        elif key == "file":
            data = base64.b64decode(value["content"])
            errors = ["a binary file belongs into the storage"] if b"\0" in data else []
            errors += self.rules.card_errors(data.decode()) if path == "README.md" else []
            errors += self.rules.eval_result_errors(data.decode()) if path.startswith(".eval_results/") else []
            if errors:
                raise Refusal(400, message=f"{path}: {'; '.join(errors)}")
            state[path] = (data, False)
        else:
            raise Refusal(400, message=f"unknown change {key}")

    # Reading

    def _file(self, request, repo: Repository, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        commit = self._commit_of(repo, revision)
        if path not in repo.commits[commit]:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        data, large = repo.commits[commit][path]
        etag = hashlib.sha256(data).hexdigest() if large else git_hash(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Content-Length": str(len(data))}
        return data, headers

    ROUTES: ClassVar[dict[str, Callable]] = {
        "GET /api/whoami-v2": _whoami,
        "POST /api/repos/create": _create,
        "POST /api/validate-yaml": _validate_card,
        "GET /api/models/([^/]+/[^/]+)": _info,
        "GET /api/models/([^/]+/[^/]+)/revision/([^/]+)": _info,
        "GET /api/models/([^/]+/[^/]+)/discussions": _discussions,
        "GET /api/models/([^/]+/[^/]+)/refs": _refs,
        "GET /api/models/([^/]+/[^/]+)/tree/([^/]+)": _tree,
        "GET /api/models/([^/]+/[^/]+)/tree/([^/]+)/(.+)": _tree,
        "POST /api/models/([^/]+/[^/]+)/branch/(.+)": _branch,
        "POST /api/models/([^/]+/[^/]+)/preupload/(.+)": _preupload,
        "POST /api/models/([^/]+/[^/]+)/commit/(.+)": _commit,
        r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": _batch,
        "POST /storage-verify/([^/]+/[^/]+)": _verify,
    }
