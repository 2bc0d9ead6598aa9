"""Tiny random targets of several families, built from configs in the process, whose greedy texts are varied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 96
# The small trained models of the official program's golden runs.
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "models"
FAMILIES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 2}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"num_key_value_heads": 2, "head_dim": 12}),
    "mistral": (MistralConfig, MistralForCausalLM, {"num_key_value_heads": 2}),
    "phi3": (Phi3Config, Phi3ForCausalLM, {"num_key_value_heads": 2}),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {}),
}
# Families whose layers ask more of attention than the others': windows on some of them, capped scores, sinks.
MIXED = (["sliding_attention", "full_attention"] * 4)[:7]
SPECIAL: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], dict[str, Any]]] = {
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": MIXED},
    ),
    "gemma2": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "layer_types": MIXED,
            "attn_logit_softcapping": 2.0,
        },
    ),
    "gpt_oss": (
        GptOssConfig,
        GptOssForCausalLM,
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "layer_types": MIXED,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}
# Weights whose greedy texts are varied and without near ties (a test sees to it).
SEEDS = {"llama": 4, "qwen3": 3, "mistral": 3, "phi3": 0, "gpt_neox": 15, "gemma3": 7, "gemma2": 7, "gpt_oss": 6}


def tiny_target(
    family: str = "llama",
    *,
    attention: str = "sdpa",
    seed: int | None = None,
    cls: type | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """A random float32 target of seven layers over `VOCABULARY` tokens, without any end-of-text token.

    Args:
        family: one of `FAMILIES` or `SPECIAL`.
        attention: its attention implementation.
        seed: of its weights.
        cls: a subclass to build in place of the family's class.
        overrides: fields of its config.
    """
    config_class, model_class, fields = (FAMILIES | SPECIAL)[family]
    defaults: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.6,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    config = config_class(**(defaults | fields | overrides), attn_implementation=attention)
    return _seeded(cls or model_class, config, SEEDS[family] if seed is None else seed)


def gpt2_target(positions: int, seed: int = 7) -> PreTrainedModel:
    """A tiny GPT-2, whose learned positions end after `positions`."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=positions,
        n_embd=32,
        n_layer=7,
        n_head=4,
        initializer_range=0.6,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return _seeded(GPT2LMHeadModel, config, seed)


def _seeded(cls: type, config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cls(config).eval()


def prompt(length: int = 9, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Random token ids, int64 `[1, length]`."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(1, vocabulary, (1, length), generator=generator)


def letters(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters: a line feed and the printable ASCII signs, 96 in all."""
    from tokenizers import Tokenizer, decoders, models

    signs = ["\n", *(chr(code) for code in range(32, 127))][:vocabulary]
    tokenizer = Tokenizer(models.BPE({sign: number for number, sign in enumerate(signs)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
