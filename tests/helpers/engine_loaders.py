"""What each serving engine makes of a head's folder, played from the written description of its loader.

No engine runs here: `read(engine, folder, layers)` follows which tensor names its loader takes, which it passes over
without a word, and what it assumes of every config field, with its defaults. Whatever the engine refuses aloud is a
`Refused`. Knows nothing of this project's exporter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Fields = dict[str, Any]
PROJECTIONS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")


class Refused(Exception):
    """The engine ends with an error, which a user sees."""


@dataclass(frozen=True)
class Reading:
    """How an engine would run a head.

    Attributes:
        boundaries: every way in which one of its targets takes the ids; more than one is a misunderstanding. `[]` in
            it means the last hidden state.
        rope: base, kind and the kind's parameters.
        target_ids: of each draft id.
        passed_over: tensors of the file that it does not load and does not mention; of no effect are `t2d` and what it
            documents to replace.
        left_random: parameters of its module that no tensor of the file fills.
    """

    boundaries: set[tuple[int, ...]]
    residual_normed: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    qk_norm: bool = False
    layers: int = 1
    window: int | None = None
    own_embeddings: bool = False
    rope: tuple[float, str, tuple[tuple[str, Any], ...]] = (10000.0, "default", ())
    target_ids: tuple[int, ...] = ()
    passed_over: set[str] = field(default_factory=set)
    left_random: set[str] = field(default_factory=set)


def read(engine: str, folder: Path, layers: int) -> Reading:
    """Read a folder as `engine` does: "sglang-0.5.6", "sglang-0.5.23", "vllm-0.33.0" or "official".

    Args:
        layers: of the target that it is served with.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ENGINES[engine](config, tensors_in(folder, prefers_bin=engine == "official"), layers)


def tensors_in(folder: Path, prefers_bin: bool) -> dict[str, torch.Tensor]:
    pickled, safe = folder / "pytorch_model.bin", folder / "model.safetensors"
    if pickled.exists() and (prefers_bin or not safe.exists()):
        return torch.load(pickled, weights_only=True)
    return load_file(safe)


def _default(layers: int) -> tuple[int, ...]:
    return 2, layers // 2, layers - 3


def rope_read(rope: Fields | None, theta: float) -> tuple[float, str, tuple[tuple[str, Any], ...]]:
    rope = dict(rope or {})
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rest = {name: value for name, value in rope.items() if name not in ("type", "rope_theta")}
    return float(rope.get("rope_theta") or theta), kind, tuple(sorted(rest.items()))


def _mapped(config: Fields, tensors: dict[str, torch.Tensor]) -> tuple[int, ...]:
    """d2t holds offsets; without it draft ids are target ids (traps 5 to 7)."""
    size = config.get("draft_vocab_size") or config["vocab_size"]
    ids = torch.arange(size)
    return tuple((ids + tensors["d2t"] if "d2t" in tensors else ids).tolist())


def _layer(prefix: str, norms: tuple[str, ...], biases: tuple[str, ...] = ()) -> set[str]:
    names = {f"{prefix}{norm}.weight" for norm in norms}
    names |= {f"{prefix}{name}_proj.weight" for name in PROJECTIONS}
    return names | {f"{prefix}{name}_proj.bias" for name in biases}


FIRST = ("input_layernorm", "hidden_norm", "post_attention_layernorm")
EVERY = {"fc.weight", "norm.weight", "lm_head.weight"}


def _sglang(new: bool, config: Fields, tensors: dict[str, torch.Tensor], layers: int) -> Reading:
    """`llama_eagle3.py`, `model_runner.py` and the targets' `set_eagle3_layers_to_capture`; unknown names vanish."""
    if config["architectures"][0] != "LlamaForCausalLMEagle3":
        raise Refused("no such model")
    if config["hidden_act"] != "silu":
        raise Refused("MLP takes silu only")
    eagle = config.get("eagle_config") or {}
    ids = eagle.get("eagle_aux_hidden_state_layer_ids")
    aux = eagle.get("use_aux_hidden_state", True) if new else True
    count = config.get("num_aux_hidden_states") or len(ids or (0, 0, 0)) if new else 3
    outputs = tuple(each + 1 for each in ids or ())  # most targets, in every version
    by_first = outputs if ids and (ids[0] == 1 or not new) else tuple(ids or ())  # some targets, sglang#25454
    boundaries = {_default(layers)} if ids is None else {outputs, by_first}
    names = {re.sub(r"^midlayer\.", "layers.0.", name) if new else name: name for name in tensors}
    taken = EVERY | _layer("layers.0." if new else "midlayer.", FIRST)
    flags = {name: new and bool(config.get(name)) for name in ("fc_norm", "norm_output")}
    flags["norm_before_fc"] = new and bool(eagle.get("norm_before_fc", config.get("norm_before_fc", False)))
    taken |= {"input_norm.weight"} if flags["norm_before_fc"] else set()
    taken |= {f"fc_norm.{index}.weight" for index in range(count)} if flags["fc_norm"] else set()
    for index in range(1, config["num_hidden_layers"]):
        inner = f"layers.{index}." if new else f"additional_layers.{index - 1}."
        taken |= _layer(inner, ("hidden_norm", "post_attention_layernorm"))
    width = config.get("target_hidden_size", config["hidden_size"])
    if "fc.weight" in tensors and tensors["fc.weight"].shape[1] != width * count:
        raise Refused("the shape of fc")
    wide = width != config["hidden_size"]
    taken |= {"embed_tokens.weight"} if wide else set()
    if new and config.get("rope_parameters") is not None:
        rope = rope_read(config["rope_parameters"], 10000.0)
    else:
        rope = rope_read(config.get("rope_scaling"), config.get("rope_theta", 10000.0))
    needed = taken - ({"fc.weight"} if not aux else set())
    return Reading(
        boundaries=boundaries if aux else {()},
        layers=config["num_hidden_layers"],
        own_embeddings=wide,
        rope=rope,
        target_ids=_mapped(config, tensors),
        passed_over={own for name, own in names.items() if name not in taken and name not in ("d2t", "t2d")},
        left_random=needed - names.keys(),
        **flags,
    )


def _vllm(config: Fields, tensors: dict[str, torch.Tensor], layers: int) -> Reading:
    """`llama_eagle3.py`, `gpu_model_runner.py`, and `update_eagle3` for speculators' configs; unknown names raise."""
    if "speculators_model_type" in config:
        config = _from_speculators(config)
    architecture = config["architectures"][0]
    if architecture not in ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Eagle3Qwen3ForCausalLM"):
        raise Refused("no such model")
    if config["hidden_act"] != "silu":
        raise Refused("MLP takes silu only")
    eagle = config.get("eagle_config") or {}
    ids = config.get("eagle_aux_hidden_state_layer_ids") or eagle.get("eagle_aux_hidden_state_layer_ids")
    aux = eagle.get("use_aux_hidden_state", True)
    counted = eagle.get("eagle_aux_hidden_state_layer_ids") or (0, 0, 0)
    count = config.get("num_aux_hidden_states") or len(counted)
    flags = {name: bool(config.get(name)) for name in ("fc_norm", "norm_output")}
    flags["norm_before_fc"] = bool(eagle.get("norm_before_fc", config.get("norm_before_fc", False)))
    qk_norm = architecture == "Eagle3Qwen3ForCausalLM"
    biases = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o") if config.get("attention_bias") else ()
    biases += ("mlp.gate", "mlp.up", "mlp.down") if config.get("mlp_bias") else ()
    norms = ("self_attn.q_norm", "self_attn.k_norm") if qk_norm else ()
    taken = EVERY | _layer("layers.0.", FIRST + norms, biases)
    for index in range(1, config["num_hidden_layers"]):
        taken |= _layer(f"layers.{index}.", ("input_layernorm", "post_attention_layernorm", *norms), biases)
    taken |= {"input_norm.weight"} if flags["norm_before_fc"] else set()
    taken |= {f"fc_norm.{index}.weight" for index in range(count)} if flags["fc_norm"] else set()
    names = {name.replace("midlayer.", "layers.0.") for name in tensors} - {"t2d"}
    full = config["draft_vocab_size"] == config["vocab_size"]
    if names - taken - ({"d2t", "embed_tokens.weight"} - ({"d2t"} if full else set())):
        raise Refused(f"unknown names {sorted(names - taken)}")
    width = config.get("target_hidden_size", config["hidden_size"])
    if aux and tensors["fc.weight"].shape[1] != width * count:
        raise Refused("the shape of fc")
    kinds = config.get("layer_types") or [""]
    return Reading(
        boundaries={tuple(ids) if ids else _default(layers)} if aux else {()},
        residual_normed=bool(config.get("norm_before_residual", False)),
        qk_norm=qk_norm,
        layers=config["num_hidden_layers"],
        window=config["sliding_window"] if kinds[0] == "sliding_attention" else None,
        own_embeddings="embed_tokens.weight" in tensors,
        rope=rope_read(config.get("rope_parameters") or config.get("rope_scaling"), config.get("rope_theta", 10000.0)),
        target_ids=_mapped(config, tensors),
        left_random=taken - names - (set() if aux else {"fc.weight"}),
        **flags,
    )


def _from_speculators(config: Fields) -> Fields:
    layer = dict(config["transformer_layer_config"])
    kinds = {"llama": "Eagle3LlamaForCausalLM", "qwen3": "Eagle3Qwen3ForCausalLM"}
    layer["architectures"] = [kinds[layer["model_type"]]]
    layer["draft_vocab_size"] = config["draft_vocab_size"]
    if config.get("target_hidden_size") is not None:
        layer["target_hidden_size"] = config["target_hidden_size"]
    layer["norm_before_residual"] = config.get("norm_before_residual", True)
    for name in ("norm_before_fc", "fc_norm", "norm_output"):
        layer[name] = config.get(name, False)
    if config.get("eagle_aux_hidden_state_layer_ids"):
        layer["eagle_aux_hidden_state_layer_ids"] = config["eagle_aux_hidden_state_layer_ids"]
    return layer


def _official(config: Fields, tensors: dict[str, torch.Tensor], layers: int) -> Reading:
    """`ea_model.py`, `cnets.py`: strict=False, so what is unknown vanishes and what is missing stays random."""
    taken = EVERY | _layer("midlayer.", FIRST)
    own = "target_hidden_size" in config
    taken |= {"embed_tokens.weight"} if own else set()
    full = config["draft_vocab_size"] == config["vocab_size"]
    maps = set() if full else {"d2t", "t2d"}
    queries = tensors.get("midlayer.self_attn.q_proj.weight")
    if queries is not None and queries.shape[0] != config["hidden_size"]:
        raise Refused("the shape of q_proj")  # it takes the width of its heads from the head's
    width = config.get("target_hidden_size", config["hidden_size"])
    if "fc.weight" in tensors and tensors["fc.weight"].shape[1] != 3 * width:
        raise Refused("the shape of fc")
    scaling = config.get("rope_scaling")
    if scaling is not None and scaling["type"] not in ("linear", "dynamic"):
        raise Refused("rope")
    theta = config.get("rope_theta", 10000.0) if scaling is None else 10000.0
    return Reading(
        boundaries={_default(layers)},
        own_embeddings=own,
        rope=rope_read(scaling, theta),
        target_ids=_mapped(config, {} if full else tensors),
        passed_over=tensors.keys() - taken - maps,
        left_random=(taken | maps) - tensors.keys(),
    )


ENGINES: dict[str, Callable[[Fields, dict[str, torch.Tensor], int], Reading]] = {
    "sglang-0.5.6": lambda config, tensors, layers: _sglang(False, config, tensors, layers),
    "sglang-0.5.23": lambda config, tensors, layers: _sglang(True, config, tensors, layers),
    "vllm-0.33.0": _vllm,
    "official": _official,
}
