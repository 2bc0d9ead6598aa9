"""Heads of EAGLE-1: made, saved, loaded, told from plain models, and refused in a sentence where a piece is wrong."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_catalogue import synthesise, variant
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel

import hf_eagle3
from hf_eagle3 import Eagle3DraftModel, EagleConfig, EagleDraftModel

GOLDEN = Path(__file__).parent.parent / "golden" / "models" / "eagle1_llama_head"
ONE_LAYER = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
)


def fresh_head(**fields: Any) -> EagleDraftModel:
    torch.manual_seed(0)
    return EagleDraftModel(EagleConfig.from_target(ONE_LAYER, **fields)).eval()


def official(folder: Path, **fields: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """The golden head's config with other fields in `folder`, and its tensors, which are for the test to write."""
    config = json.loads((GOLDEN / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != "gone"}))
    return folder, torch.load(GOLDEN / "pytorch_model.bin", weights_only=True)


def refuses(folder: Path, *words: str, load: Any = hf_eagle3.load_head) -> None:
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- ours


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"own_embeddings": True, "fc_bias": False, "qkv_bias": True},
        {"layernorms": True, "num_hidden_layers": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"own_lm_head": True, "draft_vocab_size": 16},
    ],
    ids=str,
)
def test_round_trip(fields: dict[str, Any], tmp_path: Path) -> None:
    head = fresh_head(**fields)
    if head.reduced:
        head.set_draft_vocabulary(torch.arange(3, 64, 4)[:16])
    head.generation_config.update(draft_tree="mc_sim_7b_63")
    head.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    assert type(AutoConfig.from_pretrained(tmp_path)) is EagleConfig
    for load in (EagleDraftModel.from_pretrained, AutoModel.from_pretrained, hf_eagle3.load_head):
        again = load(tmp_path)
        assert type(again) is EagleDraftModel
        assert again.generation_config.draft_tree == "mc_sim_7b_63"
        assert again.config.to_dict() == head.config.to_dict() | {"_name_or_path": again.config.name_or_path}
        assert again.state_dict().keys() == head.state_dict().keys()
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in head.state_dict().items())


def test_what_is_borrowed_is_the_targets() -> None:
    target = LlamaForCausalLM(ONE_LAYER)
    borrowing, owning = fresh_head(), fresh_head(own_embeddings=True, own_lm_head=True)
    assert borrowing.input_embeddings_for(target) is target.get_input_embeddings()
    assert borrowing.output_embeddings_for(target) is target.lm_head
    assert owning.input_embeddings_for(target) is owning.embed_tokens
    assert owning.output_embeddings_for(target) is owning.lm_head
    assert not {"embed_tokens.weight", "lm_head.weight"} & borrowing.state_dict().keys()
    assert borrowing.config.boundaries_for(30) == fresh_head().config.boundaries_for(30)
    with pytest.raises(ValueError, match="does not name its output embeddings"):
        borrowing.output_embeddings_for(LlamaModel(ONE_LAYER))


def test_cached_forward_equals_the_whole_one_and_gradients_are_kept() -> None:
    head = fresh_head(own_lm_head=True, num_hidden_layers=2)
    features, embeds = torch.randn(1, 9, 32), torch.randn(1, 9, 32)
    whole = head(features, inputs_embeds=embeds)
    first = head(features[:, :5], inputs_embeds=embeds[:, :5], use_cache=True)
    rest = head(features[:, 5:], inputs_embeds=embeds[:, 5:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), whole.logits, rtol=1e-5, atol=1e-6)
    kept = head(features, inputs_embeds=embeds, logits_to_keep=2).logits
    torch.testing.assert_close(kept, whole.logits[:, -2:], rtol=1e-5, atol=1e-6)
    gradients = []
    for _ in range(2):
        loss = head.train()(features, inputs_embeds=embeds, use_cache=False).logits.square().sum()
        gradients.append(torch.autograd.grad(loss, list(head.parameters())))
        head.gradient_checkpointing_enable()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_forward_needs_each_of_its_embeddings() -> None:
    head, states = fresh_head(), torch.randn(1, 3, 32)
    with pytest.raises(ValueError, match="no output embeddings of its own"):
        head(states, inputs_embeds=states)
    with pytest.raises(ValueError, match="no embeddings of its own"):
        head(states, torch.tensor([[1, 2, 3]]), lm_head=torch.nn.Identity())
    owning = fresh_head(own_embeddings=True)
    given = owning(states, torch.tensor([[1, 2, 3]]), lm_head=torch.nn.Identity())
    assert torch.equal(given.logits, given.last_hidden_state)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"draft_vocab_size": 65, "own_lm_head": True}, "`draft_vocab_size <= vocab_size`"),
        ({"draft_vocab_size": 16}, "own_lm_head=True"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
    ],
)
def test_sizes_that_make_no_head(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EagleConfig.from_target(ONE_LAYER, **fields)


def test_a_full_vocabulary_cannot_be_set() -> None:
    with pytest.raises(ValueError, match="every token of its target"):
        fresh_head().set_draft_vocabulary(torch.arange(64))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": 63}, "63 tokens but the target has 64"),
        ({"hidden_size": 64}, "width 64 but the target's are 32"),
    ],
)
def test_another_targets_head(fields: dict[str, Any], words: str) -> None:
    target, head = LlamaForCausalLM(ONE_LAYER).eval(), fresh_head(**fields)
    with pytest.raises(ValueError, match=words):
        target.generate(torch.tensor([[1, 2, 3]]), assistant_model=head, max_new_tokens=4)


# ---------------------------------------------------------------------- told from plain models


@pytest.mark.parametrize("cls", [LlamaForCausalLM, LlamaModel])
@pytest.mark.parametrize("fields", [{}, {"bias": False}], ids=str)
def test_a_plain_llama_of_one_layer_is_left_alone(
    cls: type[PreTrainedModel], fields: dict[str, Any], tmp_path: Path
) -> None:
    cls(ONE_LAYER).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(AutoModel.from_pretrained(tmp_path)) is LlamaModel
    refuses(tmp_path, "no EAGLE-1 head", "`fc.weight`", cls.__name__)
    refuses(tmp_path, "no EAGLE-1 head", load=EagleDraftModel.from_pretrained)


def test_auto_model_never_takes_a_config_of_a_plain_model_for_a_heads() -> None:
    """The official head's config is one; only its tensors tell, which `load_head` looks at."""
    assert type(AutoModel.from_pretrained(GOLDEN)) is LlamaModel
    assert type(hf_eagle3.load_head(GOLDEN)) is type(EagleDraftModel.from_pretrained(GOLDEN)) is EagleDraftModel


@pytest.mark.parametrize("architecture", ["LlamaForCausalLMEagle"])
def test_auto_model_takes_configs_that_tell(architecture: str, tmp_path: Path) -> None:
    folder, tensors = official(tmp_path, architectures=[architecture])
    torch.save(tensors, folder / "pytorch_model.bin")
    assert type(AutoModel.from_pretrained(folder)) is EagleDraftModel


def test_a_head_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    refuses(GOLDEN, "no Eagle3DraftModel", "hf_eagle3.load_head", load=Eagle3DraftModel.from_pretrained)
    eagle3 = GOLDEN.parent / "eagle3_llama_head"
    refuses(eagle3, "no EagleDraftModel", "hf_eagle3.load_head", load=EagleDraftModel.from_pretrained)


def test_the_log_tells_layout_and_conventions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    synthesise(variant("eagle1_2_official-qwen2"), tmp_path)
    with caplog.at_level(logging.INFO, logger="hf_eagle3"):
        hf_eagle3.load_head(tmp_path)
    for said in ("layout eagle1", "the target's last hidden state", "fc_bias", "qkv_bias", "own_embeddings", "base"):
        assert said in caplog.text
    assert "own_lm_head" not in caplog.text


def test_fields_given_to_from_pretrained_win() -> None:
    head = EagleDraftModel.from_pretrained(GOLDEN, rope_theta=1e4, max_position_embeddings=4096)
    assert head.config.rope_parameters["rope_theta"] == 1e4
    assert head.config.max_position_embeddings == 4096
    given = EagleDraftModel.from_pretrained(GOLDEN).config
    given.rms_norm_eps = 1e-3
    norm = EagleDraftModel.from_pretrained(GOLDEN, config=given).layers[0].post_attention_layernorm
    assert norm.variance_epsilon == 1e-3
    with pytest.raises(ValueError, match="Got target_boundaries, which EagleConfig does not have"):
        EagleDraftModel.from_pretrained(GOLDEN, target_boundaries=[1, 2, 3])


# ---------------------------------------------------------------------- wrong and missing pieces


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.self_attn.q_proj.weight",
        "layers.0.self_attn.v_proj.weight",
        "layers.0.mlp.gate_proj.weight",
        "layers.0.mlp.down_proj.weight",
        "layers.0.post_attention_layernorm.weight",
    ],
)
def test_a_missing_tensor(name: str, tmp_path: Path) -> None:
    folder, tensors = official(tmp_path)
    del tensors[name]
    torch.save(tensors, folder / "pytorch_model.bin")
    refuses(folder, f"lacks the tensors {name}")


def test_without_its_joining_layer_it_is_no_head(tmp_path: Path) -> None:
    folder, tensors = official(tmp_path)
    del tensors["fc.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")
    refuses(folder, "no EAGLE-1 head", "`fc.weight`")


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("fc.weight", (64, 192), ("`fc.weight` is [64, 192]", "[64, 128]")),
        ("fc.weight", (48, 96), ("need [", "do not belong together")),
        ("embed_tokens.weight", (512, 48), ("`embed_tokens.weight` is [512, 48]", "[512, 64]")),
        ("layers.0.self_attn.q_proj.weight", (64, 128), ("`layers.0.self_attn.q_proj.weight`", "[64, 64]")),
    ],
)
def test_a_misshapen_tensor(name: str, shape: tuple[int, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    folder, tensors = official(tmp_path)
    torch.save(tensors | {name: torch.zeros(shape)}, folder / "pytorch_model.bin")
    refuses(folder, *words)


def test_nan_and_tensors_that_nobody_knows(tmp_path: Path) -> None:
    folder, tensors = official(tmp_path)
    damaged = tensors["fc.weight"].clone()
    damaged[3, 4] = float("nan")
    torch.save(tensors | {"fc.weight": damaged}, folder / "pytorch_model.bin")
    refuses(folder, "`fc.weight` holds NaN")
    # No reference knows where these would act; a head that has them is another one.
    for name in ("norm.weight", "layers.0.input_layernorm.weight", "enorm.weight"):
        torch.save(tensors | {name: torch.ones(64)}, folder / "pytorch_model.bin")
        refuses(folder, "no layout known here has", name)


def test_bias_of_the_joining_layer_is_what_the_tensors_say(tmp_path: Path) -> None:
    """A config without `bias` means True, but tensors are trusted first; a `true` without one contradicts them."""
    folder, tensors = official(tmp_path, bias="gone")
    torch.save(tensors, folder / "pytorch_model.bin")
    assert hf_eagle3.load_head(folder).fc.bias is None
    torch.save(tensors | {"fc.bias": torch.ones(64)}, folder / "pytorch_model.bin")
    for field in ("gone", False):
        official(tmp_path, bias=field)
        assert torch.equal(hf_eagle3.load_head(folder).fc.bias.float(), torch.ones(64))
    official(tmp_path, bias=True)
    torch.save(tensors, folder / "pytorch_model.bin")
    refuses(folder, "lacks the tensors fc.bias")


def test_config_without_the_number_of_heads(tmp_path: Path) -> None:
    folder, tensors = official(tmp_path, num_attention_heads="gone")
    torch.save(tensors, folder / "pytorch_model.bin")
    refuses(folder, "`num_attention_heads`")


# ---------------------------------------------------------------------- vLLM's wrapper


def wrapped(tmp_path: Path, **fields: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """vLLM's wrapper of a head, with other fields on its outer level, and its tensors, for the test to write."""
    made = synthesise(variant("eagle1_2_official-vllm_wrapper"), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(made.config | fields))
    return tmp_path, load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("whole", [True, False], ids=["lm_head of all tokens", "lm_head of the kept ones"])
def test_a_truncated_vocabulary(whole: bool, tmp_path: Path) -> None:
    """`token_map` may be in any order; our map ascends, so the output embeddings are put in its order."""
    folder, tensors = wrapped(tmp_path, truncated_vocab_size=5, architectures=None)
    ids, weight = torch.tensor([40, 3, 17, 63, 0]), tensors["lm_head.weight"]
    rows = weight if whole else weight[ids]
    save_file(tensors | {"token_map": ids, "lm_head.weight": rows}, folder / "model.safetensors")
    head = hf_eagle3.load_head(folder)
    kept = head.to_target_ids(torch.arange(5))
    assert kept.tolist() == [0, 3, 17, 40, 63]
    assert torch.equal(head.lm_head.weight, weight[kept])
    head.save_pretrained(tmp_path / "ours")
    assert torch.equal(hf_eagle3.load_head(tmp_path / "ours").to_target_ids(torch.arange(5)), kept)


@pytest.mark.parametrize("ids", [[40, 3, 17, 64, 0], [40, 3, 17, 63], [40, 3, 3, 63, 0]], ids=str)
def test_a_token_map_that_does_not_fit(ids: list[int], tmp_path: Path) -> None:
    folder, tensors = wrapped(tmp_path, truncated_vocab_size=5)
    save_file(tensors | {"token_map": torch.tensor(ids)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"`token_map` is|the ids must ascend"):
        hf_eagle3.load_head(folder)


def test_prefixes_of_the_wrapper_are_taken_off(tmp_path: Path) -> None:
    folder, tensors = wrapped(tmp_path)
    plain = hf_eagle3.load_head(folder).state_dict()
    renamed = {name if name.startswith("fc.") else f"model.model.{name}": each for name, each in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    assert all(torch.equal(each, plain[name]) for name, each in hf_eagle3.load_head(folder).state_dict().items())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"truncated_vocab_size": 5}, "lacks the tensors token_map"),
        ({"add_para_norm": True}, "sets add_para_norm=True"),
        ({"skip_prenorm": False}, "sets skip_prenorm=False"),
        ({"logit_scale": 0.5}, "sets logit_scale=0.5"),
    ],
)
def test_wrappers_that_compute_otherwise(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    refuses(wrapped(tmp_path, **fields)[0], words)
