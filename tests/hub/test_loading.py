"""Heads by Hub id, with the real client over HTTP: the cache, revisions, and what is said when one cannot be had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub_client import pointed_at
from helpers.hub_repositories import Account
from helpers.hub_server import HubServer
from helpers.sentences import sentence
from huggingface_hub import HfApi, constants, snapshot_download
from transformers import AutoModel

import hf_eagle3
from hf_eagle3.hub.repository import lay_out

WEIGHTS = "model.safetensors"
Load = Callable[..., Any]
ways = pytest.mark.parametrize(
    "load", [hf_eagle3.load_head, AutoModel.from_pretrained], ids=["load_head", "AutoModel"]
)


@pytest.fixture(scope="session")
def files(golden_head: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = lay_out(golden_head, tmp_path_factory.mktemp("repository"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def there(hub: HubServer, api: HfApi, files: dict[str, bytes]) -> HubServer:
    hub.add_repository("owner/head", files)
    return hub


def fetched(hub: HubServer) -> int:
    """How often the weights, or a part of them, were sent."""
    return sum(one.kind == "object" and one.method == "GET" for one in hub.requests)


def weights_in(home: Path) -> Path:
    (found,) = (path for path in home.rglob(f"snapshots/*/{WEIGHTS}"))
    return found


# ---------------------------------------------------------------------- the cache


@ways
def test_the_second_load_is_from_the_cache(there: HubServer, load: Load, golden_head: Any) -> None:
    for _ in range(2):
        head = load("owner/head")
        assert isinstance(head, hf_eagle3.Eagle3DraftModel)
        assert all(torch.equal(head.state_dict()[name], value) for name, value in golden_head.state_dict().items())
    assert fetched(there) == 1


def test_a_head_is_loaded_with_few_questions(there: HubServer) -> None:
    """One question which commit is meant, then the files; from the cache, that question alone."""
    hf_eagle3.load_head("owner/head")
    there.requests.clear()
    hf_eagle3.load_head("owner/head")
    assert [(one.kind, one.method) for one in there.requests] == [("info", "GET")]
    there.requests.clear()
    hf_eagle3.load_head("owner/head", revision=there.repository("owner/head").at("main").oid)
    assert there.requests == []


def test_a_head_with_files_missing_is_not_asked_for_them_again(hub: HubServer, api: HfApi) -> None:
    from helpers.targets import GOLDEN

    folder = GOLDEN / "eagle3_llama_head"
    names = ("config.json", "pytorch_model.bin", WEIGHTS)
    hub.add_repository(
        "owner/old", {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    )
    hf_eagle3.load_head("owner/old")
    hub.requests.clear()
    hf_eagle3.load_head("owner/old")
    assert [one.kind for one in hub.requests] == ["info"]


@ways
@pytest.mark.parametrize("how", ["environment", "argument"])
def test_offline_from_the_cache(there: HubServer, load: Load, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load("owner/head")
    there.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "environment")
    assert load("owner/head", **({} if how == "environment" else {"local_files_only": True})).config.vocab_size == 512
    assert there.requests == []


def test_offline_and_not_in_the_cache(there: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/head", local_files_only=True, revision="v1"))
    assert "owner/head at revision 'v1'" in said
    assert "local_files_only=True was given" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/head"))
    assert "the Hub is switched off (HF_HUB_OFFLINE)" in said
    assert str(tmp_path / "home" / "hub") in said
    assert there.requests == []


def test_offline_with_a_config_alone(there: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are what is missing, and not said to be missing from the Hub."""
    snapshot_download("owner/head", allow_patterns=["config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/head"))
    assert f"the cache {constants.HF_HUB_CACHE} holds none of {WEIGHTS}" in said


@ways
def test_a_hub_that_is_down_leaves_the_cache(there: HubServer, load: Load) -> None:
    load("owner/head")
    there.stop()
    assert load("owner/head").config.vocab_size == 512
    if load is hf_eagle3.load_head:
        said = sentence(OSError, lambda: load("owner/other"))
        assert f"{there.url} could not be reached for owner/other" in said
        assert "HF_ENDPOINT" in said


def test_a_hub_that_goes_down_between_two_files(there: HubServer) -> None:
    there.refuse("resolve", times=50, status=503)
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/head"))
    assert "not able to serve owner/head just now (503" in said


# ---------------------------------------------------------------------- who may


def test_no_such_repository(there: HubServer) -> None:
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/haed"))
    assert "owner/haed is no folder here, and the Hub shows no such repository to this account (404" in said
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/haed", token=False))
    assert "to a visitor without a token (401" in said
    assert "hf auth login" in said
    for wrong in ("./not/a/folder", "no/such/name"):
        assert "neither a folder here nor a repository id" in sentence(
            OSError, lambda wrong=wrong: hf_eagle3.load_head(wrong)
        )


def test_a_private_repository(hub: HubServer, api: HfApi, files: dict[str, bytes]) -> None:
    hub.add_repository("owner/secret", files, private=True)
    assert hf_eagle3.load_head("owner/secret").config.vocab_size == 512
    hub.requests.clear()
    for token, told in ((False, "hf auth login"), ("hf_guest", "pass a `token` that may read it")):
        said = sentence(
            OSError, lambda token=token: hf_eagle3.load_head("owner/secret", token=token, force_download=True)
        )
        assert told in said
    assert hub.downloads == 0


def test_a_gated_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, bytes], hub: HubServer
) -> None:
    pointed_at(hub, monkeypatch, tmp_path / "home")
    repository = hub.add_repository("owner/gated", files, gated="manual")
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/gated"))
    assert "owner/gated is gated (401" in said
    assert f"request access at {hub.url}/owner/gated, and log in" in said
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/gated", token="hf_guest"))
    assert "this account is not let in (403" in said
    assert hub.downloads == 0
    repository.granted.add("guest")
    assert hf_eagle3.load_head("owner/gated", token="hf_guest").config.vocab_size == 512


def test_a_token_that_is_none(there: HubServer) -> None:
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/head", token="hf_expired"))
    assert "401" in said
    assert "hf auth login" in said


# ---------------------------------------------------------------------- the Hub's arguments


def test_revisions(there: HubServer, api: HfApi) -> None:
    api.create_tag("owner/head", tag="v1")
    api.create_branch("owner/head", branch="next")
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/head", revision="v2"))
    assert "owner/head has no revision 'v2' (404" in said
    assert "it has main, next, v1, or name a commit" in said
    api.delete_file(WEIGHTS, "owner/head")
    for revision in ("v1", "next", there.repository("owner/head").at("v1").oid):
        assert hf_eagle3.load_head("owner/head", revision=revision).config.vocab_size == 512
    assert fetched(there) == 1
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/head"))
    assert "holds none of model.safetensors, model.safetensors.index.json, pytorch_model.bin" in said


@ways
def test_subfolder(hub: HubServer, api: HfApi, files: dict[str, bytes], load: Load) -> None:
    hub.add_repository("owner/many", {f"heads/small/{name}": content for name, content in files.items()})
    for _ in range(2):
        assert load("owner/many", subfolder="heads/small").config.vocab_size == 512
    assert fetched(hub) == 1
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/many", subfolder="heads/large"))
    assert "holds none of config.json in its folder heads/large" in said


@ways
def test_cache_dir(there: HubServer, load: Load, tmp_path: Path) -> None:
    load("owner/head", cache_dir=tmp_path / "elsewhere")
    assert weights_in(tmp_path / "elsewhere").is_file()
    assert not list((tmp_path / "home").rglob(WEIGHTS))
    load("owner/head", cache_dir=tmp_path / "elsewhere", local_files_only=True)
    assert fetched(there) == 1


@ways
def test_force_download(there: HubServer, load: Load) -> None:
    load("owner/head")
    load("owner/head", force_download=True)
    assert fetched(there) == 2


@ways
def test_token(hub: HubServer, api: HfApi, files: dict[str, bytes], load: Load) -> None:
    hub.add_repository("guest/head", files, private=True)
    with pytest.raises(OSError, match="guest/head"):
        load("guest/head")
    assert load("guest/head", token="hf_guest").config.vocab_size == 512


# ---------------------------------------------------------------------- on its way


def test_a_download_that_is_cut_goes_on(there: HubServer, monkeypatch: pytest.MonkeyPatch, golden_head: Any) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    there.cut_downloads(2, WEIGHTS)
    assert torch.equal(hf_eagle3.load_head("owner/head").fc.weight, golden_head.fc.weight)
    ranges = [one.headers.get("range") for one in there.requests if one.kind == "object"]
    assert ranges[0] is None
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in ranges[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1]


@ways
def test_damage_on_the_way_is_refused(there: HubServer, load: Load, tmp_path: Path, golden_head: Any) -> None:
    """The client compares sizes only. What it has kept stays refused, in and out of the net, and is not removed."""
    there.corrupt(WEIGHTS)
    for options in ({}, {}, {"local_files_only": True}):
        said = sentence(OSError, lambda options=options: load("owner/head", **options))
        assert f"{WEIGHTS} is not the file that the Hub announced (sha256" in said
        assert "`force_download=True`" in said
    assert weights_in(tmp_path / "home").is_file()
    assert fetched(there) == 1
    assert torch.equal(load("owner/head", force_download=True).fc.weight, golden_head.fc.weight)
    assert torch.equal(load("owner/head").fc.weight, golden_head.fc.weight)


def test_damage_of_a_small_file_is_refused(there: HubServer) -> None:
    there.corrupt("config.json")
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/head"))
    assert "config.json is not the file that the Hub announced (git's sha1" in said
    assert hf_eagle3.load_head("owner/head", force_download=True).config.vocab_size == 512


def test_damage_on_the_disk_is_refused(there: HubServer, tmp_path: Path) -> None:
    hf_eagle3.load_head("owner/head")
    path = weights_in(tmp_path / "home")
    snapshot = path.parent
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.resolve().write_bytes(content)
    for source in ("owner/head", str(snapshot)):
        assert "is not the file that the Hub announced" in sentence(OSError, lambda s=source: hf_eagle3.load_head(s))


def test_a_damaged_shard_is_refused(hub: HubServer, api: HfApi, golden_head: Any) -> None:
    golden_head.push_to_hub("owner/shards", max_shard_size="100KB")
    names = [name for name in hub.repository("owner/shards").files() if name.endswith(".safetensors")]
    assert len(names) > 1
    hub.corrupt(names[-1])
    said = sentence(OSError, lambda: hf_eagle3.load_head("owner/shards"))
    assert f"{names[-1]} is not the file that the Hub announced (sha256" in said
    with torch.no_grad():
        assert torch.equal(hf_eagle3.load_head("owner/shards", force_download=True).fc.weight, golden_head.fc.weight)


# ---------------------------------------------------------------------- what is no head


def test_an_adapter_of_a_head_that_is_gone(hub: HubServer, api: HfApi) -> None:
    config = {"base_model_name_or_path": "owner/gone", "peft_type": "LORA"}
    hub.add_repository("owner/lora", {"adapter_config.json": json.dumps(config).encode()})
    assert "owner/gone is no folder here" in sentence(OSError, lambda: hf_eagle3.load_head("owner/lora"))


def test_adapters_that_lead_nowhere(hub: HubServer, api: HfApi) -> None:
    """One that names no head, and one that names itself."""
    for name, config in (("lost", {}), ("round", {"base_model_name_or_path": "owner/round"})):
        hub.add_repository(f"owner/{name}", {"adapter_config.json": json.dumps(config).encode()})
    assert "does not say of which head" in sentence(OSError, lambda: hf_eagle3.load_head("owner/lost"))
    assert "holds an adapter of the head owner/round" in sentence(OSError, lambda: hf_eagle3.load_head("owner/round"))


def test_a_config_that_is_no_json(hub: HubServer, api: HfApi) -> None:
    hub.add_repository("owner/odd", {"config.json": b"{model_type"})
    hub.add_repository("owner/list", {"config.json": b"[1]"})
    assert "is not JSON" in sentence(OSError, lambda: hf_eagle3.load_head("owner/odd"))
    assert "holds a JSON list" in sentence(OSError, lambda: hf_eagle3.load_head("owner/list"))


def test_a_head_of_an_organisation(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An organisation's private head is for its members."""
    accounts = (Account("one", "hf_one", organisations=("lab",)), Account("two", "hf_two"))
    with HubServer(accounts) as hub:
        pointed_at(hub, monkeypatch, tmp_path / "home")
        hub.add_repository("lab/head", files, private=True)
        assert hf_eagle3.load_head("lab/head", token="hf_one").config.vocab_size == 512
        with pytest.raises(OSError, match="lab/head"):
            hf_eagle3.load_head("lab/head", token="hf_two", force_download=True)
