"""What the local Hub keeps: repositories of a model, data set or space, with their commits and tags."""

import dataclasses
import hashlib
import json
from typing import Any


class Refusal(Exception):
    """An answer other than 200: its status, the Hub's code for it, and what it says."""

    def __init__(self, status: int, code: str, message: str = ""):
        self.status, self.code, self.message = status, code, message or code


@dataclasses.dataclass(frozen=True)
class Blob:
    """A file's content, and whether it is kept as LFS does."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Git's id of the file, or of the pointer that stands for it."""
        content = self.content
        if self.lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n"
            content = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def describe(self, path: str) -> dict[str, Any]:
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}} if self.lfs else {}
        return {"type": "file", "path": path, "size": len(self.content), "oid": self.oid, **lfs}


class Repository:
    """Commits (files by path), the branch main and tags of a model, data set or space."""

    def __init__(self, kind: str, repo_id: str, private: bool):
        self.kind, self.id, self.private, self.gated = kind, repo_id, private, False
        self.commits: dict[str, dict[str, Blob]] = {}
        self.log: list[tuple[str, str]] = []  # (commit, message), the first one first
        self.tags: dict[str, str] = {}
        self.commit({".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)}, "initial")

    @property
    def head(self) -> str:
        return self.log[-1][0]

    @property
    def files(self) -> dict[str, Blob]:
        return self.commits[self.head]

    def commit(self, files: dict[str, Blob], message: str) -> str:
        facts = [self.kind, self.id, len(self.log), message, sorted((path, blob.oid) for path, blob in files.items())]
        sha = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
        self.commits[sha] = files
        self.log.append((sha, message))
        return sha

    def resolve(self, revision: str) -> str:
        """The commit of a branch, tag or commit."""
        revision = revision.removeprefix("refs/heads/")
        if revision == "main":
            return self.head
        if revision not in self.tags and revision not in self.commits:
            raise Refusal(404, "RevisionNotFound")
        return self.tags.get(revision, revision)
