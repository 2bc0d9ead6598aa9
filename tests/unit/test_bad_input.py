"""Bad heads, bad targets, bad pairs: each is one clear sentence, and nothing is run or lost."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from hf_eagle3 import Eagle3Config, Eagle3DraftModel

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def target(**overrides: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **overrides})).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Eagle3DraftModel(Eagle3Config.from_target(LlamaConfig(**SIZES), draft_vocab_size=16)).save_pretrained(tmp_path)
    return tmp_path


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refuses(folder: Path, error: type[Exception], *words: str) -> None:
    for load in (Eagle3DraftModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(error) as caught:
            load(folder)
        one_sentence(caught.value, *words)


def one_sentence(error: BaseException, *words: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert all(word in message for word in words), message


# ---------------------------------------------------------------------- files


def test_missing_tensor_is_named(saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors.pop("layers.0.hidden_norm.weight"))
    refuses(saved, ValueError, "lacks the tensors layers.0.hidden_norm.weight")


def test_missing_lm_head_is_never_made_up(saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors.pop("lm_head.weight"))
    refuses(saved, ValueError, "lm_head.weight")


def test_missing_draft_vocabulary_is_never_guessed(saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors.pop("d2t"))
    refuses(saved, ValueError, "d2t")


def test_unknown_tensor_is_named(saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors.update({"fc_norm.0.weight": torch.ones(32)}))
    refuses(saved, ValueError, "fc_norm.0.weight", "no layout known here")


def test_misshapen_tensor_is_named(saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors.update({"norm.weight": torch.ones(31)}))
    refuses(saved, ValueError, "`norm.weight` is [31]", "[32]")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(saved: Path, value: float) -> None:
    edit_weights(saved, lambda tensors: tensors["fc.weight"][0].fill_(value))
    refuses(saved, ValueError, "fc.weight", "NaN or infinite")


def test_draft_ids_out_of_range(saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors["d2t"][-1].add_(1000))
    refuses(saved, ValueError, "`d2t` maps draft token 15", "64 tokens")


def test_draft_ids_written_as_absolute_ids(saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors["d2t"].copy_(torch.arange(48, 64)))
    refuses(saved, ValueError, "`d2t` maps draft token", "offsets")


def test_draft_vocabulary_that_was_never_filled_in(tmp_path: Path) -> None:
    """SpecForge's initial buffers: no offsets, every target token marked."""
    folder = released(tmp_path)
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({**tensors, "d2t": tensors["d2t"] * 0, "t2d": tensors["t2d"] | True}, folder / "pytorch_model.bin")
    refuses(folder, ValueError, "`d2t` names 128", "`t2d` marks 512", "never filled in")


@pytest.mark.parametrize("field", ["vocab_size", "num_attention_heads"])
def test_released_config_without_a_size(tmp_path: Path, field: str) -> None:
    folder = released(tmp_path, **{field: None})
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del tensors["t2d"]
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"no `{field}`"):
        Eagle3DraftModel.from_pretrained(folder)


def test_generation_config_that_is_not_json(saved: Path) -> None:
    (saved / "generation_config.json").write_text("{")
    refuses(saved, OSError, "generation_config.json", "not JSON")


def test_pickle_where_safetensors_were_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"holds none of model\.safetensors"):
        Eagle3DraftModel.from_pretrained(released(tmp_path), use_safetensors=True)


def test_more_boundaries_than_the_default_rule_knows(saved: Path) -> None:
    config = Eagle3Config.from_target(LlamaConfig(**SIZES), target_boundaries=[1, 2, 3, 5, 6])
    config.target_boundaries = None
    with pytest.raises(ValueError, match="reads 5 boundaries and its config does not say which"):
        target().generate(torch.tensor([[1]]), assistant_model=Eagle3DraftModel(config))


def test_draft_ids_that_do_not_ascend(saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors["d2t"][3].fill_(40))
    refuses(saved, ValueError, "must ascend")


@pytest.mark.parametrize("keep", [0, 7, 200, -100])
def test_truncated_safetensors(saved: Path, keep: int) -> None:
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[:keep])
    refuses(saved, OSError, "model.safetensors", "truncated")


def test_file_that_is_no_safetensors(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"<html>not found</html>" * 9)
    refuses(saved, OSError, "model.safetensors")


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_truncated_bin(tmp_path: Path, keep: int) -> None:
    for name in ("config.json", "pytorch_model.bin"):
        content = (GOLDEN / "eagle3_llama_head" / name).read_bytes()
        (tmp_path / name).write_bytes(content[:keep] if name.endswith("bin") else content)
    refuses(tmp_path, OSError, "pytorch_model.bin")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path(self.trace), "exploded"))

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "config.json").write_bytes((GOLDEN / "eagle3_llama_head" / "config.json").read_bytes())
    content = {"fc.weight": Bomb(trace)}
    if writer == "torch":
        torch.save(content, tmp_path / "pytorch_model.bin")
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    refuses(tmp_path, OSError, "pytorch_model.bin", "without running")
    assert not trace.exists()


def test_bin_that_holds_no_state_dict(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((GOLDEN / "eagle3_llama_head" / "config.json").read_bytes())
    torch.save([torch.ones(3)], tmp_path / "pytorch_model.bin")
    refuses(tmp_path, OSError, "no dictionary of tensors")


def test_no_weights_at_all(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    refuses(saved, OSError, "model.safetensors", "pytorch_model.bin")


def test_config_of_something_else(tmp_path: Path) -> None:
    target().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no EAGLE-3 head") as caught:
        Eagle3DraftModel.from_pretrained(tmp_path)
    one_sentence(caught.value, "llama", "draft_vocab_size")


def test_released_head_without_a_weight(tmp_path: Path) -> None:
    source = GOLDEN / "eagle3_llama_head"
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    del tensors["midlayer.self_attn.k_proj.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    refuses(tmp_path, ValueError, "layers.0.self_attn.k_proj.weight")


def released(tmp_path: Path, **fields: Any) -> Path:
    """The golden head in the released layout, with more fields in its config."""
    source = GOLDEN / "eagle3_llama_head"
    config = json.loads((source / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes((source / "pytorch_model.bin").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"eagle_config": {"norm_before_fc": True}}, ("lacks the tensors input_norm.weight",)),
        ({"fc_norm": True}, ("fc_norm.0.weight", "fc_norm.2.weight")),
        ({"fc_norm": True, "norm_before_fc": True}, ("choose",)),
        ({"layer_types": ["sliding_attention"]}, ("sliding_window None",)),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}, ("one window",)),
        ({"eagle_config": {"use_last_layernorm": False}}, ("use_last_layernorm=False", "not supported")),
        ({"eagle_config": {"parallel_draft_step": 4}}, ("parallel_draft_step=4",)),
        ({"rope_scaling": {"type": "su"}}, ("'su'", "yarn")),
        ({"rope_parameters": {"full_attention": {"rope_type": "proportional"}}}, ("'proportional'",)),
    ],
)
def test_released_head_whose_flags_change_the_forward(
    tmp_path: Path, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    refuses(released(tmp_path, **fields), ValueError, *words)


# ---------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"draft_vocab_size": 65}, ("`draft_vocab_size` is 65", "64")),
        ({"num_key_value_heads": 3}, ("3 does not divide",)),
        ({"tie_word_embeddings": True}, ("tie_word_embeddings",)),
        ({"target_boundaries": [2, 2, 5]}, ("[2, 2, 5]",)),
        ({"target_boundaries": [1, 2, 9]}, ("[1, 2, 9]", "8 layers")),
    ],
)
def test_config_that_makes_no_head(fields: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match=re.escape(words[0])) as caught:
        Eagle3Config.from_target(LlamaConfig(**SIZES), **fields)
    assert all(word in str(caught.value) for word in words), caught.value


def test_target_too_shallow_for_the_default_boundaries() -> None:
    with pytest.raises(ValueError, match="too shallow") as caught:
        Eagle3Config.from_target(LlamaConfig(**{**SIZES, "num_hidden_layers": 6}))
    one_sentence(caught.value, "6 layers", "at least 7", "target_boundaries")


# ---------------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    ("made_for", "words"),
    [
        ({"vocab_size": 65}, ("64 tokens", "65")),
        ({"hidden_size": 16}, ("width 32", "16 wide")),
        ({"num_hidden_layers": 4}, ("boundaries [2, 4, 5]", "4 layers")),
    ],
)
def test_head_and_target_that_do_not_belong_together(
    saved: Path, made_for: dict[str, Any], words: tuple[str, ...]
) -> None:
    head = Eagle3DraftModel.from_pretrained(saved)
    with pytest.raises(ValueError, match="the target") as caught:
        target(**made_for).generate(torch.tensor([[1, 2, 3]]), assistant_model=head)
    one_sentence(caught.value, *words)


def test_released_head_and_shallow_target() -> None:
    head = AutoModel.from_pretrained(GOLDEN / "eagle3_llama_head")
    shallow = target(vocab_size=512, hidden_size=64, num_hidden_layers=6)
    with pytest.raises(ValueError, match="too shallow"):
        shallow.generate(torch.tensor([[1, 2]]), assistant_model=head)


def test_encoder_decoder_target(saved: Path) -> None:
    head = Eagle3DraftModel.from_pretrained(saved)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
    model = T5ForConditionalGeneration(T5Config(**sizes))
    with pytest.raises(ValueError, match="encoder-decoder") as caught:
        model.generate(torch.tensor([[1, 2, 3]]), assistant_model=head)
    one_sentence(caught.value, "T5ForConditionalGeneration", "decoder-only")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 2}, ("beam search", "num_beams=2")),
        ({"num_beams": 2, "do_sample": True}, ("beam sample",)),
        ({"use_cache": False}, ("use_cache",)),
        ({"cache_implementation": "static"}, ("static", "DynamicCache")),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, ("output_hidden_states",)),
        ({"prompt_lookup_num_tokens": 3}, ("another way of drafting",)),
        ({"tree_depth": 0}, ("`tree_depth` is 0",)),
        ({"num_assistant_tokens": -3}, ("`num_assistant_tokens` is -3",)),
        ({"tree_top_k": 1.5}, ("`tree_top_k` is 1.5",)),
    ],
)
def test_call_that_a_head_cannot_serve(saved: Path, options: dict[str, Any], words: tuple[str, ...]) -> None:
    head = Eagle3DraftModel.from_pretrained(saved)
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        target().generate(torch.tensor([[1, 2, 3]]), assistant_model=head, max_new_tokens=4, **options)
    one_sentence(caught.value, *words)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_target_with_a_learned_prompt(saved: Path, kind: str) -> None:
    import peft

    prompted = peft.get_peft_model(target(), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ValueError, match="learned prompt or prefix") as caught:
        prompted.generate(input_ids=torch.tensor([[1, 2, 3]]), assistant_model=Eagle3DraftModel.from_pretrained(saved))
    one_sentence(caught.value, "without a head")


def test_batch_of_prompts(saved: Path) -> None:
    head = Eagle3DraftModel.from_pretrained(saved)
    with pytest.raises(ValueError, match="a batch of 2 prompts"):
        target().generate(torch.ones(2, 3, dtype=torch.long), assistant_model=head, max_new_tokens=4)


def test_drafting_with_something_that_is_no_head() -> None:
    from hf_eagle3 import drafting_with

    with pytest.raises(TypeError, match="LlamaForCausalLM"):
        drafting_with(target())


def test_config_json_that_is_not_json(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    with pytest.raises((OSError, json.JSONDecodeError)):
        Eagle3DraftModel.from_pretrained(saved)
