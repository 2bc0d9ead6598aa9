"""Pushing a head with the real client over HTTP: what arrives, when it can be seen, what is said when it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub_client import pointed_at
from helpers.hub_repositories import Account
from helpers.hub_server import HubServer
from helpers.sentences import sentence
from huggingface_hub import HfApi, ModelCard, snapshot_download
from safetensors.torch import load_file
from typer.testing import CliRunner

import hf_eagle3
from hf_eagle3.cli import app
from hf_eagle3.hub import adapters, code, push, repository
from hf_eagle3.hub.push import push_to_hub
from hf_eagle3.release import INSTALL_COMMAND

OURS = {
    *("README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_hf_eagle3.py"),
    *("custom_generate/generate.py", "custom_generate/requirements.txt"),
}
RECORDS = {"training.json", "recipe.yaml", "evaluation/cpu-speed.json"}


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_repository_holds_everything_and_comes_back_byte_for_byte(hub: HubServer, api: HfApi, trained: Path) -> None:
    head = hf_eagle3.load_head(trained)
    commit = head.push_to_hub("owner/head", commit_message="First head", commit_description="All of it.")
    pushed = hub.repository("owner/head").files()
    assert pushed.keys() - {".gitattributes"} == OURS | RECORDS
    here = repository.lay_out(head, trained.parent / "laid-out", repo_id="owner/head")
    assert {path: content for path, content in pushed.items() if path != ".gitattributes"} == content_of(here)
    there = content_of(Path(snapshot_download("owner/head")))
    assert there == pushed
    assert there["model.safetensors"] == (trained / "model.safetensors").read_bytes()
    config = json.loads(there["config.json"])
    assert config.pop("auto_map") == code.auto_map("Eagle3Config", "Eagle3DraftModel")
    assert config == json.loads((trained / "config.json").read_text())
    last = hub.repository("owner/head").at("main")
    assert (last.oid, last.title, last.message) == (commit.oid, "First head", "All of it.")


def test_saving_with_push_to_hub_pushes_all_of_it_too(
    hub: HubServer, api: HfApi, trained: Path, tmp_path: Path
) -> None:
    head = hf_eagle3.load_head(trained)
    head.save_pretrained(tmp_path / "named", push_to_hub=True, private=True, commit_message="Saved")
    made = hub.repository("owner/named")
    assert (made.private, made.at("main").title) == (True, "Saved")
    assert set(made.files()) - {".gitattributes"} == OURS | RECORDS
    head.save_pretrained(tmp_path / "named", push_to_hub=True, repo_id="owner/other")
    assert hub.repository("owner/other").files().keys() == made.files().keys()
    head.save_pretrained(tmp_path / "alone")
    assert len(hub.repositories) == 2


def test_weights_go_through_lfs_and_small_files_in_the_commit(hub: HubServer, api: HfApi, trained: Path) -> None:
    hf_eagle3.load_head(trained).push_to_hub("owner/head")
    entries = hub.repository("owner/head").at("main").entries
    assert [path for path, entry in entries.items() if entry.large] == ["model.safetensors"]
    assert hub.count("PUT", "object") == hub.count("POST", "commit") == 1


def test_the_card_is_one_that_the_hub_takes(api: HfApi, trained: Path) -> None:
    hf_eagle3.load_head(trained).push_to_hub("owner/head")
    card = ModelCard.load("owner/head")
    assert {"eagle3", "speculative-decoding"} <= set(card.data.tags or [])


def test_a_heads_own_card_and_pictures_are_kept(hub: HubServer, api: HfApi, trained: Path) -> None:
    (trained / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (trained / "speed.png").write_bytes(b"picture")
    hf_eagle3.load_head(trained).push_to_hub("owner/head")
    files = hub.repository("owner/head").files()
    assert files["README.md"] == (trained / "README.md").read_bytes()
    assert files["speed.png"] == b"picture"


def test_records_come_from_the_folder_that_is_named(
    hub: HubServer, api: HfApi, trained: Path, native_head: Path
) -> None:
    hf_eagle3.load_head(native_head).push_to_hub("owner/head", records=trained)
    assert hub.repository("owner/head").files().keys() >= RECORDS
    said = sentence(OSError, lambda: hf_eagle3.load_head(native_head).push_to_hub("owner/other", records="nowhere"))
    assert "nowhere are no folder" in said
    assert ("model", "owner/other") not in hub.repositories


def test_what_an_earlier_push_left_is_not_loaded_by_mistake(hub: HubServer, api: HfApi, trained: Path) -> None:
    """Shards after a whole file, and a whole file after shards: the other's weights are gone, a user's files stay."""
    head = hf_eagle3.load_head(trained)
    hub.add_repository("owner/head", {"notes.py": b"", "custom_generate/notes.md": b"", "pytorch_model.bin": b"old"})
    head.push_to_hub("owner/head")
    head.push_to_hub("owner/head", max_shard_size="100KB")
    sharded = hub.repository("owner/head").files()
    assert "model.safetensors" not in sharded
    assert "model.safetensors.index.json" in sharded
    for name, tensor in hf_eagle3.load_head("owner/head").state_dict().items():
        assert torch.equal(tensor, head.state_dict()[name])
    head.push_to_hub("owner/head")
    whole = hub.repository("owner/head").files()
    assert [name for name in whole if name.endswith((".bin", ".safetensors"))] == ["model.safetensors"]
    assert whole.keys() >= {"notes.py", "custom_generate/notes.md"}


def test_private_and_public(hub: HubServer, api: HfApi, native_head: Path) -> None:
    head = hf_eagle3.load_head(native_head)
    head.push_to_hub("owner/mine", private=True)
    head.push_to_hub("owner/yours")
    assert hub.repository("owner/mine").private
    assert not hub.repository("owner/yours").private
    head.push_to_hub("owner/mine", private=False)
    assert hub.repository("owner/mine").private  # one that is there stays as it is


def test_revisions_old_weights_stay_reachable(hub: HubServer, api: HfApi, trained: Path) -> None:
    head = hf_eagle3.load_head(trained)
    first = head.push_to_hub("owner/head")
    api.create_tag("owner/head", tag="v1")
    before = head.fc.weight.detach().clone()
    with torch.no_grad():
        head.fc.weight.mul_(2)
    second = head.push_to_hub("owner/head")
    with torch.no_grad():
        head.fc.weight.mul_(2)
    head.push_to_hub("owner/head", revision="next/try")
    asked = {first.oid: 1, "v1": 1, second.oid: 2, "main": 2, None: 2, "next/try": 4}
    for revision, factor in asked.items():
        assert torch.equal(hf_eagle3.load_head("owner/head", revision=revision).fc.weight, before * factor)


def test_a_pull_request_to_a_repository_of_another(hub: HubServer, api: HfApi, native_head: Path) -> None:
    head = hf_eagle3.load_head(native_head)
    before = hub.add_repository("owner/head").at("main").oid
    commit = head.push_to_hub("owner/head", create_pr=True, token="hf_guest")
    assert hub.repository("owner/head").at("main").oid == before
    assert commit.pr_revision == "refs/pr/1"
    assert hf_eagle3.load_head("owner/head", revision="refs/pr/1").config.vocab_size == head.config.vocab_size
    said = sentence(ValueError, lambda: head.push_to_hub("owner/head", create_pr=True, revision="next"))
    assert "pull requests go to main" in said


def test_an_upload_that_is_cut_shows_nothing_and_the_next_one_completes(
    hub: HubServer, api: HfApi, trained: Path
) -> None:
    head = hf_eagle3.load_head(trained)
    hub.cut_uploads(1000)
    said = sentence(OSError, lambda: head.push_to_hub("owner/head"))
    assert "model.safetensors" in said
    assert "push again" in said
    assert list(hub.repository("owner/head").files()) == [".gitattributes"]
    assert "holds none of config.json" in sentence(OSError, lambda: hf_eagle3.load_head("owner/head"))
    hub.faults.clear()
    head.push_to_hub("owner/head")
    assert torch.equal(hf_eagle3.load_head("owner/head").fc.weight, head.fc.weight)


def test_while_an_update_is_cut_the_old_head_is_whole(hub: HubServer, api: HfApi, trained: Path) -> None:
    head = hf_eagle3.load_head(trained)
    head.push_to_hub("owner/head")
    before = hub.repository("owner/head").files()
    old = head.fc.weight.detach().clone()
    with torch.no_grad():
        head.fc.weight.mul_(2)
    (trained / "training.json").write_text('{"steps": 48}')
    hub.cut_uploads(1000)
    sentence(OSError, lambda: head.push_to_hub("owner/head"))
    assert hub.repository("owner/head").files() == before
    assert torch.equal(hf_eagle3.load_head("owner/head").fc.weight, old)
    hub.faults.clear()
    head.push_to_hub("owner/head")
    assert hub.repository("owner/head").files()["training.json"] == b'{"steps": 48}'
    assert torch.equal(hf_eagle3.load_head("owner/head").fc.weight, head.fc.weight)


def test_an_upload_that_is_cut_once_is_tried_again_by_itself(hub: HubServer, api: HfApi, native_head: Path) -> None:
    hub.cut_uploads(2)
    hf_eagle3.load_head(native_head).push_to_hub("owner/head")
    assert [one.status for one in hub.requests if one.method == "PUT"] == [0, 0, 200]


def test_a_commit_that_fails_does_not_send_the_weights_twice(hub: HubServer, api: HfApi, native_head: Path) -> None:
    head = hf_eagle3.load_head(native_head)
    hub.refuse("commit", times=20, status=500)
    assert "not able to serve owner/head just now (500" in sentence(OSError, lambda: head.push_to_hub("owner/head"))
    assert list(hub.repository("owner/head").files()) == [".gitattributes"]
    hub.faults.clear()
    head.push_to_hub("owner/head")
    assert hub.count("PUT", "object") == 1


@pytest.mark.parametrize(
    ("token", "repo_id", "told"),
    [
        (False, "owner/head", ("wants to know who asks for owner/head (401", "hf auth login")),
        ("hf_unknown", "owner/head", ("(401: Invalid credentials", "that is valid")),
        ("hf_guest", "owner/head", ("does not allow this account", "(403: You don't have the rights")),
        ("hf_reader", "owner/head", ("does not allow this account", "(403:")),
        ("hf_owner", "no/such/name", ("'no/such/name' is no repository id", "owner/name")),
    ],
)
def test_who_may_not_push_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native_head: Path, token: Any, repo_id: str, told: tuple[str, ...]
) -> None:
    accounts = (
        Account("owner", "hf_owner"),
        Account("guest", "hf_guest"),
        Account("owner", "hf_reader", writes=False),
    )
    with HubServer(accounts) as hub:
        pointed_at(hub, monkeypatch, tmp_path / "home")
        said = sentence(
            (OSError, ValueError), lambda: hf_eagle3.load_head(native_head).push_to_hub(repo_id, token=token)
        )
        assert all(part in said for part in told), said
        assert hub.repositories == {}


def test_a_hub_that_is_not_there(hub: HubServer, api: HfApi, native_head: Path) -> None:
    hub.stop()
    said = sentence(OSError, lambda: hf_eagle3.load_head(native_head).push_to_hub("owner/head"))
    assert f"{hub.url} could not be reached for owner/head" in said


def test_a_card_that_the_hub_refuses(hub: HubServer, api: HfApi, trained: Path) -> None:
    (trained / "README.md").write_text("---\nlicense: mine\n---\n# Mine\n")
    hub.card_errors = ['"license" must be one of these']
    said = sentence(ValueError, lambda: hf_eagle3.load_head(trained).push_to_hub("owner/head"))
    assert "must be one of these" in said
    assert "README.md" in said


def test_code_names_the_place_to_install_from() -> None:
    for text in (code.modeling_file("Eagle3Config", "Eagle3DraftModel"), code.generate_file(), code.REQUIREMENT_LINE):
        assert INSTALL_COMMAND in text


def test_a_base_or_a_layout_where_it_makes_no_sense(native_head: Path, tmp_path: Path) -> None:
    head = hf_eagle3.load_head(native_head)
    assert "needs none" in sentence(ValueError, lambda: push.lay_out(head, tmp_path / "a", base="owner/base"))
    said = sentence(ValueError, lambda: push.lay_out(head, tmp_path / "b", layout="tgi"))
    assert "'tgi'; its layouts are: 'eagle', 'sglang', 'vllm', 'speculators'" in said


# ---------------------------------------------------------------------- the command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["push", *arguments], catch_exceptions=False)


def test_the_command_pushes_a_folder(hub: HubServer, api: HfApi, trained: Path) -> None:
    done = run(str(trained), "owner/head", "--private", "--revision", "next", "--message", "From the shell")
    made = hub.repository("owner/head")
    assert done.output.strip() == f"{hub.url}/owner/head/commit/{made.at('next').oid}"
    assert made.private
    assert made.at("next").title == "From the shell"
    assert set(made.files("next")) - {".gitattributes"} == OURS | RECORDS
    assert set(made.files("main")) == {".gitattributes"}
    opened = run(str(trained), "owner/head", "--create-pr")
    assert opened.output.strip() == f"{hub.url}/owner/head/discussions/1"


def test_the_command_pushes_a_released_head_in_our_layout(hub: HubServer, api: HfApi, golden_head: Any) -> None:
    from helpers.targets import GOLDEN

    run(str(GOLDEN / "eagle3_llama_head"), "owner/head")
    loaded = hf_eagle3.load_head("owner/head", dtype=torch.float32)
    for name, tensor in golden_head.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_dry_run_writes_a_folder_and_asks_nobody(hub: HubServer, api: HfApi, trained: Path, tmp_path: Path) -> None:
    done = run(str(trained), "owner/head", "--dry-run", str(tmp_path / "dry"))
    assert set(content_of(tmp_path / "dry")) == OURS | RECORDS
    assert "model.safetensors" in done.output
    assert hub.requests == []
    assert load_file(tmp_path / "dry" / "model.safetensors").keys() == load_file(trained / "model.safetensors").keys()
    said = sentence(ValueError, lambda: run(str(trained), "owner/head", "--dry-run", str(tmp_path / "dry")))
    assert "holds files already" in said


def test_a_broken_head_is_not_pushed(hub: HubServer, api: HfApi, trained: Path) -> None:
    weights = trained / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be read" in sentence(OSError, lambda: run(str(trained), "owner/head"))
    assert hub.repositories == {}


def test_push_to_hub_of_a_function_is_that_of_the_method(hub: HubServer, api: HfApi, native_head: Path) -> None:
    head = hf_eagle3.load_head(native_head)
    assert push_to_hub(head, "owner/head").oid == head.push_to_hub("owner/head").oid
    assert hub.count("POST", "commit") == 1  # the second one changed nothing


# ---------------------------------------------------------------------- what critics found


def test_records_of_an_earlier_push_do_not_stay_beside_other_weights(
    hub: HubServer, api: HfApi, trained: Path, native_head: Path
) -> None:
    hf_eagle3.load_head(trained).push_to_hub("owner/head")
    hf_eagle3.load_head(native_head).push_to_hub("owner/head")
    assert not RECORDS & hub.repository("owner/head").files().keys()


def test_places_on_the_machine_that_trained_are_not_published(trained: Path, tmp_path: Path) -> None:
    (trained / "recipe.yaml").write_text("data: /home/me/secret/data\nepochs: 1\n")
    (trained / "training.json").write_text('{"recipe": {"head": "~/heads/first", "target": "owner/target"}}')
    made = content_of(repository.lay_out(hf_eagle3.load_head(trained), tmp_path / "made"))
    assert made["recipe.yaml"] == b"data: data\nepochs: 1\n"
    assert json.loads(made["training.json"]) == {"recipe": {"head": "first", "target": "owner/target"}}
    assert made["evaluation/cpu-speed.json"] == (trained / "evaluation" / "cpu-speed.json").read_bytes()


def test_a_dry_run_refuses_what_the_hub_would(native_head: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["push", str(native_head), "bad/re/po", "--dry-run", str(tmp_path / "dry")])
    assert "no repository id" in str(done.exception)
    assert not (tmp_path / "dry").exists()


def test_a_folder_with_both_configs_is_a_whole_head(native_head: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(native_head, tmp_path / "both"))
    (folder / "adapter_config.json").write_text("{}")
    assert not adapters.is_adapter(folder)


def test_the_card_of_files_for_an_engine_says_how_it_is_started(native_head: Path, tmp_path: Path) -> None:
    head = hf_eagle3.load_head(native_head, target_boundaries=[2, 4, 5])
    card = (repository.lay_out(head, tmp_path / "made", repo_id="owner/head", layout="vllm") / "README.md").read_text()
    assert "vllm serve TARGET" in card
    assert "owner/head" in card
    assert "hf-eagle3 export" not in card
