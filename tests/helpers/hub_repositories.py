"""What the loopback Hub keeps: repositories with commits, branches and tags, and who may see them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any

LARGE = ("arrow", "bin", "ckpt", "gguf", "gz", "h5", "npy", "npz", "onnx", "parquet", "pt", "pth", "safetensors")
ATTRIBUTES = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE)
PULL_REQUESTS = "refs/pr/"  # what their branches' names begin with
EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Refusal(Exception):
    """An answer that is not the one hoped for; `code` is what the client makes its exception from."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **named}


@dataclass(frozen=True)
class Account:
    """Who a token belongs to; `writes` is the token's role, within the account's own name and its organisations."""

    name: str
    token: str
    writes: bool = True
    organisations: tuple[str, ...] = ()

    def may_write(self, repo_id: str) -> bool:
        return self.writes and self.owns(repo_id)

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.organisations)


@dataclass(frozen=True)
class Entry:
    """One file at one commit. A large one is stored by its sha256, and git has a pointer in its place."""

    content: bytes = field(repr=False)
    large: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        object_line = f"oid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return f"version https://git-lfs.github.com/spec/v1\n{object_line}".encode()

    @cached_property
    def blob_id(self) -> str:
        kept = self.pointer if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    def tree_entry(self, path: str) -> dict[str, Any]:
        told = {"type": "file", "oid": self.blob_id, "size": len(self.content), "path": path}
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return {**told, "lfs": lfs} if self.large else told

    def sibling(self, path: str, with_blob: bool) -> dict[str, Any]:
        if not with_blob:
            return {"rfilename": path}
        told = {"rfilename": path, "size": len(self.content), "blobId": self.blob_id}
        lfs = {"sha256": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return {**told, "lfs": lfs} if self.large else told


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    message: str
    author: str
    date: str
    parent: Commit | None
    entries: dict[str, Entry] = field(repr=False)

    def listed(self, under: str, recursive: bool) -> list[dict[str, Any]]:
        """Files and folders below the folder `under`, as `/tree` lists them."""
        prefix = f"{under}/" if under else ""
        folders: dict[str, str] = {}
        files = []
        for path, entry in sorted(self.entries.items()):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                folders[prefix + "/".join(parts[:depth])] = entry.blob_id
            if recursive or len(parts) == 1:
                files.append(entry.tree_entry(path))
        return [{"type": "directory", "oid": oid, "size": 0, "path": path} for path, oid in folders.items()] + files


@dataclass
class Repository:
    """A git repository, as far as the Hub shows it; `granted` are those let in to a gated one, beside its owner."""

    kind: str
    id: str
    private: bool = False
    gated: str | bool = False
    granted: set[str] = field(default_factory=set)
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def web_path(self) -> str:
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a full reference, or seven or more digits of a commit name."""
        short = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        found = self.branches.get(short) or self.tags.get(short) or self.commits.get(revision)
        if found is None and re.fullmatch(r"[0-9a-f]{7,39}", revision):
            found = next((commit for oid, commit in self.commits.items() if oid.startswith(revision)), None)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: entry.content for path, entry in self.at(revision).entries.items()}

    def commit(
        self,
        changes: Mapping[str, Entry | None],
        title: str = "commit",
        message: str = "",
        author: str = "owner",
        branch: str = "main",
    ) -> Commit:
        """A new commit on `branch`, with files added or, where there is None, taken away."""
        parent = self.branches.get(branch)
        entries = {**(parent.entries if parent else {}), **changes}
        kept = {path: entry for path, entry in entries.items() if entry is not None}
        date = (EPOCH + timedelta(seconds=len(self.commits))).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        content = [(path, entry.blob_id) for path, entry in sorted(kept.items())]
        named = json.dumps([self.id, parent.oid if parent else None, title, message, author, date, content])
        made = Commit(hashlib.sha1(named.encode()).hexdigest(), title, message, author, date, parent, kept)
        self.commits[made.oid] = self.branches[branch] = made
        return made
