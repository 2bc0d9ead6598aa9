"""Adapters of heads on the Hub: pushed with their head's id, and put on it again by peft and by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.agreement import mean_acceptance
from helpers.hub_server import HubServer
from helpers.sentences import sentence
from helpers.targets import GOLDEN
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from transformers import AutoModel, PreTrainedModel
from typer.testing import CliRunner

import hf_eagle3
from hf_eagle3.cli import app
from hf_eagle3.hub.push import push_to_hub
from hf_eagle3.training.warm_start import adapted, save_adapter

PROMPT = torch.arange(5, 21)[None]
FILES = {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def base(hub: HubServer, api: HfApi, golden_head: Any) -> str:
    golden_head.push_to_hub("owner/head")
    return "owner/head"


@pytest.fixture
def adapter(base: str) -> Any:
    """One that changes what the head says, on a head from the Hub."""
    model = adapted(hf_eagle3.load_head(base), rank=2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    return model.eval()


def drafts(head: Any, rows: int = 6) -> torch.Tensor:
    """What the head says of made-up features: its draft logits."""
    inner = head.get_base_model() if isinstance(head, PeftModel) else head
    made = torch.Generator().manual_seed(3)
    features = torch.randn(1, rows, inner.fc.in_features, generator=made)
    embeds = torch.randn(1, rows, inner.config.hidden_size, generator=made)
    with torch.no_grad():
        return inner(inner.fuse(features), inputs_embeds=embeds).logits


def test_the_round_trip(hub: HubServer, adapter: Any, base: str, golden_target: PreTrainedModel) -> None:
    push_to_hub(adapter, "owner/lora")
    assert set(hub.repository("owner/lora").files()) == FILES
    assert json.loads(hub.repository("owner/lora").files()["adapter_config.json"])["base_model_name_or_path"] == base
    wanted, plain = drafts(adapter), drafts(hf_eagle3.load_head(base))
    assert not torch.allclose(wanted, plain, atol=1e-2)
    by_peft = PeftModel.from_pretrained(hf_eagle3.load_head(base), "owner/lora").eval()
    by_transformers = hf_eagle3.load_head(base)
    by_transformers.load_adapter("owner/lora")
    by_auto, by_us = AutoModel.from_pretrained("owner/lora"), hf_eagle3.load_head("owner/lora")
    for loaded in (by_peft, by_transformers, by_auto, by_us):
        torch.testing.assert_close(drafts(loaded), wanted)
    before = golden_target.generate(PROMPT, max_new_tokens=24, do_sample=False)
    for loaded in (by_peft, by_transformers):
        out = golden_target.generate(
            PROMPT, max_new_tokens=24, do_sample=False, assistant_model=loaded, return_dict_in_generate=True
        )
        assert torch.equal(out.sequences, before)
        assert mean_acceptance(out) > 1.0


def test_a_head_with_an_adapter_on_it_pushes_the_adapter(hub: HubServer, adapter: Any, base: str) -> None:
    push_to_hub(adapter, "owner/lora")
    hf_eagle3.load_head("owner/lora").push_to_hub("owner/again")
    again = hub.repository("owner/again").files()
    assert set(again) == FILES
    assert json.loads(again["adapter_config.json"])["base_model_name_or_path"] == base
    torch.testing.assert_close(drafts(hf_eagle3.load_head("owner/again")), drafts(adapter))


def test_pefts_own_push_loads_back_too(hub: HubServer, adapter: Any, base: str) -> None:
    adapter.push_to_hub("owner/lora")
    loaded = PeftModel.from_pretrained(hf_eagle3.load_head(base), "owner/lora").eval()
    torch.testing.assert_close(drafts(loaded), drafts(adapter))


def test_revisions_of_an_adapter(hub: HubServer, api: HfApi, adapter: Any, base: str) -> None:
    first = push_to_hub(adapter, "owner/lora").oid
    before = drafts(adapter)
    with torch.no_grad():
        for name, value in adapter.named_parameters():
            if "lora_B" in name:
                value.mul_(-1)
    push_to_hub(adapter, "owner/lora", revision="next")
    for revision, wanted in ((first, before), ("next", drafts(adapter))):
        head = hf_eagle3.load_head(base)
        head.load_adapter("owner/lora", adapter_kwargs={"revision": revision})
        torch.testing.assert_close(drafts(head), wanted)
        torch.testing.assert_close(drafts(hf_eagle3.load_head("owner/lora", revision=revision)), wanted)


def test_an_adapter_of_a_released_head(hub: HubServer, api: HfApi, golden_head: Any) -> None:
    """Its head calls itself a Llama, which AutoModel would take at its word."""
    released = GOLDEN / "eagle3_llama_head"
    names = [path.name for path in released.iterdir() if path.suffix in (".json", ".bin", ".safetensors")]
    hub.add_repository("owner/released", {name: (released / name).read_bytes() for name in names})
    model = adapted(hf_eagle3.load_head("owner/released", dtype=torch.float32), rank=2)
    push_to_hub(model, "owner/lora")
    loaded = AutoModel.from_pretrained("owner/lora", dtype=torch.float32)
    assert isinstance(loaded, hf_eagle3.Eagle3DraftModel)
    torch.testing.assert_close(drafts(loaded), drafts(golden_head))  # one that has learned nothing yet
    assert any("lora" in name for name in loaded.state_dict())


def test_a_damaged_adapter_is_refused(hub: HubServer, adapter: Any, base: str) -> None:
    push_to_hub(adapter, "owner/lora")
    hub.corrupt("adapter_model.safetensors")
    for load in (hf_eagle3.load_head, AutoModel.from_pretrained):
        assert "is not the file that the Hub announced" in sentence(OSError, lambda load=load: load("owner/lora"))


def test_the_card_names_the_head(adapter: Any, base: str) -> None:
    push_to_hub(adapter, "owner/lora")
    card = ModelCard.load("owner/lora")
    assert card.data.base_model == base
    assert card.data.library_name == "peft"


def test_the_command_takes_the_folder_of_a_training_run(
    hub: HubServer, adapter: Any, base: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    save_adapter(adapter, folder)
    (folder / "training.json").write_text('{"steps": 24}')
    done = CliRunner().invoke(app, ["push", str(folder), "owner/lora"], catch_exceptions=False)
    assert f"/owner/lora/commit/{hub.repository('owner/lora').at('main').oid}" in done.stdout
    assert set(hub.repository("owner/lora").files()) == FILES | {"training.json"}
    assert "More Information Needed" in (folder / "README.md").read_text()  # peft's form, which is not pushed
    assert "More Information Needed" not in ModelCard.load("owner/lora").text
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    push_to_hub(folder, "owner/mine")
    assert hub.repository("owner/mine").files()["README.md"] == (folder / "README.md").read_bytes()
    loaded = PeftModel.from_pretrained(hf_eagle3.load_head(base), "owner/lora").eval()
    torch.testing.assert_close(drafts(loaded), drafts(adapter))


def test_a_head_that_only_this_machine_has(hub: HubServer, api: HfApi, native_head: Path, tmp_path: Path) -> None:
    model = adapted(hf_eagle3.load_head(native_head), rank=2)
    said = sentence(ValueError, lambda: push_to_hub(model, "owner/lora"))
    assert f"'{native_head}', which is no repository on the Hub" in said
    assert hub.repositories == {}
    hf_eagle3.load_head(native_head).push_to_hub("owner/head")
    push_to_hub(model, "owner/lora", base="owner/head")
    config = json.loads(hub.repository("owner/lora").files()["adapter_config.json"])
    assert config["base_model_name_or_path"] == "owner/head"
    assert str(tmp_path) not in json.dumps(config)
    assert AutoModel.from_pretrained("owner/lora").config.vocab_size == 512


def test_an_adapter_of_another_name_is_refused(hub: HubServer, base: str) -> None:
    head = hf_eagle3.load_head(base)
    model = PeftModel(head, LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="second")
    assert "no adapter named `default`" in sentence(ValueError, lambda: push_to_hub(model, "owner/lora"))


def test_broken_adapters_are_refused(hub: HubServer, api: HfApi, adapter: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save_adapter(adapter, folder)
    before = dict(hub.repositories)
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:100])
    assert "cannot be read" in sentence(OSError, lambda: push_to_hub(folder, "owner/lora"))
    save_file({}, folder / "adapter_model.safetensors")
    assert "holds no tensors" in sentence(OSError, lambda: push_to_hub(folder, "owner/lora"))
    (folder / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in sentence(OSError, lambda: push_to_hub(folder, "owner/lora"))
    (folder / "adapter_model.safetensors").write_bytes(whole)
    said = sentence(ValueError, lambda: push_to_hub(folder, "owner/lora", layout="sglang"))
    assert "engines load whole heads" in said
    assert hub.repositories == before
