"""Every causal model of transformers, shrunk to a tiny random one: the probe's word on it is true.

What the probe lets through must give plain generate's tokens; what it refuses, it refuses in one sentence.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.oracle import oracle
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_eagle3 import switching
from hf_eagle3.attention import EAGLE3_TREE, backend_of
from hf_eagle3.probe import check_target, follows_windows

LAYERS = 4
SIZES = dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32)
SIZES |= dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_hidden_size"), 48)
SIZES |= dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "num_layers"), LAYERS)
SIZES |= dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads"), 4)
SIZES |= dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128)
SIZES |= dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4)
SIZES |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24)
SIZES |= {"num_key_value_heads": 2, "vocab_size": 96, "num_experts_per_tok": 2, "encoder_layers": 2, "rotary_dim": 8}
SIZES |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
SIZES |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "state_size": 8, "head_dim": 8}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# At least so many families must hold a tree, and so many be refused: fewer, and the sweep has stopped seeing them.
FEWEST_HELD, FEWEST_REFUSED, FEWEST_TAKEN = 85, 30, 80
WINDOW = 12  # shorter than the texts here


def shrunken(model_type: str, **sizes: int) -> PreTrainedModel | None:
    """A tiny random model of the type in float32, or `None` if its config does not shrink by common field names."""
    try:
        config = AutoConfig.for_model(model_type)
        for part in (config, config.get_text_config(decoder=True)):
            for name, size in (SIZES | sizes).items():
                if getattr(part, name, None) is not None or name == "vocab_size":
                    with contextlib.suppress(AttributeError):  # derived from other fields
                        setattr(part, name, size)
            if getattr(part, "layer_types", None) is not None:
                part.layer_types = part.layer_types[:LAYERS]
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
        if parameters > 3e7:
            return None
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().float()
    except Exception:  # odd configs raise whatever they like when their sizes are changed; they are not what is tested
        return None
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # tiny random models say little: louder ones show what they attend to
    return model


def greedy_pairs(model: PreTrainedModel) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """Plain tokens and drafted tokens for two prompts, with the acceptance lengths of the drafted ones."""
    head = oracle(model, boundaries=[1, 2])
    for prompt in ([5, 17, 9, 40], [3, 60, 8, 22, 31, 7, 7]):
        ids = torch.tensor([prompt])
        options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
        plain = model.generate(ids, **options)
        head.learn(plain)
        out = model.generate(ids, assistant_model=head, return_dict_in_generate=True, **options)
        yield plain, out.sequences, out.acceptance_lengths[0]


@pytest.mark.slow
def test_the_probe_tells_which_targets_hold_a_tree() -> None:
    held, refused, differing, lengths = [], {}, [], []
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        model = shrunken(model_type)
        if model is None or getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0) != LAYERS:
            continue
        try:
            check_target(model, [1, 2])
        except ValueError as error:
            refused[model_type] = str(error)
            continue
        for plain, drafted, accepted in greedy_pairs(model):
            if not torch.equal(plain, drafted):
                differing.append(model_type)
            lengths += accepted
        held.append(model_type)
    print(f"{len(held)} hold a tree, {len(refused)} are refused, mean acceptance length {np.mean(lengths):.2f}")
    assert not differing
    assert np.mean(lengths) > 1.5
    assert all("\n" not in sentence and "without a draft head" in sentence for sentence in refused.values())
    assert len(held) >= FEWEST_HELD
    assert len(refused) >= FEWEST_REFUSED
    assert {"llama", "qwen3", "mistral", "gemma2", "gpt2", "gpt_neox", "phi", "opt", "falcon"} <= set(held)
    assert {"mpt", "qwen3_next", "zamba2"} <= set(refused)


@pytest.mark.slow
def test_eagle3_tree_on_every_target_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if on a GPU: chosen by itself wherever it can be, and then the tokens are those of plain `generate` before it
    was chosen, past windows that are shorter than the text; a family that keeps what it had is drafted as ever."""
    monkeypatch.setattr(switching, "kernel_pays", lambda target: True)
    taken, sliding, kept, differing, lengths = [], [], [], [], []
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        model = shrunken(model_type, sliding_window=WINDOW)
        if model is None or getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0) != LAYERS:
            continue
        ids = torch.tensor([[5, 17, 9, 40]])
        options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
        head = oracle(model, boundaries=[1, 2])
        try:
            before = model.generate(ids, **options)  # as transformers runs it
            switching.meet(model, [1, 2])
        except Exception:  # a family that generates nothing, or holds no tree: the test above is about those
            continue
        if backend_of(model) != EAGLE3_TREE:
            kept.append(model_type)
            continue
        taken.append(model_type)
        head.learn(before)
        windows = {getattr(layer, "sliding_window", None) for layer in DynamicCache(config=model.config).layers}
        if WINDOW in windows and not follows_windows(model):
            kept.append(f"{model_type} (past its window)")
            with pytest.raises(ValueError, match=f"sliding window of {WINDOW}"):
                model.generate(ids, assistant_model=head, **options)
            continue
        out = model.generate(ids, assistant_model=head, return_dict_in_generate=True, **options)
        after = model.generate(ids, **options)
        if not before.tolist() == after.tolist() == out.sequences.tolist():
            differing.append(model_type)
        lengths += out.acceptance_lengths[0]
        if WINDOW in windows:
            sliding.append(model_type)
    switching.restore_all()
    print(f"{len(taken)} take it, {len(sliding)} of them past a window; {len(kept)} do not: {', '.join(kept)}")
    print(f"sliding: {', '.join(sliding)}; mean acceptance length {np.mean(lengths):.2f}")
    assert not differing
    assert np.mean(lengths) > 1.5
    assert len(taken) >= FEWEST_TAKEN
    assert {"mistral", "gemma2", "gemma3_text", "gpt_oss", "cohere2", "olmo3"} <= set(sliding)


def test_falcon_is_judged_by_its_config_not_its_class() -> None:
    """With ALiBi the positions of a tree are not those of its keys; without it a tree is held exactly."""
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    models = {}
    for alibi in (False, True):
        torch.manual_seed(0)
        config = AutoConfig.for_model("falcon", alibi=alibi, bos_token_id=1, eos_token_id=2, **sizes)
        models[alibi] = AutoModelForCausalLM.from_config(config).eval()
    check_target(models[False], [1, 2])
    assert all(torch.equal(plain, drafted) for plain, drafted, _ in greedy_pairs(models[False]))
    with pytest.raises(ValueError, match="FalconForCausalLM cannot verify a draft tree"):
        check_target(models[True], [1, 2])
