"""The head as a transformers model: made, saved, loaded, cast, placed, by class and by Auto classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, GPTNeoXConfig, LlamaConfig, LlamaForCausalLM, LlamaModel, Qwen3Config

from hf_eagle3 import Eagle3Config, Eagle3DraftModel

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
TARGET = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={"rope_type": "default", "rope_theta": 5e5},
)


def fresh_head(**overrides: object) -> Eagle3DraftModel:
    torch.manual_seed(0)
    return Eagle3DraftModel(Eagle3Config.from_target(TARGET, **{"draft_vocab_size": 16, **overrides})).eval()


def same_tensors(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("rope", "told"),
    [
        ({"rope_type": "su", "rope_theta": 1e4}, "of type 'su'; known are default, linear"),
        ({"rope_type": "yarn", "rope_theta": 1e4}, "of type 'yarn' without factor"),
        ({"type": "linear", "rope_theta": 1e4}, "of type 'linear' without factor"),
    ],
)
def test_rotary_embeddings_that_no_head_can_compute(rope: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Eagle3Config(vocab_size=64, hidden_size=32, num_attention_heads=4, rope_parameters=rope)


def test_config_of_a_target_takes_its_geometry_and_ids() -> None:
    config = Eagle3Config.from_target(TARGET, draft_vocab_size=16)
    assert (config.vocab_size, config.draft_vocab_size, config.hidden_size, config.head_dim) == (64, 16, 32, 8)
    assert config.target_boundaries == [2, 4, 5]
    assert config.rope_parameters["rope_theta"] == 5e5
    assert (config.bos_token_id, config.eos_token_id) == (TARGET.bos_token_id, TARGET.eos_token_id)
    assert config.num_hidden_layers == 1


@pytest.mark.parametrize("target", [GPTNeoXConfig(), Qwen3Config(), AutoConfig.for_model("gemma3_text")])
def test_config_of_other_families_makes_a_head(target: LlamaConfig) -> None:
    config = Eagle3Config.from_target(target, draft_vocab_size=100)
    with torch.device("meta"):
        head = Eagle3DraftModel(config)
    assert head.fc.in_features == 3 * target.hidden_size


def test_boundaries_are_sorted_whatever_order_they_are_written_in() -> None:
    assert Eagle3Config.from_target(TARGET, target_boundaries=[5, 1, 3]).target_boundaries == [1, 3, 5]


def test_a_released_head_takes_the_default_boundaries_of_the_target_it_meets() -> None:
    config = AutoModel.from_pretrained(GOLDEN / "eagle3_llama_head").config
    assert config.boundaries_for(8) == [2, 4, 5]
    assert config.boundaries_for(36) == [2, 18, 33]


# ---------------------------------------------------------------------- save and load


def test_round_trip_keeps_tensors_config_and_tree_knobs(tmp_path: Path) -> None:
    head = fresh_head()
    head.set_draft_vocabulary(torch.arange(3, 64, 4)[:16])
    head.generation_config.update(num_assistant_tokens=23, tree_depth=4, tree_top_k=7)
    head.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    for loaded in (Eagle3DraftModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, Eagle3DraftModel)
        assert same_tensors(loaded, head)
        knobs = loaded.generation_config
        assert (knobs.num_assistant_tokens, knobs.tree_depth, knobs.tree_top_k) == (23, 4, 7)
        assert loaded.config.to_dict() == head.config.to_dict() | {"_name_or_path": loaded.config.name_or_path}


def test_embeddings_are_saved_only_if_they_are_the_heads_own(tmp_path: Path) -> None:
    target = LlamaForCausalLM(TARGET)
    borrowing, owning = fresh_head(), fresh_head(own_embeddings=True)
    assert borrowing.input_embeddings_for(target) is target.get_input_embeddings()
    assert owning.input_embeddings_for(target) is owning.embed_tokens
    borrowing.save_pretrained(tmp_path / "borrowing")
    owning.save_pretrained(tmp_path / "owning")
    assert Eagle3DraftModel.from_pretrained(tmp_path / "borrowing").embed_tokens is None
    assert same_tensors(Eagle3DraftModel.from_pretrained(tmp_path / "owning"), owning)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_what_is_asked_for_and_else_the_files(tmp_path: Path, dtype: torch.dtype) -> None:
    fresh_head().to(dtype).save_pretrained(tmp_path)
    assert Eagle3DraftModel.from_pretrained(tmp_path).dtype == dtype
    head = Eagle3DraftModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert head.dtype == torch.bfloat16
    assert head.d2t.dtype == torch.int64
    out = head(torch.randn(1, 3, 32).bfloat16(), inputs_embeds=torch.randn(1, 3, 32).bfloat16())
    assert out.logits.isfinite().all()


def test_device_map_and_attention_implementation(tmp_path: Path) -> None:
    fresh_head().save_pretrained(tmp_path)
    head = Eagle3DraftModel.from_pretrained(tmp_path, device_map={"": "cpu"}, attn_implementation="eager")
    assert head.device.type == "cpu"
    features, embeds = torch.randn(1, 5, 32), torch.randn(1, 5, 32)
    eager = head(features, inputs_embeds=embeds).logits
    head.set_attn_implementation("sdpa")
    torch.testing.assert_close(head(features, inputs_embeds=embeds).logits, eager, rtol=1e-5, atol=1e-6)


def test_a_second_layer_and_gradient_checkpointing() -> None:
    head = fresh_head(num_hidden_layers=2).train()
    features, embeds = torch.randn(2, 6, 32), torch.randn(2, 6, 32)
    gradients = []
    for _ in range(2):
        loss = head(head.fuse(features.repeat(1, 1, 3)), inputs_embeds=embeds, use_cache=False).logits.square().sum()
        gradients.append(torch.autograd.grad(loss, list(head.parameters())))
        head.gradient_checkpointing_enable()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_cached_forward_equals_the_whole_one() -> None:
    head = fresh_head(num_hidden_layers=2)
    features, embeds = torch.randn(1, 9, 32), torch.randn(1, 9, 32)
    whole = head(features, inputs_embeds=embeds).logits
    first = head(features[:, :5], inputs_embeds=embeds[:, :5], use_cache=True)
    rest = head(features[:, 5:], inputs_embeds=embeds[:, 5:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        head(features, inputs_embeds=embeds, logits_to_keep=2).logits, whole[:, -2:], rtol=1e-5, atol=1e-6
    )


# ---------------------------------------------------------------------- Auto classes


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "LlamaForCausalLMEagle3"])
def test_released_heads_load_by_auto_model(tmp_path: Path, architecture: str) -> None:
    source = GOLDEN / "eagle3_llama_head"
    config = json.loads((source / "config.json").read_text()) | {"architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes((source / "pytorch_model.bin").read_bytes())
    head = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert isinstance(head, Eagle3DraftModel)
    official = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.testing.assert_close(head.layers[0].hidden_norm.weight.data, official["midlayer.hidden_norm.weight"].float())
    ids = torch.arange(128) + official["d2t"]
    assert torch.equal(head.to_target_ids(torch.arange(128)), ids)
    assert torch.equal(head.t2d.nonzero()[:, 0], ids)


@pytest.mark.parametrize(
    ("ids", "boundaries"), [([1, 3, 4], [2, 4, 5]), ([4, 1, 3], [2, 4, 5]), ([2, 4, 5], [2, 4, 5])]
)
def test_boundaries_named_by_a_released_config(tmp_path: Path, ids: list[int], boundaries: list[int]) -> None:
    """Ids that begin with 1 name layer outputs, one before the boundary; others the boundaries themselves."""
    source = GOLDEN / "eagle3_llama_head"
    named = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": ids, "use_aux_hidden_state": True}}
    config = json.loads((source / "config.json").read_text()) | named
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes((source / "pytorch_model.bin").read_bytes())
    assert AutoModel.from_pretrained(tmp_path).config.target_boundaries == boundaries


def test_fields_given_to_from_pretrained_win() -> None:
    source = GOLDEN / "eagle3_llama_head"
    for load in (Eagle3DraftModel.from_pretrained, AutoModel.from_pretrained):
        head = load(source, target_boundaries=[1, 3, 6], dtype=torch.float32)
        assert head.config.target_boundaries == [1, 3, 6]
        assert head.config.draft_vocab_size == 128
        assert load(source, rope_theta=5e5).config.rope_parameters["rope_theta"] == 5e5
    given = Eagle3DraftModel.from_pretrained(source).config
    given.target_boundaries = [2, 3, 4]
    assert Eagle3DraftModel.from_pretrained(source, config=given).config.target_boundaries == [2, 3, 4]


def test_a_head_of_sharded_safetensors_loads(tmp_path: Path) -> None:
    head = fresh_head()
    head.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert same_tensors(Eagle3DraftModel.from_pretrained(tmp_path), head)


def test_plain_llama_is_untouched_by_our_auto_model(tmp_path: Path) -> None:
    LlamaForCausalLM(TARGET).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is LlamaModel
    assert type(AutoModel.from_config(TARGET)) is LlamaModel
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(AutoModel.from_pretrained(tmp_path)) is LlamaModel


def test_a_llama_inside_a_vision_model_is_untouched() -> None:
    config = AutoConfig.for_model("llava")
    config.text_config = TARGET
    vision = config.vision_config
    vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers, vision.num_attention_heads = 16, 16, 1, 2
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert type(model.language_model) is LlamaModel
