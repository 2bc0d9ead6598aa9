"""Tiny draft-head checkpoints in every catalogued format, written exactly as the catalogue describes them.

`variants()` lists them, `synthesise()` writes one folder. Field names, nesting, value types, tensor keys, dtypes and
file names are the catalogue's; only sizes shrink and `<...>` placeholders are filled. What a loader should make of a
folder is in `Synthetic.conventions` (from `checkpoint_conventions.py`) and `Synthetic.facts`. Knows no loader.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .checkpoint_conventions import ENTRIES, TARGET_LAYERS, Conventions, Entry
from .checkpoint_options import OPTIONS, Draft, Sizes, Spec, layer_fields
from .checkpoint_tiny import (
    megatron_layers,
    qkv_biases,
    rest_of_latent_head,
    shape,
    speculator_layer,
    tiny_config,
)

__all__ = ["Facts", "Sizes", "Synthetic", "Variant", "synthesise", "variant", "variants"]

DATA = Path(__file__).parent.parent / "data"


@dataclass(frozen=True)
class Variant:
    """One catalogued format; `config` and `tensors` are as the JSON file has them, sometimes only a sentence."""

    family: str
    handle: str
    name: str
    config: Any
    tensors: Any
    files: tuple[str, ...]
    note: str
    entry: Entry | None
    refuse: bool = False
    reason: str = ""

    @property
    def id(self) -> str:
        """Unique and short, for test ids."""
        return f"{self.family}-{self.handle}"

    @property
    def options(self) -> tuple[str, ...]:
        """Departures this variant accepts."""
        return self.entry.options if self.entry else ()

    @property
    def inexpressible(self) -> str:
        """Why no reference logits exist for it, empty where they do."""
        return self.entry.inexpressible if self.entry else self.reason


@dataclass(frozen=True)
class Facts:
    """What a test needs to know of the target and the vocabulary.

    Attributes:
        boundaries: target boundaries the head reads, ascending; empty where it reads the post-norm last state.
        target_ids: [Vd] int64, target id of each draft id.
    """

    target_hidden_size: int
    target_layers: int
    target_vocab_size: int
    boundaries: tuple[int, ...]
    uses_post_norm: bool
    rms_norm_eps: float
    target_ids: torch.Tensor


@dataclass(frozen=True)
class Synthetic:
    """A written folder with what it holds (`config`, `state_dict`) and what it means (`conventions`, `facts`).

    `refuse` is empty where a loader has to load the folder; `completed` names config fields that were added because
    the catalogue shows too few to build any head.
    """

    variant: Variant
    options: tuple[str, ...]
    folder: Path
    files: tuple[str, ...]
    sizes: Sizes
    config: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    conventions: Conventions | None
    facts: Facts
    completed: tuple[str, ...]
    refuse: str


def variants() -> list[Variant]:
    """The 45 catalogued variants in file order, then formats that are not EAGLE (`refuse` is true)."""
    return [*_catalogued(), *_foreign()]


def variant(identifier: str) -> Variant:
    """The variant with this `Variant.id`."""
    return next(known for known in variants() if known.id == identifier)


def synthesise(variant: Variant, folder: str | Path, seed: int = 0, options: Iterable[str] = ()) -> Synthetic:
    """Write a tiny checkpoint of `variant` into `folder`.

    A tensor's values depend on `seed` and its name only, so that two folders of one seed agree wherever they share a
    tensor. RMSNorm weights are uniform in [0.5, 1.5], all others normal with deviation 0.3.

    Args:
        options: names out of `variant.options`, applied in order.
    """
    options = tuple(options)
    unknown = [name for name in options if name not in variant.options]
    if unknown:
        raise ValueError(f"{variant.id} has no option {unknown}, only {list(variant.options)}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draft = _draft(variant)
    for name in options:
        OPTIONS[name](draft)
    target_ids = _vocabulary(draft, seed)
    state = {key: _tensor(key, spec, draft, target_ids, seed) for key, spec in draft.specs.items()}
    files = _write(folder, draft, state)
    sizes = draft.sizes
    boundaries = draft.conventions.boundaries if draft.conventions else ()
    facts = Facts(
        target_hidden_size=sizes.Ht,
        target_layers=TARGET_LAYERS,
        target_vocab_size=sizes.Vt,
        boundaries=boundaries,
        uses_post_norm=not boundaries,
        # Library default of every Llama-like config where the field is missing.
        rms_norm_eps=layer_fields(draft.config).get("rms_norm_eps", 1e-06),
        target_ids=target_ids,
    )
    return Synthetic(
        variant=variant,
        options=options,
        folder=folder,
        files=files,
        sizes=sizes,
        config=draft.config,
        state_dict=state,
        conventions=draft.conventions,
        facts=facts,
        completed=draft.completed,
        refuse=draft.refuse,
    )


def _catalogued() -> list[Variant]:
    found = []
    for family in json.loads((DATA / "checkpoint-formats.json").read_text(encoding="utf-8"))["families"]:
        for raw, entry in zip(family["variants"], ENTRIES[family["family"]], strict=True):
            if not raw["repo_example"].startswith(entry.repo):
                raise ValueError(f"The catalogue has {raw['repo_example']} where the table expects {entry.repo}.")
            found.append(_variant(family["family"], entry.handle, raw, entry))
    return found


def _foreign() -> list[Variant]:
    families = json.loads((DATA / "foreign-checkpoint-formats.json").read_text(encoding="utf-8"))["families"]
    return [_variant(family["family"], raw["handle"], raw, None) for family in families for raw in family["variants"]]


def _variant(family: str, handle: str, raw: dict[str, Any], entry: Entry | None) -> Variant:
    return Variant(
        family=family,
        handle=handle,
        name=raw["repo_example"],
        config=raw["config"],
        tensors=raw["tensors"],
        files=tuple(raw["files"]),
        note=raw.get("note", ""),
        entry=entry,
        refuse=entry is None,
        reason=raw.get("reason", ""),
    )


def _draft(variant: Variant) -> Draft:
    """Everything but the values of the tensors, before any option."""
    source, completed = _whole_config(variant)
    sizes = _sizes(source, variant)
    return Draft(
        config=tiny_config(source, sizes, variant.entry.aux_ids if variant.entry else None),
        specs=_expand(variant, sizes),
        sizes=sizes,
        conventions=variant.entry.conventions if variant.entry and not variant.inexpressible else None,
        formats=("bin",) if any(name.startswith("pytorch_model") for name in variant.files) else ("safetensors",),
        completed=completed,
        refuse=variant.reason,
    )


def _whole_config(variant: Variant) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config as given, with the fields added that the catalogue leaves to a sentence; and the names of those."""
    layer = {
        "hidden_size": "<H>",
        "intermediate_size": "<I>",
        "num_attention_heads": "<A>",
        "num_key_value_heads": "<K>",
        "head_dim": "<D>",
        "num_hidden_layers": 1,
        "vocab_size": "<Vt>",
        "max_position_embeddings": "<int>",
        "rms_norm_eps": 1e-05,
        "hidden_act": "silu",
    }
    if variant.id == "nemo_automodel-llama":
        added = {"model_type": "llama", **layer, "rope_theta": "<float>", "tie_word_embeddings": False}
        return {**variant.config, **added}, tuple(added)
    if variant.id == "modelopt-kimi_k2_mla":
        added = {**layer, "draft_vocab_size": "<Vd>", "rope_theta": "<float>", "tie_word_embeddings": False}
        del added["head_dim"]
        return {**variant.config, **added}, tuple(added)
    if variant.id == "peagle-gpt_oss_20b":
        added = {"attention_bias": True, "mask_token_id": "<int, required by vLLM>"}
        return {**_given("peagle", "specforge_qwen3_8b").config, **added}, ("all",)
    if variant.family == "speculators_eagle1_hass" or variant.id == "hass-layernorms":
        added_names = ("speculators_config", "transformer_layer_config")
        return _eagle_speculator(layernorms=variant.family == "hass"), added_names
    if not isinstance(variant.config, dict):
        raise ValueError(f"The catalogue describes the config of {variant.id} in words only: {variant.config!r}.")
    return deepcopy(variant.config), ()


def _eagle_speculator(layernorms: bool) -> dict[str, Any]:
    """EAGLE-1 in the speculators format: two of its fields are given by reference to an EAGLE-3 config."""
    config = deepcopy(_given("speculators_eagle1_hass", "eagle").config)
    reference = deepcopy(_given("speculators_eagle3", "converted").config)
    return {
        **config,
        "layernorms": layernorms,
        "speculators_config": {**reference["speculators_config"], "algorithm": "eagle"},
        "transformer_layer_config": reference["transformer_layer_config"],
    }


def _given(family: str, handle: str) -> Variant:
    return next(known for known in _catalogued() if (known.family, known.handle) == (family, handle))


def _sizes(config: dict[str, Any], variant: Variant) -> Sizes:
    """Tiny sizes with the relations of the released ones: K to A, D to H/A, Ht to H, Vd to Vt."""
    layer = layer_fields(config)
    heads, hidden, head_dim = (layer.get(name) for name in ("num_attention_heads", "hidden_size", "head_dim"))
    full_attention = layer.get("num_key_value_heads", heads) == heads
    numbers = isinstance(hidden, int) and isinstance(head_dim, int)
    derived = head_dim is None or (numbers and head_dim * heads == hidden)
    conventions = variant.entry.conventions if variant.entry else None
    ids = variant.entry.aux_ids if variant.entry else None
    return Sizes(
        Ht=32 if config.get("target_hidden_size") else Sizes.Ht,
        K=Sizes.A if full_attention else Sizes.K,
        D=Sizes.H // Sizes.A if derived else 8,
        Vd=Sizes.Vt if conventions and conventions.mapping == "identity" else Sizes.Vd,
        N=len(ids) if ids else 3,
    )


def _expand(variant: Variant, sizes: Sizes) -> dict[str, Spec]:
    """Every key of the file, with the catalogue's shorthands written out."""
    if variant.id == "hass-layernorms":
        return speculator_layer("bfloat16", layernorms=True)
    if variant.id == "speculators_eagle1_hass-eagle":
        return speculator_layer("bfloat16", layernorms=False)
    if variant.id == "modelopt-megatron_deep":
        return megatron_layers("bfloat16")
    if variant.id == "peagle-gpt_oss_20b":
        plain = _expand(_given("peagle", "specforge_qwen3_8b"), sizes)
        return plain | qkv_biases(layers=4)
    specs: dict[str, Spec] = {}
    for key, raw in variant.tensors.items():
        spec = Spec(re.sub(r"(\]).*", r"\1", raw["shape"]), raw["dtype"].split("|")[0])
        if key == "fc_norm.{0..N-1}.weight":
            specs |= {f"fc_norm.{index}.weight": spec for index in range(sizes.N)}
        elif key == "(rest)":
            specs |= rest_of_latent_head(spec.dtype)
        else:
            specs[key] = spec
    return specs


def _generator(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()) + 1_000_003 * seed)


def _vocabulary(draft: Draft, seed: int) -> torch.Tensor:
    """Sorted target ids of the draft vocabulary, [Vd] int64."""
    sizes = draft.sizes
    if sizes.Vd == sizes.Vt:
        return torch.arange(sizes.Vt)
    kept = torch.randperm(sizes.Vt, generator=_generator("vocabulary", seed))[: sizes.Vd]
    return kept.sort().values


def _tensor(key: str, spec: Spec, draft: Draft, target_ids: torch.Tensor, seed: int) -> torch.Tensor:
    size = shape(spec.shape, draft.sizes)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "d2t":
        offsets = target_ids - torch.arange(len(target_ids))
        return offsets if draft.maps == "real" else torch.zeros(size, dtype=torch.int64)
    if leaf == "t2d":
        mask = torch.full(size, draft.maps == "full", dtype=torch.bool)
        if draft.maps == "real":
            mask[target_ids] = True
        return mask
    generator = _generator(key, seed)
    dtype = getattr(torch, spec.dtype)
    if "norm" in key and leaf == "weight":
        return (0.5 + torch.rand(size, generator=generator)).to(dtype)
    return (0.3 * torch.randn(size, generator=generator)).to(dtype)


def _write(folder: Path, draft: Draft, state: dict[str, torch.Tensor]) -> tuple[str, ...]:
    documents = {"config.json": draft.config, **draft.extra_files}
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    names = list(documents)
    if "bin" in draft.formats:
        torch.save(state, folder / "pytorch_model.bin")
        names.append("pytorch_model.bin")
    if "safetensors" in draft.formats:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        names.append("model.safetensors")
    return tuple(names)
