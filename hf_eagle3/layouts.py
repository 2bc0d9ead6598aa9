"""Checkpoints on disk, in every layout we read, to an `Eagle3Config` and canonical tensors; and their checks.

Structure is read from the tensors first and the config second, because released configs are often wrong about it
(`num_hidden_layers: 40` for a one-layer head, ties that do not hold). Knows nothing of modules.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file

from .configuration_eagle3 import Eagle3Config

# In the order of trust: safetensors before pickles where a repository holds both, as transformers does.
WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
CONFIG_FIELDS = frozenset(Eagle3Config.__annotations__) | {"rope_theta"}
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Fields of a Llama-like config that mean the same in a head's.
SHARED_FIELDS = (
    "vocab_size",
    "draft_vocab_size",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "num_attention_heads",
    "target_hidden_size",
)

# Flags that change a forward and leave no tensor behind: to load such a head without them would be silently wrong.
CHANGES_THE_FORWARD: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    *((name, bool) for name in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")),
    *((name, bool) for name in ("use_mtp_layernorm", "eh_proj_before_attn", "use_sliding_window")),
    *((name, lambda value: value is False) for name in ("use_aux_hidden_state", "use_last_layernorm")),
    ("next_layer_regular", lambda value: value is False),
    ("reuse_target_lm_head", bool),
    ("layer_types", lambda value: "sliding_attention" in (value or ())),
    ("parallel_draft_step", lambda value: (value or 1) > 1),
    ("partial_rotary_factor", lambda value: value not in (None, 1.0)),
)
KNOWN_ROPE = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")

Tensors = dict[str, torch.Tensor]


@dataclass
class Checkpoint:
    """A head as read from disk: canonical tensors (names of `Eagle3DraftModel.state_dict()`) and its config."""

    config: Eagle3Config
    tensors: Tensors
    dtype: torch.dtype
    generation_config: GenerationConfig | None
    source: str


@dataclass(frozen=True)
class Layout:
    """One family of checkpoints: how its config is recognised and how its tensors are renamed."""

    name: str
    recognise: Callable[[Mapping[str, Any]], bool]
    rename: tuple[tuple[str, str], ...] = ()


def _is_native(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == Eagle3Config.model_type and "speculators_model_type" not in config


def _is_released_eagle3(config: Mapping[str, Any]) -> bool:
    """yuhuili's and SpecForge's heads call themselves Llama; a draft vocabulary or the class name tells them apart."""
    architectures = config.get("architectures") or [""]
    named = architectures[0] == "LlamaForCausalLMEagle3"
    return named or (architectures[0] == "LlamaForCausalLM" and config.get("draft_vocab_size") is not None)


LAYOUTS = (
    Layout("hf-eagle3", _is_native),
    Layout("eagle3", _is_released_eagle3, rename=((r"^midlayer\.", "layers.0."),)),
)


def recognise(config: Mapping[str, Any]) -> Layout | None:
    """The layout that a config.json announces, or `None` if it is no draft head that we know."""
    return next((layout for layout in LAYOUTS if layout.recognise(config)), None)


# ---------------------------------------------------------------------- reading


def read_config(source: str | os.PathLike, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of a folder or Hub repository as it is, whatever its `model_type`.

    Raises:
        OSError: if there is none, or it is not JSON.
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    return PreTrainedConfig.get_config_dict(source, **hub)[0]


def read_checkpoint(source: str | os.PathLike, kwargs: dict[str, Any]) -> Checkpoint:
    """Read and convert a head.

    Takes out of `kwargs` what it serves: the Hub's arguments, `config` (an [`Eagle3Config`] is taken as it is, a path
    is read instead of the head's own), and fields of `Eagle3Config`, which win.

    Raises:
        OSError: if files are missing or unreadable.
        ValueError: if the layout is not a head's that we know, or its tensors make no head.
    """
    given = kwargs.pop("config", None)
    hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    hub = {name: value for name, value in hub.items() if value is not None}
    files = _weight_files(kwargs)
    overrides = {name: kwargs.pop(name) for name in CONFIG_FIELDS & kwargs.keys()}
    fields = read_config(given if isinstance(given, (str, os.PathLike)) else source, hub)
    layout = recognise(fields)
    if layout is None:
        raise ValueError(
            f"{source} holds a config with model_type {fields.get('model_type')!r} and architectures "
            f"{fields.get('architectures')}, which is no EAGLE-3 head; pass a head saved by hf-eagle3 or released in "
            "the EAGLE-3 layout (`draft_vocab_size` in its config)."
        )
    tensors = _rename(_read_tensors(str(source), hub, files), layout)
    dtype = tensors["lm_head.weight"].dtype if "lm_head.weight" in tensors else torch.get_default_dtype()
    config = given if isinstance(given, Eagle3Config) else _config_from(fields, tensors, layout, str(source))
    if "rope_theta" in overrides:  # a released config's word for what now is part of `rope_parameters`
        overrides["rope_parameters"] = {**(config.rope_parameters or {}), "rope_theta": overrides.pop("rope_theta")}
    if overrides:
        config = Eagle3Config.from_dict({**config.to_dict(), **overrides})
    _fill_vocabulary_maps(tensors, config, str(source))
    return Checkpoint(config, tensors, dtype, _read_generation_config(source, hub), str(source))


def _weight_files(kwargs: dict[str, Any]) -> tuple[str, ...]:
    """Which files to look for; takes the arguments that say so out of `kwargs`, and those that mean nothing here."""
    for name in ("trust_remote_code", "code_revision", "_from_auto", "_commit_hash"):
        kwargs.pop(name, None)
    if kwargs.pop("variant", None) is not None:
        raise ValueError("`variant` was given, but heads are stored in one variant only; leave it out.")
    safe = kwargs.pop("use_safetensors", None)
    return WEIGHT_FILES if safe is None else WEIGHT_FILES[:2] if safe else WEIGHT_FILES[2:]


def _read_tensors(source: str, hub: Mapping[str, Any], files: tuple[str, ...]) -> Tensors:
    for name in files:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return _read_file(path)
        shards = sorted(set(json.loads(Path(path).read_text())["weight_map"].values()))
        tensors: Tensors = {}
        for shard in shards:
            tensors |= _read_file(str(cached_file(source, shard, **hub)))
        return tensors
    raise OSError(f"{source} holds none of {', '.join(files)}; a head needs its weights in one of them.")


def _read_file(path: str) -> Tensors:
    """Tensors of one file; a pickle is read with `weights_only=True`, so that nothing in it can run."""
    try:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                return {name: file.get_tensor(name) for name in names}
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise OSError(
            f"{path} cannot be read ({_first_line(error)}): it is truncated or not what its name says; "
            "download or save it again."
        ) from error
    except Exception as error:
        # torch raises `pickle.UnpicklingError` for code and for damage alike, and other types for odd archives.
        raise OSError(
            f"{path} is not a plain file of tensors and was refused without running anything in it "
            f"({type(error).__name__}); ask its author for safetensors."
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise OSError(f"{path} holds no dictionary of tensors; ask its author for the head's state dict.")
    return loaded


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _read_generation_config(source: str | os.PathLike, hub: Mapping[str, Any]) -> GenerationConfig | None:
    path = cached_file(source, "generation_config.json", _raise_exceptions_for_missing_entries=False, **hub)
    if path is None:
        return None
    try:
        return GenerationConfig(**json.loads(Path(path).read_text()))
    except json.JSONDecodeError as error:
        raise OSError(f"{path} is not JSON ({error.msg}); delete it or save the head again.") from error


def _rename(tensors: Tensors, layout: Layout) -> Tensors:
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        for pattern, replacement in layout.rename:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


# ---------------------------------------------------------------------- config from tensors


def _config_from(fields: Mapping[str, Any], tensors: Tensors, layout: Layout, source: str) -> Eagle3Config:
    if layout.name == "hf-eagle3":
        return Eagle3Config.from_dict(dict(fields))
    for name in ("vocab_size", "num_attention_heads"):
        if fields.get(name) is None and not (name == "vocab_size" and _target_vocabulary(fields, tensors)):
            raise ValueError(f"{source} has no `{name}` in its config, which its tensors do not tell; add it.")
    for name in ("fc.weight", "lm_head.weight", "layers.0.self_attn.q_proj.weight", "layers.0.mlp.gate_proj.weight"):
        if name not in tensors:
            raise _missing([name], source)
    _refuse_other_forwards(fields, source)
    shared = {name: fields[name] for name in SHARED_FIELDS if fields.get(name) is not None}
    hidden, fused = tensors["fc.weight"].shape
    target_hidden = shared.pop("target_hidden_size", hidden)
    heads = shared["num_attention_heads"]
    head_dim = tensors["layers.0.self_attn.q_proj.weight"].shape[0] // heads
    if fused % target_hidden:
        raise ValueError(
            f"{source}: `fc.weight` is [{hidden}, {fused}], which is no whole number of target states of width "
            f"{target_hidden}; set `target_hidden_size` in its config."
        )
    return Eagle3Config(
        **{
            **shared,
            "vocab_size": _target_vocabulary(fields, tensors),
            "draft_vocab_size": tensors["lm_head.weight"].shape[0],
            "hidden_size": hidden,
            "intermediate_size": tensors["layers.0.mlp.gate_proj.weight"].shape[0],
            "num_hidden_layers": 1 + max((int(m[1]) for m in map(_LAYER.match, tensors) if m), default=0),
            "head_dim": head_dim,
            "num_key_value_heads": tensors["layers.0.self_attn.k_proj.weight"].shape[0] // head_dim
            if "layers.0.self_attn.k_proj.weight" in tensors
            else None,
            "attention_bias": "layers.0.self_attn.q_proj.bias" in tensors,
            "target_hidden_size": target_hidden,
            "target_boundaries": _boundaries(fields),
            "num_target_boundaries": fused // target_hidden,
            "own_embeddings": "embed_tokens.weight" in tensors,
        }
    )


def _refuse_other_forwards(fields: Mapping[str, Any], source: str) -> None:
    nested = {**fields, **(fields.get("eagle_config") or {})}
    given = [(name, nested[name]) for name, changes in CHANGES_THE_FORWARD if name in nested and changes(nested[name])]
    flags = [f"{name}={value}" for name, value in given]
    if flags:
        raise ValueError(
            f"{source} sets {', '.join(flags)}, which changes how a head computes and is not supported yet; use a "
            "head of the plain EAGLE-3 layout."
        )
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    kind = "per layer" if any(isinstance(part, dict) for part in rope.values()) else rope.get("rope_type")
    kind = kind or rope.get("type") or "default"
    if kind not in KNOWN_ROPE:
        raise ValueError(f"{source} asks for rotary embeddings of type {kind!r}; known are {', '.join(KNOWN_ROPE)}.")


def _boundaries(fields: Mapping[str, Any]) -> list[int] | None:
    """Boundaries that a released config names, in the one of two conventions that its first id gives away: SpecForge
    writes layer OUTPUTS, whose default begins with 1; others write the boundaries themselves (traps 1 and 3)."""
    nested = {**fields, **(fields.get("eagle_config") or {})}
    ids = sorted(nested.get("eagle_aux_hidden_state_layer_ids") or [])
    if not ids:
        return None
    return [layer + 1 for layer in ids] if ids[0] == 1 else ids


_LAYER = re.compile(r"layers\.(\d+)\.")


def _target_vocabulary(fields: Mapping[str, Any], tensors: Tensors) -> int | None:
    """Rows of `t2d` or of the embeddings where they exist: a config's padded size can differ (trap 29)."""
    for name in ("embed_tokens.weight", "t2d"):
        if name in tensors and tensors[name].numel() > 0:
            return tensors[name].shape[0]
    return fields.get("vocab_size")


def _fill_vocabulary_maps(tensors: Tensors, config: Eagle3Config, source: str) -> None:
    """Complete `d2t` (offsets) and `t2d` (mask): a full vocabulary may ship neither, `t2d` may follow from `d2t`."""
    own = torch.arange(int(config.draft_vocab_size or 0))
    if config.draft_vocab_size == config.vocab_size:
        # Absent, or never filled in, when both vocabularies are one (trap 7).
        tensors["d2t"], tensors["t2d"] = torch.zeros_like(own), torch.ones_like(own, dtype=torch.bool)
    if "d2t" not in tensors:
        return  # a reduced vocabulary without its map is reported as a missing tensor
    d2t = tensors["d2t"] = tensors["d2t"].to(torch.long)
    if d2t.shape != own.shape:
        return  # reported as a misshapen tensor
    ids = own + d2t
    check_draft_vocabulary(ids, config)
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool).index_fill_(0, ids, True)
    if "t2d" in tensors and not torch.equal(tensors["t2d"].bool(), t2d):
        raise ValueError(
            f"{source}: `d2t` names {len(ids)} target tokens but `t2d` marks {int(tensors['t2d'].sum())}, and not the "
            "same ones; the draft vocabulary was never filled in, or is damaged."
        )
    tensors["t2d"] = t2d


# ---------------------------------------------------------------------- checks


def check_draft_vocabulary(target_ids: torch.Tensor, config: Eagle3Config) -> None:
    """Refuse a draft vocabulary that is not `draft_vocab_size` ascending ids of the target's vocabulary.

    Raises:
        ValueError: naming the first id that is wrong.
    """
    if target_ids.shape != (config.draft_vocab_size,):
        raise ValueError(
            f"Got a draft vocabulary of shape {list(target_ids.shape)}; this head needs [{config.draft_vocab_size}]."
        )
    outside = (target_ids < 0) | (target_ids >= config.vocab_size)
    if outside.any():
        where = int(outside.nonzero()[0])
        raise ValueError(
            f"`d2t` maps draft token {where} to target token {int(target_ids[where])}, but the target has "
            f"{config.vocab_size} tokens; the file is damaged, or was written with ids instead of offsets."
        )
    if (target_ids.diff() <= 0).any():
        where = int((target_ids.diff() <= 0).nonzero()[0])
        raise ValueError(
            f"`d2t` maps draft tokens {where} and {where + 1} to target tokens {int(target_ids[where])} and "
            f"{int(target_ids[where + 1])}; the ids must ascend, so the file is damaged."
        )


def check_tensors(tensors: Tensors, expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Refuse a state dict that is not exactly the expected tensors, finite throughout.

    Raises:
        ValueError: naming the tensors that are missing, unknown, misshapen or hold NaN or infinity.
    """
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise _missing(missing, source)
    unknown = sorted(tensors.keys() - expected.keys())
    if unknown:
        raise ValueError(
            f"{source} holds tensors that no layout known here has: {', '.join(unknown)}; running it without them "
            "would draft badly in silence, so it is refused."
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{source}: `{name}` is {list(tensors[name].shape)} but the config and the other tensors need "
                f"{list(shape)}; the files do not belong together."
            )
        if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{source}: `{name}` holds NaN or infinite values; save or download the head again.")


def _missing(names: list[str], source: str) -> ValueError:
    return ValueError(f"{source} lacks the tensors {', '.join(names)}, which every head of its layout needs.")
