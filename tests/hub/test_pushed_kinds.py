"""Heads of EAGLE-1 and heads that draft in parallel, pushed: they load back every way, and cards tell their method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fresh_process import FreshProcesses
from helpers.hub_server import HubServer
from helpers.targets import GOLDEN
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModel, PreTrainedModel

import hf_eagle3
from hf_eagle3 import Eagle3Config, Eagle3DraftModel, EagleConfig, EagleDraftModel
from hf_eagle3.hub.cards import render_card
from hf_eagle3.hub.code import auto_map
from hf_eagle3.hub.methods import EAGLE1, EAGLE3, method_of

MASK = 5
OPTIONS = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshProcesses]:
    with FreshProcesses(HubServer().environment(tmp_path_factory.mktemp("fresh"))) as fresh:
        yield fresh


@pytest.fixture(scope="module")
def heads(golden_target: PreTrainedModel) -> dict[str, Any]:
    """The golden head of EAGLE-1, which is trained, and a random one that drafts in parallel."""
    fields = {"target_boundaries": [2, 4, 5], "num_hidden_layers": 2, "mask_token_id": MASK}
    torch.manual_seed(3)
    parallel = Eagle3DraftModel(Eagle3Config.from_target(golden_target.config, parallel_drafting=True, **fields))
    torch.nn.init.normal_(parallel.mask_hidden)
    return {
        "eagle1": hf_eagle3.load_head(GOLDEN / "eagle1_llama_head", dtype=torch.float32),
        "parallel": parallel.eval(),
    }


@pytest.mark.parametrize("kind", ["eagle1", "parallel"])
def test_it_loads_back_where_we_are_imported(
    kind: str, hub: HubServer, api: HfApi, heads: dict[str, Any], golden_target: PreTrainedModel
) -> None:
    head, ids = heads[kind], torch.arange(5, 21)[None]
    head.push_to_hub("owner/head")
    assert hub.repository("owner/head").files().keys() >= {"config.json", "custom_generate/generate.py", "README.md"}
    plain = golden_target.generate(ids, **OPTIONS)
    for load in (hf_eagle3.load_head, type(head).from_pretrained, AutoModel.from_pretrained):
        again = load("owner/head")
        assert type(again) is type(head)
        assert again.state_dict().keys() == head.state_dict().keys()
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in head.state_dict().items())
        assert getattr(again.config, "parallel_drafting", False) == (kind == "parallel")
        out = golden_target.generate(ids, assistant_model=again, return_dict_in_generate=True, **OPTIONS)
        assert torch.equal(out.sequences, plain)
        if kind == "eagle1":
            assert len(out.acceptance_lengths[0]) < 20  # rounds, for 24 tokens


@pytest.mark.parametrize("kind", ["eagle1", "parallel"])
def test_it_loads_in_a_process_that_never_heard_of_us(
    kind: str, fresh: FreshProcesses, hub: HubServer, api: HfApi, heads: dict[str, Any], tmp_path: Path
) -> None:
    """By `trust_remote_code=True`; and by `custom_generate=`, with the tokens of plain `generate`."""
    heads[kind].push_to_hub("owner/head")
    loaded = fresh.run(
        hub.url,
        tmp_path / "model",
        """
        assert "hf_eagle3" not in sys.modules
        head = AutoModel.from_pretrained("owner/head", trust_remote_code=True)
        found["class"] = type(head).__name__
        found["weight"] = head.fc.weight.tolist()
        """,
    )
    assert loaded == {"class": type(heads[kind]).__name__, "weight": heads[kind].fc.weight.tolist()}
    decoded = fresh.run(
        hub.url,
        tmp_path / "generate",
        """
        target = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()
        ids = torch.arange(5, 21)[None]
        plain = target.generate(ids, **options)
        assert "hf_eagle3" not in sys.modules
        way = {"custom_generate": "owner/head", "trust_remote_code": True, "return_dict_in_generate": True}
        out = target.generate(ids, **way, **options)
        found["same"] = torch.equal(out.sequences, plain)
        found["rounds"] = len(out.acceptance_lengths[0])
        """,
        where=str(GOLDEN / "llama_target"),
        options=OPTIONS,
    )
    assert decoded["same"]
    assert kind == "parallel" or decoded["rounds"] < 20


# ---------------------------------------------------------------------- cards


def test_the_card_of_an_eagle1_head_names_its_method(hub: HubServer, api: HfApi, heads: dict[str, Any]) -> None:
    heads["eagle1"].push_to_hub("owner/head")
    card, config = ModelCard.load("owner/head"), json.loads(hub.repository("owner/head").files()["config.json"])
    assert "A draft head for EAGLE-1 speculative decoding" in card.text
    assert "EAGLE-3" not in card.text
    assert "eagle3" not in card.data.tags
    assert {"eagle", "speculative-decoding"} <= set(card.data.tags)
    assert "(or `vllm`, `eagle`)" in card.text
    assert "arXiv:2401.15077" in card.text
    assert config["auto_map"] == auto_map("EagleConfig", "EagleDraftModel")


def test_the_card_of_a_parallel_head_says_so(api: HfApi, heads: dict[str, Any]) -> None:
    heads["parallel"].push_to_hub("owner/head")
    card = ModelCard.load("owner/head")
    assert "all levels of its tree in one forward of its own (P-EAGLE" in card.text
    assert "eagle3" in card.data.tags
    assert "--layout" not in card.text  # the export of such heads is refused
    with pytest.raises(ValueError, match="parallel_drafting=True"):
        heads["parallel"].push_to_hub("owner/other", layout="vllm")


@pytest.mark.parametrize("layout", ["eagle", "sglang", "vllm"])
def test_a_repository_for_an_engine(layout: str, hub: HubServer, api: HfApi, golden_target: PreTrainedModel) -> None:
    """No code of ours, and the same card: the method is told from the config in any layout."""
    head = EagleDraftModel(EagleConfig.from_target(golden_target.config, fc_bias=False))
    head.push_to_hub("owner/head", layout=layout, target=golden_target)
    files = hub.repository("owner/head").files()
    assert "custom_generate/generate.py" not in files
    assert b"EAGLE-1 speculative decoding" in files["README.md"]
    assert torch.equal(hf_eagle3.load_head("owner/head").fc.weight, head.fc.weight)


@pytest.mark.parametrize("folder", ["eagle3_llama_head", "eagle3_qwen3_head", "eagle1_llama_head"])
def test_the_method_of_released_configs(folder: str) -> None:
    config = json.loads((GOLDEN / folder / "config.json").read_text())
    assert method_of(config) is (EAGLE1 if folder.startswith("eagle1") else EAGLE3)


def test_the_method_of_an_adapter(tmp_path: Path) -> None:
    """peft names the class that it was put on."""
    for base, method in (("EagleDraftModel", EAGLE1), ("Eagle3DraftModel", EAGLE3)):
        config = {"peft_type": "LORA", "r": 8, "auto_mapping": {"base_model_class": base}}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert f"An adapter (LoRA) of a draft head for {method.name} speculative" in render_card(tmp_path)
    assert method_of({"auto_mapping": None}, adapter=True) is EAGLE3
