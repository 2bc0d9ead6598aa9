"""The real client and the loopback Hub: what goes up comes down, from the cache the second time, and fails by name."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from helpers.hub_client import pointed_at
from helpers.hub_repositories import Account
from helpers.hub_server import HubServer
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

CONFIG = json.dumps({"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4, "vocab_size": 64}).encode()
WEIGHTS = bytes(range(256)) * 800
FILES = {"config.json": CONFIG, "notes/words.txt": "Wörter\n".encode(), "model.safetensors": WEIGHTS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, content in FILES.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(content)
    return tmp_path / "folder"


def contents(snapshot: str) -> dict[str, bytes]:
    files = {path.relative_to(snapshot).as_posix(): path for path in Path(snapshot).rglob("*") if path.is_file()}
    return {path: file.read_bytes() for path, file in files.items() if path != ".gitattributes"}


def test_what_was_uploaded_comes_back_byte_for_byte(hub: HubServer, api: HfApi, folder: Path) -> None:
    assert api.create_repo("owner/head").repo_id == "owner/head"
    commit = api.upload_folder(repo_id="owner/head", folder_path=folder, commit_message="all of it")
    snapshot = snapshot_download("owner/head")
    assert contents(snapshot) == FILES
    assert Path(snapshot).name == commit.oid == api.model_info("owner/head").sha
    assert hub.count("PUT", "object") == hub.count("POST", "verify") == 1
    assert [one.title for one in api.list_repo_commits("owner/head")] == ["all of it", "initial commit"]
    siblings = {one.rfilename: one for one in api.model_info("owner/head", files_metadata=True).siblings or []}
    assert siblings["model.safetensors"].lfs is not None
    assert siblings["model.safetensors"].size == len(WEIGHTS)
    assert siblings["config.json"].lfs is None
    assert not any("authorization" in one.headers for one in hub.requests if one.kind == "object")
    assert hub.count(None, "other") == 0


def test_the_size_that_makes_a_file_large_can_be_lowered(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    with HubServer(large_above=8) as hub:
        api = pointed_at(hub, monkeypatch, tmp_path / "home", token="hf_owner")
        api.create_repo("owner/head")
        api.upload_folder(repo_id="owner/head", folder_path=folder)
        assert hub.count("PUT", "object") == 2  # the notes have eight bytes
        assert contents(snapshot_download("owner/head")) == FILES


def test_the_same_content_again_is_neither_sent_nor_committed(hub: HubServer, api: HfApi, folder: Path) -> None:
    api.create_repo("owner/head")
    first = api.upload_folder(repo_id="owner/head", folder_path=folder)
    assert api.upload_folder(repo_id="owner/head", folder_path=folder).oid == first.oid
    assert hub.count("PUT", "object") == hub.count("POST", "commit") == 1


def test_a_second_download_takes_no_content(hub: HubServer, api: HfApi) -> None:
    hub.add_repository("owner/head", FILES)
    first = snapshot_download("owner/head")
    assert hub.downloads == len(FILES) + 1  # and .gitattributes
    hub.requests.clear()
    assert snapshot_download("owner/head") == first
    assert hub.downloads == 0
    assert {one.kind for one in hub.requests} == {"info"}


def test_the_cache_serves_without_the_hub(hub: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repository("owner/head", FILES)
    snapshot = snapshot_download("owner/head")
    hub.requests.clear()
    assert snapshot_download("owner/head", local_files_only=True) == snapshot
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert snapshot_download("owner/head") == snapshot
        with pytest.raises(LocalEntryNotFoundError):
            snapshot_download("owner/other")
    assert hub.requests == []
    hub.refuse(times=100)
    assert snapshot_download("owner/head") == snapshot
    hub.stop()
    assert snapshot_download("owner/head") == snapshot


@pytest.mark.parametrize("token", ["hf_owner", False])
def test_what_is_not_there_is_named(hub: HubServer, api: HfApi, token: str | bool) -> None:
    hub.add_repository("owner/head", FILES)
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("owner/nothing", token=token)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("owner/nothing", "config.json", token=token)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("owner/head", "config.json", revision="v9", token=token)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("owner/head", "nothing.json", token=token)
    assert hub.downloads == 0


def test_a_gated_repository_lets_in_who_was_granted(hub: HubServer, api: HfApi) -> None:
    hub.add_repository("owner/head", FILES)
    api.update_repo_settings("owner/head", gated="manual")
    assert api.model_info("owner/head", token=False).gated == "manual"
    for token, status in ((False, 401), ("hf_guest", 403)):
        with pytest.raises(GatedRepoError) as refused:
            hf_hub_download("owner/head", "config.json", token=token)
        assert refused.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            snapshot_download("owner/head", token=token)
    hub.repository("owner/head").granted.add("guest")
    assert contents(snapshot_download("owner/head", token="hf_guest")) == FILES


def test_a_private_repository_needs_its_owners_token(hub: HubServer, api: HfApi, folder: Path) -> None:
    api.create_repo("owner/head", private=True)
    api.upload_folder(repo_id="owner/head", folder_path=folder)
    for token in (False, "hf_guest"):
        with pytest.raises(RepositoryNotFoundError):
            snapshot_download("owner/head", token=token)
    assert hub.downloads == 0
    assert api.model_info("owner/head").private
    assert contents(snapshot_download("owner/head")) == FILES


def test_a_revision_is_a_commit_a_tag_or_a_branch(hub: HubServer, api: HfApi) -> None:
    repository = hub.add_repository("owner/head", {"config.json": b"first"})
    first = repository.at("main").oid
    api.create_tag("owner/head", tag="v1", tag_message="as published")
    api.create_branch("owner/head", branch="next/try")
    api.upload_file(path_or_fileobj=b"second", path_in_repo="config.json", repo_id="owner/head")
    api.upload_file(path_or_fileobj=b"third", path_in_repo="config.json", repo_id="owner/head", revision="next/try")
    seen = {at: contents(snapshot_download("owner/head", revision=at)) for at in ("main", first, "v1", "next/try")}
    assert {at: files["config.json"] for at, files in seen.items()} == {
        "main": b"second",
        first: b"first",
        "v1": b"first",
        "next/try": b"third",
    }
    assert api.model_info("owner/head", revision=first[:9]).sha == first
    refs = api.list_repo_refs("owner/head")
    assert [one.name for one in refs.branches] == ["main", "next/try"]
    assert [(one.ref, one.target_commit) for one in refs.tags] == [("refs/tags/v1", first)]
    with pytest.raises(HfHubHTTPError, match="exists already"):
        api.create_tag("owner/head", tag="v1")
    api.create_tag("owner/head", tag="v1", exist_ok=True)
    api.delete_tag("owner/head", tag="v1")
    api.delete_branch("owner/head", branch="next/try")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("owner/head", revision="v1")


@pytest.mark.parametrize("part_bytes", [2**30, 60_000])
def test_an_upload_that_was_cut_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, part_bytes: int
) -> None:
    with HubServer(part_bytes=part_bytes) as hub:
        api = pointed_at(hub, monkeypatch, tmp_path / "home", token="hf_owner")
        api.create_repo("owner/head")
        hub.cut_uploads(2)
        api.upload_folder(repo_id="owner/head", folder_path=folder)
        parts = -(-len(WEIGHTS) // part_bytes)
        assert [one.status for one in hub.requests if one.method == "PUT"] == [0, 0] + [200] * parts
        assert hub.repository("owner/head").files()["model.safetensors"] == WEIGHTS
        assert hub.count("POST", "complete") == (parts > 1)


def test_an_upload_that_is_always_cut_fails_and_commits_nothing(hub: HubServer, api: HfApi, folder: Path) -> None:
    api.create_repo("owner/head")
    hub.cut_uploads(100)
    with pytest.raises(RuntimeError, match=r"model\.safetensors"):
        api.upload_folder(repo_id="owner/head", folder_path=folder)
    assert list(hub.repository("owner/head").files()) == [".gitattributes"]


def test_a_download_that_was_cut_goes_on_where_it_stopped(
    hub: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what arrived of an unfinished piece is lost
    hub.add_repository("owner/head", FILES)
    hub.cut_downloads(3, "model.safetensors")
    assert Path(hf_hub_download("owner/head", "model.safetensors")).read_bytes() == WEIGHTS
    asked = [one.headers.get("range") for one in hub.requests if one.kind == "object"]
    assert asked == [None, "bytes=102000-", "bytes=153000-", "bytes=178000-"]


def test_a_changed_byte_is_taken_as_it_comes_and_stays_in_the_cache(hub: HubServer, api: HfApi) -> None:
    """The client compares sizes, not hashes: a loader that cares has to ask for the comparison."""
    hub.add_repository("owner/head", FILES)
    hub.corrupt("model.safetensors")
    hub.corrupt("config.json")
    snapshot = snapshot_download("owner/head")
    wrong = {path for path, content in contents(snapshot).items() if content != FILES[path]}
    assert wrong == {"model.safetensors", "config.json"}
    assert contents(snapshot_download("owner/head"))["model.safetensors"] != WEIGHTS
    verified = api.verify_repo_checksums("owner/head")
    assert {one["path"] for one in verified.mismatches} == wrong
    snapshot_download("owner/head", force_download=True)
    assert contents(snapshot) == FILES
    assert api.verify_repo_checksums("owner/head").mismatches == []


def test_a_busy_hub_is_asked_again_for_a_files_place_but_not_for_its_content(hub: HubServer, api: HfApi) -> None:
    hub.add_repository("owner/head", FILES)
    hub.refuse("resolve", times=3, methods=("HEAD",))
    assert Path(hf_hub_download("owner/head", "config.json")).read_bytes() == CONFIG
    hub.refuse("object", status=503)
    with pytest.raises(HfHubHTTPError, match="503"):
        hf_hub_download("owner/head", "model.safetensors")
    assert Path(hf_hub_download("owner/head", "model.safetensors")).read_bytes() == WEIGHTS
    assert hub.faults == []


def test_transformers_loads_over_it(hub: HubServer, api: HfApi) -> None:
    from transformers import AutoConfig

    hub.add_repository("owner/head", FILES)
    assert AutoConfig.from_pretrained("owner/head").hidden_size == 48
    assert AutoConfig.from_pretrained("owner/head").hidden_size == 48
    assert hub.downloads == 1
    with pytest.raises(OSError, match="owner/nothing"):
        AutoConfig.from_pretrained("owner/nothing")


def test_a_subprocess_needs_its_environment_only(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repository("owner/head", FILES, private=True)
    script = "import huggingface_hub as h; print(h.whoami()['name'], h.snapshot_download('owner/head'))"
    environment = hub.environment(tmp_path / "home", "hf_owner")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    name, snapshot = done.stdout.split()
    assert name == "owner"
    assert Path(snapshot).is_relative_to(tmp_path / "home" / "hub")
    assert contents(snapshot) == FILES


def test_tokens_and_roles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accounts = (Account("owner", "hf_owner", organisations=("lab",)), Account("owner", "hf_reader", writes=False))
    with HubServer(accounts) as hub:
        api = pointed_at(hub, monkeypatch, tmp_path / "home")
        assert api.whoami(token="hf_owner")["orgs"][0]["name"] == "lab"
        assert api.whoami(token="hf_reader")["auth"]["accessToken"]["role"] == "read"
        with pytest.raises(HfHubHTTPError, match="Invalid user token"):
            api.whoami(token="hf_unknown")
        api.create_repo("lab/head", token="hf_owner")
        assert api.create_repo("lab/head", token="hf_owner", exist_ok=True).repo_id == "lab/head"
        for repo_id, token in (("other/head", "hf_owner"), ("owner/head", "hf_reader")):
            with pytest.raises(HfHubHTTPError, match="rights to create") as refused:
                api.create_repo(repo_id, token=token)
            assert refused.value.response.status_code == 403
        api.delete_repo("lab/head", token="hf_owner")
        assert not api.repo_exists("lab/head", token="hf_owner")


def test_commits_build_on_their_parent(hub: HubServer, api: HfApi) -> None:
    first = hub.add_repository("owner/head", FILES).at("main").oid
    api.delete_file("config.json", "owner/head", parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        api.delete_folder("notes", "owner/head", parent_commit=first)
    api.delete_folder("notes", "owner/head")
    with pytest.raises(EntryNotFoundError):
        api.delete_file("config.json", "owner/head")
    assert set(hub.repository("owner/head").files()) == {".gitattributes", "model.safetensors"}


def test_a_pull_request_is_a_branch_that_a_reader_may_open(hub: HubServer, api: HfApi) -> None:
    hub.add_repository("owner/head", FILES)
    where = {"path_in_repo": "x.bin", "repo_id": "owner/head", "token": "hf_guest"}
    with pytest.raises(HfHubHTTPError, match="may not write"):
        api.upload_file(path_or_fileobj=b"large", **where)
    opened = api.upload_file(path_or_fileobj=b"large", create_pr=True, **where)
    assert (opened.pr_num, opened.pr_revision) == (1, "refs/pr/1")
    assert "x.bin" not in hub.repository("owner/head").files()
    assert contents(snapshot_download("owner/head", revision="refs/pr/1"))["x.bin"] == b"large"
    refs = api.list_repo_refs("owner/head", include_pull_requests=True)
    assert [one.name for one in refs.branches] == ["main"]
    assert [one.ref for one in refs.pull_requests or []] == ["refs/pr/1"]


def test_listings_come_in_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with HubServer(page_entries=2) as hub:
        api = pointed_at(hub, monkeypatch, tmp_path / "home")
        hub.add_repository("owner/rows", FILES, kind="dataset")
        listed = [one.path for one in api.list_repo_tree("owner/rows", repo_type="dataset")]
        assert listed == ["notes", ".gitattributes", "config.json", "model.safetensors"]
        assert hub.count("GET", "tree") == 2
        assert set(api.list_repo_files("owner/rows", repo_type="dataset")) == {".gitattributes", *FILES}
        (found,) = api.get_paths_info("owner/rows", ["notes/words.txt", "nothing"], repo_type="dataset")
        assert found.path == "notes/words.txt"
        assert contents(snapshot_download("owner/rows", repo_type="dataset")) == FILES


def test_a_model_card_is_checked_before_it_is_taken(hub: HubServer, api: HfApi) -> None:
    hub.add_repository("owner/head")
    card = b"---\nlicense: apache-2.0\n---\n# A head\n"
    hub.card_errors = ['"license" must be one of these']
    with pytest.raises(ValueError, match="must be one of these"):
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="owner/head")
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="owner/head")
    assert hub.repository("owner/head").files()["README.md"] == card


def test_ranges_and_unchanged_files(hub: HubServer) -> None:
    repository = hub.add_repository("owner/head", FILES)
    entries = repository.at("main").entries
    address = f"{hub.url}/owner/head/resolve/main/"

    def fetch(path: str, **headers: str) -> tuple[int, bytes, str | None]:
        asked = urllib.request.Request(address + path, headers=headers)
        try:
            with urllib.request.urlopen(asked) as reply:
                return reply.status, reply.read(), reply.headers["Content-Range"]
        except urllib.error.HTTPError as refused:
            return refused.code, b"", refused.headers["Content-Range"]

    size = len(CONFIG)
    assert fetch("config.json", Range="bytes=2-5") == (206, CONFIG[2:6], f"bytes 2-5/{size}")
    assert fetch("config.json", Range="bytes=-3") == (206, CONFIG[-3:], f"bytes {size - 3}-{size - 1}/{size}")
    assert fetch("model.safetensors", Range="bytes=204000-")[1] == WEIGHTS[204000:]  # after the redirect
    assert fetch("config.json", Range=f"bytes={size}-") == (416, b"", f"bytes */{size}")
    assert fetch("config.json", **{"If-None-Match": f'"{entries["config.json"].blob_id}"'})[0] == 304
    assert fetch("model.safetensors", **{"If-None-Match": f'"{entries["model.safetensors"].sha256}"'})[0] == 304
    assert fetch("nothing.json")[0] == 404
