"""A small Hub in memory, on this machine: what the real clients ask for over HTTP, and the ways in which it can fail.

    python tests/hub/local_hub.py

serves one until it is stopped, and prints its address and the variables with which clients find it. They must be set
before the first import of huggingface_hub: it reads them then.

It knows two users by their tokens, private and gated repositories, branches, tags and commits, and uploads through the
LFS protocol alone (hence HF_HUB_DISABLE_XET). `LocalHub.faults` makes it fail for one repository.
"""

import argparse
import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from local_repository import Blob, Refusal, Repository

USER, TOKEN = "tester", "hf_tester"
TOKENS = {TOKEN: USER, "hf_stranger": "stranger"}
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".jpg", ".npz")  # as .gitattributes of new repositories has them
LICENCES = (
    "apache-2.0",
    "mit",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-3.0",
    "other",
)  # of those that the Hub knows
DATE = "2026-01-01T00:00:00.000Z"
UNAVAILABLE = "unavailable"  # 500 to whatever is asked about the repository
NO_COMMITS = "no commits"  # 500 to the commit, after all files are there
DROPPED = "dropped"  # the connection closes in the middle of a file's upload
STALLED = "stalled"  # an upload never ends
MOVED = "moved"  # somebody else commits, once, while files are on their way


class LocalHub:
    """A server on a free port, or on `port`; `close` ends it.

    Attributes:
        endpoint: its address.
        repositories: by (kind, id), such as ("model", "tester/r18").
        faults: by repository id, one of UNAVAILABLE, NO_COMMITS, DROPPED, STALLED and MOVED.
        requests: (method, path, status) of all requests so far.
    """

    def __init__(self, port: int = 0):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: dict[str, str] = {}
        self.uploads: dict[tuple[str, str], bytes] = {}  # committed or not, by repository and SHA-256
        self.requests: list[tuple[str, str, int]] = []
        self.stop_stalling = threading.Event()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to take this for the Hub, and to be logged in there."""
        variables = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return variables | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def close(self) -> None:
        self.stop_stalling.set()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request. `routes` names its method; what that returns is sent as JSON."""

    hub: LocalHub
    protocol_version = "HTTP/1.1"
    routes = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", r"/api/repos/create", "create"),
        ("PUT", r"/_lfs/(?P<repo_id>[^/]+/[^/]+)/(?P<oid>\w+)", "receive"),
        ("POST", r"/(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "prepare"),
        (
            "GET",
            r"/(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)",
            "file",
        ),
        *(
            (method, r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)" + rest, name)
            for method, rest, name in (
                ("GET", r"(?:/revision/(?P<rev>[^/]+))?", "info"),
                ("GET", r"/refs", "refs"),
                ("GET", r"/commits/(?P<rev>[^/]+)", "log"),
                ("GET", r"/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", "tree"),
                ("POST", r"/paths-info/(?P<rev>[^/]+)", "paths_info"),
                ("POST", r"/preupload/(?P<rev>[^/]+)", "preupload"),
                ("POST", r"/commit/(?P<rev>[^/]+)", "commit"),
                ("POST", r"/tag/(?P<rev>[^/]+)", "tag"),
            )
        ),
    ]

    def log_message(self, *values) -> None:
        pass

    def answer(self) -> None:
        url = urlparse(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for wanted, pattern, name in self.routes:
                match = re.fullmatch(pattern, url.path)
                if match and method == wanted:
                    given = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    self.body = b"" if name == "receive" else self.read_body()
                    self.check_faults(given.get("repo_id"))
                    return self.send_json(200, getattr(self, name)(**given))
            self.read_body()
            raise Refusal(404, "EntryNotFound")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.send_json(refusal.status, {"error": refusal.message}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def check_faults(self, repo_id: str | None) -> None:
        if self.hub.faults.get(repo_id) == UNAVAILABLE:
            raise Refusal(500, "InternalServerError", "the Hub is not well")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send_json(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        if answer is not None:
            self.send(status, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.hub.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # --- who may what ---

    def user(self) -> str | None:
        """Who asks; None for nobody. Refuses a token that it does not know."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def repository(self, kind: str, repo_id: str, *, write: bool = False) -> Repository:
        """A repository that the user may see, or write to."""
        repository, user = self.hub.repositories.get((kind, repo_id)), self.user()
        mine = user == repo_id.partition("/")[0]
        if repository is None or (repository.private and not mine):
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and not mine:
            raise Refusal(403, "", "you have no right to write there")
        return repository

    def whoami(self) -> dict[str, Any]:
        user = self.user()
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    # --- reading ---

    def info(self, kind: str, repo_id: str, rev: str = "main") -> dict[str, Any]:
        repository = self.repository(kind, repo_id)
        sha = repository.resolve(rev)
        siblings = [
            {"rfilename": path, **({"size": len(blob.content), "blobId": blob.oid} if "blobs" in self.query else {})}
            for path, blob in sorted(repository.commits[sha].items())
        ]
        facts = {"_id": "0", "id": repo_id, "modelId": repo_id, "author": repo_id.partition("/")[0], "sha": sha}
        facts |= {"private": repository.private, "gated": "manual" if repository.gated else False, "disabled": False}
        facts |= {"lastModified": DATE, "createdAt": DATE, "downloads": 0, "likes": 0, "tags": []}
        return {**facts, "siblings": siblings}

    def refs(self, kind: str, repo_id: str) -> dict[str, Any]:
        repository = self.repository(kind, repo_id)

        def listed(names: dict[str, str], where: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": sha} for name, sha in names.items()]

        branches = listed({"main": repository.head}, "heads")
        return {"branches": branches, "tags": listed(repository.tags, "tags"), "converts": []}

    def log(self, kind: str, repo_id: str, rev: str) -> list[dict[str, Any]]:
        return [
            {"id": sha, "title": message, "message": "", "authors": [{"user": USER}], "date": DATE}
            for sha, message in reversed(self.repository(kind, repo_id).log)
        ]

    def files(self, kind: str, repo_id: str, rev: str) -> dict[str, Blob]:
        repository = self.repository(kind, repo_id)
        return repository.commits[repository.resolve(rev)]

    def tree(self, kind: str, repo_id: str, rev: str, path: str = "") -> list[dict[str, Any]]:
        prefix = path.strip("/") + "/" if path.strip("/") else ""
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries, folders = [], {}
        for name, blob in sorted(self.files(kind, repo_id, rev).items()):
            if name.startswith(prefix):
                *parents, _ = name.removeprefix(prefix).split("/")
                for depth in range(1, len(parents) + 1):
                    if recursive or depth == 1:
                        folder = prefix + "/".join(parents[:depth])
                        folders[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
                if recursive or not parents:
                    entries.append(blob.describe(name))
        if prefix and not entries and not folders:
            raise Refusal(404, "EntryNotFound")
        return entries + list(folders.values())

    def paths_info(self, kind: str, repo_id: str, rev: str) -> list[dict[str, Any]]:
        files = self.files(kind, repo_id, rev)
        try:
            paths = json.loads(self.body)["paths"]
        except ValueError:
            paths = parse_qs(self.body.decode())["paths"]
        return [files[path].describe(path) for path in paths if path in files]

    def file(self, rev: str, path: str, repo_id: str, kind: str = "model") -> None:
        repository = self.repository(kind, repo_id)
        if repository.gated:
            raise Refusal(403 if self.user() else 401, "GatedRepo", "Access to this repository is restricted")
        sha = repository.resolve(rev)
        blob = repository.commits[sha].get(path)
        if blob is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": sha}
            return self.send_json(404, {"error": "Entry not found"}, headers)
        content, size = blob.content, len(blob.content)
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes", "X-Linked-Size": size}
        headers |= {"X-Linked-ETag": f'"{blob.etag}"', "Content-Type": "application/octet-stream"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not part or self.command == "HEAD":
            return self.send(200, content, {**headers, "Content-Length": size})
        first, last = int(part[1]), min(int(part[2] or size - 1), size - 1)
        self.send(206, content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{size}"})

    # --- writing ---

    def validate_card(self) -> dict[str, Any] | None:
        licence = re.search(r"^license: (.*)$", json.loads(self.body)["content"], re.MULTILINE)
        if licence and licence[1] not in LICENCES:
            error = f'"license" must be one of {", ".join(LICENCES)}'
            return self.send_json(400, {"errors": [{"message": error}], "warnings": []})
        return {"errors": [], "warnings": []}

    def create(self) -> dict[str, Any]:
        asked, user = json.loads(self.body), self.whoami()["name"]
        kind, owner = asked.get("type") or "model", asked.get("organization") or user
        repo_id = f"{owner}/{asked['name']}"
        self.check_faults(repo_id)
        if owner != user:
            raise Refusal(403, "", f"you have no right to create a repository of {owner}")
        there = (kind, repo_id) in self.hub.repositories
        if not there:
            # Clients from 2.0 on send the visibility, those before it whether it is private.
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.repositories[kind, repo_id] = Repository(kind, repo_id, private)
        prefix = "" if kind == "model" else f"{kind}s/"
        answer = {"url": f"{self.hub.endpoint}/{prefix}{repo_id}", "name": repo_id, "id": repo_id}
        return self.send_json(409, {**answer, "error": "it exists already"}) if there else answer

    def preupload(self, kind: str, repo_id: str, rev: str) -> dict[str, Any]:
        repository = self.repository(kind, repo_id, write=True)
        if self.hub.faults.get(repo_id) == MOVED:
            del self.hub.faults[repo_id]
            repository.commit({**repository.files, "theirs.txt": Blob(b"theirs", False)}, "somebody else's")
        present = repository.commits[repository.resolve(rev)]
        files = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            etag = present[path].etag if path in present else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": etag})
        return {"files": files}

    def prepare(self, repo_id: str, kind: str = "model") -> dict[str, Any]:
        self.repository(kind, repo_id, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            href = f"{self.hub.endpoint}/_lfs/{repo_id}/{wanted['oid']}"
            there = (repo_id, wanted["oid"]) in self.hub.uploads
            objects.append({**wanted, **({} if there else {"actions": {"upload": {"href": href}}})})
        return {"transfer": "basic", "objects": objects}

    def receive(self, repo_id: str, oid: str) -> dict[str, Any] | None:
        fault = self.hub.faults.get(repo_id)
        if fault in (DROPPED, STALLED):
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.hub.requests.append((self.command, self.path, 0))
            if fault == STALLED:
                self.hub.stop_stalling.wait()
            self.close_connection = True
            self.connection.close()
            return None
        content = self.read_body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "", "the content is not what was announced")
        self.hub.uploads[repo_id, oid] = content
        return {}

    def commit(self, kind: str, repo_id: str, rev: str) -> dict[str, Any]:
        repository = self.repository(kind, repo_id, write=True)
        if self.hub.faults.get(repo_id) == NO_COMMITS:
            raise Refusal(500, "InternalServerError", "the Hub is not well")
        files, message = dict(repository.files), ""
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = "\n\n".join(filter(None, (value["summary"], value.get("description"))))
                if value.get("parentCommit") not in (None, repository.head):
                    raise Refusal(412, "", "the branch has moved on")
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                files[value["path"]] = Blob(self.hub.uploads[repo_id, value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files, message)
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}/commit/{sha}"
        return {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""}

    def tag(self, kind: str, repo_id: str, rev: str) -> dict[str, Any]:
        repository, name = self.repository(kind, repo_id, write=True), json.loads(self.body)["tag"]
        if name in repository.tags:
            raise Refusal(409, "", "the tag exists already")
        repository.tags[name] = repository.resolve(rev)
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a small Hub in memory until interrupted.")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    hub = LocalHub(parser.parse_args().port)
    print(hub.endpoint, flush=True)
    print("export", *(f"{name}={value}" for name, value in hub.environment.items()), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
