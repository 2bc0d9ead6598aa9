"""Tiny heads for export, one for each way in which heads differ, and what each computes, told once more by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_eagle3 import Eagle3Config, Eagle3DraftModel

from .checkpoint_conventions import Conventions, Rope
from .targets import tiny_target

LAYERS = 10  # of the target
LENGTH, STEPS = 9, 4  # what a head reads at first, and how often it is run
WIDER = 48  # than a head
WIDTH, VOCABULARY = 32, 96
LAYOUTS = ("eagle", "sglang", "vllm", "speculators")
ROPE3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}


@dataclass(frozen=True)
class Kind:
    """One kind of head.

    Attributes:
        fields: what its config says beyond the plain head's.
        rules: the same for the reference; None where the reference has no words for it.
        layouts: that can say it; those in `newer` only from a version on.
    """

    fields: dict[str, Any]
    rules: Conventions | None
    layouts: tuple[str, ...] = LAYOUTS
    newer: dict[str, str] = field(default_factory=dict)


PLAIN = Conventions(kind="eagle3", boundaries=(2, 5, 7))
BOTH = ("vllm", "speculators")
THREE = ("sglang", *BOTH)


def _scaled(rope_type: str, theta: float, **rest: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **rest}}


KINDS = {
    "plain": Kind({}, PLAIN),
    "boundaries_left_open": Kind({"target_boundaries": None}, PLAIN),
    "other_boundaries": Kind({"target_boundaries": [2, 4, 9]}, replace(PLAIN, boundaries=(2, 4, 9)), THREE),
    "boundaries_from_3": Kind({"target_boundaries": [3, 5, 7]}, replace(PLAIN, boundaries=(3, 5, 7)), BOTH),
    "boundaries_from_1": Kind(
        {"target_boundaries": [1, 5, 7]}, replace(PLAIN, boundaries=(1, 5, 7)), ("speculators",)
    ),
    "five_boundaries": Kind(
        {"target_boundaries": [2, 4, 5, 7, 9]},
        replace(PLAIN, boundaries=(2, 4, 5, 7, 9)),
        ("sglang", "vllm", "speculators"),
    ),
    "full_vocabulary": Kind({"draft_vocab_size": VOCABULARY}, replace(PLAIN, mapping="identity")),
    "base": Kind(_scaled("default", 5e5), replace(PLAIN, rope=Rope(base=5e5))),
    "linear": Kind(_scaled("linear", 1e4, factor=4.0), replace(PLAIN, rope=Rope(kind="linear", factor=4.0))),
    "linear_base": Kind(
        _scaled("linear", 5e5, factor=4.0), replace(PLAIN, rope=Rope(5e5, "linear", factor=4.0)), THREE
    ),
    "llama3": Kind(_scaled("llama3", 5e5, **ROPE3), replace(PLAIN, rope=Rope(5e5, "llama3", factor=8.0)), THREE),
    "yarn": Kind(
        _scaled("yarn", 5e4, factor=4.0, original_max_position_embeddings=256),
        replace(PLAIN, rope=Rope(5e4, "yarn", factor=4.0)),
        THREE,
    ),
    "dynamic": Kind(_scaled("dynamic", 1e4, factor=4.0), None, ()),
    "head_dim": Kind({"head_dim": 16}, PLAIN, THREE),
    "wide_target": Kind(
        {"target_hidden_size": WIDER, "own_embeddings": True},
        replace(PLAIN, embeddings="own"),
        ("eagle", "sglang", "vllm"),
    ),
    "own_embeddings": Kind(
        {"own_embeddings": True}, replace(PLAIN, embeddings="own"), ("eagle", "vllm", "speculators")
    ),
    "norm_before_residual": Kind({"norm_before_residual": True}, replace(PLAIN, residual="normed"), BOTH),
    "norm_before_fc": Kind(
        {"norm_before_fc": True},
        replace(PLAIN, state_norm="concat"),
        THREE,
        {"sglang": "0.5.23", "speculators": "0.5.0"},
    ),
    "fc_norm": Kind(
        {"fc_norm": True}, replace(PLAIN, state_norm="chunk"), THREE, {"sglang": "0.5.23", "speculators": "0.8.1"}
    ),
    "norm_output": Kind(
        {"norm_output": True},
        replace(PLAIN, feedback="post_norm"),
        THREE,
        {"sglang": "0.5.23", "vllm": "0.33.0", "speculators": "0.8.1"},
    ),
    "window": Kind({"sliding_window": 4}, replace(PLAIN, window=4), BOTH, {"vllm": "0.33.0", "speculators": "0.8.1"}),
    "qk_norm": Kind({"qk_norm": True}, replace(PLAIN, qk_norm=True), ("speculators",)),
    "qk_norm_mlp_bias": Kind({"qk_norm": True, "mlp_bias": True}, None, ()),
    "qkv_bias": Kind({"qkv_bias": True}, replace(PLAIN, qkv_bias=True), BOTH),
    "attention_bias": Kind({"attention_bias": True}, None, BOTH),
    "mlp_bias": Kind({"mlp_bias": True}, None, BOTH),
    "gelu": Kind({"hidden_act": "gelu"}, None, ("eagle", "speculators")),
    "two_layers": Kind({"num_hidden_layers": 2}, replace(PLAIN, layers=2), BOTH),
    "last_state": Kind(
        {"reads_last_hidden_state": True, "target_boundaries": None},
        replace(PLAIN, boundaries=(), projection="none"),
        ("sglang", "vllm"),
        {"sglang": "0.5.23", "vllm": "0.33.0"},
    ),
    "trained_2026": Kind(
        {"norm_before_residual": True, "norm_before_fc": True, "norm_output": True, "sliding_window": 4},
        replace(PLAIN, residual="normed", state_norm="concat", feedback="post_norm", window=4),
        BOTH,
        {"vllm": "0.33.0", "speculators": "0.8.1"},
    ),
}


def tiny_head(kind: Kind, seed: int = 0, dtype: torch.dtype = torch.float32) -> Eagle3DraftModel:
    """A head of random weights, norms and biases among them."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "draft_vocab_size": 40,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "target_boundaries": [2, 5, 7],
    }
    head = Eagle3DraftModel(Eagle3Config(**fields | kind.fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in head.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            drawn = torch.rand if norm else torch.randn
            weight.copy_(drawn(weight.shape, generator=generator) * (1.0 if norm else 0.3) + (0.5 if norm else 0.0))
    size = int(head.config.draft_vocab_size or 0)
    if size < VOCABULARY:
        head.set_draft_vocabulary(torch.randperm(VOCABULARY, generator=generator)[:size].sort().values)
    return head.to(dtype)


def save_targets(folder: Path) -> dict[int, str]:
    """Folders of a target as wide as the heads, and of a wider one, by their widths."""
    for width in (WIDTH, WIDER):
        tiny_target(num_hidden_layers=LAYERS, hidden_size=width).save_pretrained(folder / str(width))
    return {width: str(folder / str(width)) for width in (WIDTH, WIDER)}


def target_of(kind: str, targets: dict[int, str]) -> str:
    return targets[KINDS[kind].fields.get("target_hidden_size", WIDTH)]


def embeddings_of(target: str) -> torch.Tensor:
    return load_file(f"{target}/model.safetensors")["model.embed_tokens.weight"]


def inputs(head: Any, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    count, width = head.config.num_target_boundaries, head.config.target_hidden_size
    states = [torch.randn(LENGTH, width, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]
    return states, torch.randint(0, VOCABULARY, (LENGTH + STEPS,), generator=generator)


def in_own_memory(head: Any) -> Any:
    """Weights mapped from a file lie at odd addresses, where matrix products round differently."""
    for weight in head.parameters():
        weight.data = weight.data.clone()
    return head


@torch.no_grad()
def drafted(head: Any, embeddings: torch.Tensor) -> list[torch.Tensor]:
    """Logits of every step: all states at once, then a chain from the last."""
    states, tokens = inputs(head, head.dtype)
    embed = head.embed_tokens.weight if head.embed_tokens is not None else embeddings.to(head.dtype)
    hidden, cache, found = head.fuse(torch.cat(states, dim=-1)[None]), None, []
    for step in range(STEPS):
        new = tokens[None, 1 : LENGTH + 1] if step == 0 else tokens[None, LENGTH + step : LENGTH + step + 1]
        out = head(hidden, inputs_embeds=embed[new], past_key_values=cache, use_cache=True)
        hidden, cache = out.last_hidden_state[:, -1:], out.past_key_values
        found.append(out.logits[0])
    return found
