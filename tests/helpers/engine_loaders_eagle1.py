"""What each engine makes of a head of EAGLE-1, played as in `engine_loaders.py` from the source of its loader.

SGLang and vLLM: `llama_eagle.py` over `llama.py`, and the worker that shares the target's embeddings. The official
program: `cnets1.py` and `ea_model.py`, whose first versions load strictly. Knows nothing of this project's exporter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .engine_loaders import PROJECTIONS, Fields, Refused, rope_read, tensors_in

ATTENTION = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o")
MLP = ("mlp.gate", "mlp.up", "mlp.down")


@dataclass(frozen=True)
class Reading:
    """How an engine would run a head.

    Attributes:
        biases: of its parameters, those biases that are not all zeros.
        own_embeddings: whether it drafts with those of the file.
        proposed: how many tokens it can propose.
        passed_over: tensors of the file that it does not load and does not mention.
        left_random: parameters of its module that no tensor of the file fills.
    """

    layers: int = 1
    head_dim: int = 0
    norms: bool = False
    biases: set[str] = field(default_factory=set)
    own_embeddings: bool = False
    proposed: int = 0
    rope: tuple[float, str, tuple[tuple[str, Any], ...]] = (10000.0, "default", ())
    passed_over: set[str] = field(default_factory=set)
    left_random: set[str] = field(default_factory=set)


def read(engine: str, folder: Path) -> Reading:
    """Read a folder as `engine` does: "official-v1", "official", "sglang" or "vllm"."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ENGINES[engine](config, tensors_in(folder, prefers_bin=engine.startswith("official")))


def _parameters(config: Fields, joined: tuple[str, ...], biased: tuple[str, ...]) -> set[str]:
    names = {f"fc.{kind}" for kind in joined}
    for layer in range(config["num_hidden_layers"]):
        norms = ("post_attention_layernorm",) + (("input_layernorm",) if layer > 0 else ())
        names |= {f"layers.{layer}.{norm}.weight" for norm in norms}
        names |= {f"layers.{layer}.{name}_proj.weight" for name in PROJECTIONS}
        names |= {f"layers.{layer}.{name}_proj.bias" for name in biased}
    return names


def _reading(config: Fields, tensors: dict[str, torch.Tensor], taken: set[str], **more: Any) -> Reading:
    return Reading(
        layers=config["num_hidden_layers"],
        biases={name for name in taken & tensors.keys() if name.endswith("bias") and tensors[name].any()},
        proposed=config["vocab_size"],
        passed_over=tensors.keys() - taken,
        left_random=taken - tensors.keys(),
        **more,
    )


def _official(strict: bool, config: Fields, tensors: dict[str, torch.Tensor]) -> Reading:
    joined = ("weight", "bias") if config.get("bias", True) else ("weight",)
    taken = _parameters(config, joined, ATTENTION[:3] if config.get("qkv_bias", False) else ())
    taken |= {"embed_tokens.weight"}
    if strict and taken != tensors.keys():
        raise Refused(f"keys {sorted(taken ^ tensors.keys())}")
    width = config["hidden_size"] // config["num_attention_heads"]
    if tensors["layers.0.self_attn.q_proj.weight"].shape[0] != width * config["num_attention_heads"]:
        raise Refused("the shape of q_proj")
    scaling = config.get("rope_scaling")
    if scaling is not None and scaling["type"] not in ("linear", "dynamic"):
        raise Refused("rope")
    theta = config.get("rope_theta", 10000.0) if scaling is None else 10000.0
    return _reading(config, tensors, taken, own_embeddings=True, head_dim=width, rope=rope_read(scaling, theta))


def _engine(sglang: bool, config: Fields, tensors: dict[str, torch.Tensor]) -> Reading:
    architecture = config["architectures"][0]
    if architecture != ("LlamaForCausalLMEagle" if sglang else "LlamaForCausalLM"):
        raise Refused("no such model")
    if config["hidden_act"] != "silu":
        raise Refused("MLP takes silu only")
    biased = ATTENTION if config.get("attention_bias") or config.get("bias") else ()
    biased += MLP if config.get("mlp_bias") and not sglang else ()
    taken = _parameters(config, ("weight", "bias") if sglang else ("weight",), biased)
    if not sglang and tensors.keys() - taken - {"embed_tokens.weight"}:
        raise Refused(f"unknown names {sorted(tensors.keys() - taken)}")
    rope = rope_read(config.get("rope_parameters") or config.get("rope_scaling"), config.get("rope_theta", 10000.0))
    return _reading(config, tensors, taken, head_dim=config["head_dim"], rope=rope)


ENGINES: dict[str, Callable[[Fields, dict[str, torch.Tensor]], Reading]] = {
    "official-v1": lambda config, tensors: _official(True, config, tensors),
    "official": lambda config, tensors: _official(False, config, tensors),
    "sglang": lambda config, tensors: _engine(True, config, tensors),
    "vllm": lambda config, tensors: _engine(False, config, tensors),
}
