"""Tiny heads of EAGLE-1 for export, one for each way in which they differ; as `export_heads.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file

from hf_eagle3 import EagleConfig, EagleDraftModel

from .checkpoint_conventions import EAGLE1, Rope
from .export_heads import LENGTH, ROPE3, STEPS, VOCABULARY, WIDTH, Kind

LAYOUTS = ("eagle", "sglang", "vllm")
ENGINES = ("sglang", "vllm")
PLAIN = replace(EAGLE1, fc_bias=False, embeddings="target")


def _scaled(rope_type: str, theta: float, **rest: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **rest}}


# `copies`, in place of a field: which of the target's weights a head brings.
KINDS = {
    "plain": Kind({}, PLAIN, LAYOUTS),
    "fc_bias": Kind({"fc_bias": True}, replace(PLAIN, fc_bias=True), ("eagle", "sglang")),
    "fc_bias_of_zeros": Kind({"fc_bias": True, "copies": ("fc.bias",)}, PLAIN, LAYOUTS),
    "own_embeddings": Kind({"own_embeddings": True}, replace(PLAIN, embeddings="own"), ("eagle",)),
    "targets_embeddings": Kind({"own_embeddings": True, "copies": ("embed_tokens.weight",)}, PLAIN, LAYOUTS),
    "own_lm_head": Kind({"own_lm_head": True}, None, ()),
    "targets_lm_head": Kind({"own_lm_head": True, "copies": ("lm_head.weight",)}, PLAIN, LAYOUTS),
    "reduced_vocabulary": Kind({"own_lm_head": True, "draft_vocab_size": 40}, None, ()),
    "layernorms": Kind({"layernorms": True}, None, ()),
    "head_dim": Kind({"head_dim": 16}, PLAIN, ENGINES),
    "attention_bias": Kind({"attention_bias": True}, None, ENGINES),
    "qkv_bias": Kind({"qkv_bias": True}, replace(PLAIN, qkv_bias=True), LAYOUTS),
    "mlp_bias": Kind({"mlp_bias": True}, None, ("vllm",)),
    "two_layers": Kind(
        {"num_hidden_layers": 2, "qkv_bias": True}, replace(PLAIN, layers=2, qkv_bias=True), ("sglang",)
    ),
    "gelu": Kind({"hidden_act": "gelu"}, None, ("eagle",)),
    "base": Kind(_scaled("default", 5e5), replace(PLAIN, rope=Rope(base=5e5)), LAYOUTS),
    "linear": Kind(_scaled("linear", 1e4, factor=4.0), replace(PLAIN, rope=Rope(kind="linear", factor=4.0)), LAYOUTS),
    "linear_base": Kind(
        _scaled("linear", 5e5, factor=4.0), replace(PLAIN, rope=Rope(5e5, "linear", factor=4.0)), ENGINES
    ),
    "llama3": Kind(_scaled("llama3", 5e5, **ROPE3), replace(PLAIN, rope=Rope(5e5, "llama3", factor=8.0)), ENGINES),
    "yarn": Kind(
        _scaled("yarn", 5e4, factor=4.0, original_max_position_embeddings=256),
        replace(PLAIN, rope=Rope(5e4, "yarn", factor=4.0)),
        ENGINES,
    ),
    "dynamic": Kind(_scaled("dynamic", 1e4, factor=4.0), None, ()),
}


def weights_of(target: str) -> dict[str, torch.Tensor]:
    """What a head may borrow or bring a copy of, by its names for them; and a bias that does nothing."""
    stored = load_file(f"{target}/model.safetensors")
    return {
        "embed_tokens.weight": stored["model.embed_tokens.weight"],
        "lm_head.weight": stored["lm_head.weight"],
        "fc.bias": torch.zeros(WIDTH),
    }


def tiny_head(kind: Kind, target: str, dtype: torch.dtype = torch.float32) -> EagleDraftModel:
    """A head of random weights, norms and biases among them, but for what it has of the target."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "fc_bias": False,
    }
    copies = kind.fields.get("copies", ())
    own = {name: value for name, value in kind.fields.items() if name != "copies"}
    head = EagleDraftModel(EagleConfig(**fields | own)).eval()
    generator, given = torch.Generator().manual_seed(0), weights_of(target)
    with torch.no_grad():
        for name, weight in head.named_parameters():
            norm = "norm" in name
            drawn = (torch.rand if norm else torch.randn)(weight.shape, generator=generator)
            weight.copy_(given[name] if name in copies else drawn * (1.0 if norm else 0.3) + (0.5 if norm else 0.0))
    if head.reduced:
        head.set_draft_vocabulary(torch.randperm(VOCABULARY, generator=generator)[:40].sort().values)
    return head.to(dtype)


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's last hidden states `[LENGTH, WIDTH]`, and tokens."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(LENGTH, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return states, torch.randint(0, VOCABULARY, (LENGTH + STEPS,), generator=generator)


@torch.no_grad()
def drafted(head: Any, target: str) -> list[torch.Tensor]:
    """Logits of every step: all states at once, then a chain from the last; with the target's for what it borrows."""
    states, tokens = inputs(head.dtype)
    given = {name: weight.to(head.dtype) for name, weight in weights_of(target).items()}
    embed = given["embed_tokens.weight"] if head.embed_tokens is None else head.embed_tokens.weight
    score = head.lm_head or (lambda rows: torch.nn.functional.linear(rows, given["lm_head.weight"]))
    hidden, cache, found = states[None], None, []
    for step in range(STEPS):
        new = tokens[None, 1 : LENGTH + 1] if step == 0 else tokens[None, LENGTH + step : LENGTH + step + 1]
        out = head(hidden, inputs_embeds=embed[new], lm_head=score, past_key_values=cache, use_cache=True)
        hidden, cache = out.last_hidden_state[:, -1:], out.past_key_values
        found.append(out.logits[0])
    return found
