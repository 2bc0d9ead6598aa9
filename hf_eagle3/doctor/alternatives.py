"""The other ways in which a head's files may be meant, as changes to its config or its tensors.

Each is a mistake that released heads are known for: ids counted from another end, a rotary base that was left out,
norms under each other's names. Knows nothing of what is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..configuration_eagle3 import Eagle3Config, default_boundaries
from ..head_files import Tensors

# Bases that heads are trained with: Llama's first, Llama 3's, Qwen's. The target's own is added.
COMMON_BASES = (10_000.0, 500_000.0, 1_000_000.0)
# Tensors of the first layer that read `[embedding ; hidden]`.
FIRST_READERS = tuple(f"layers.0.self_attn.{name}_proj.weight" for name in "qkv")
# Tensors whose last dimension is that of the concatenated states.
FUSED: tuple[str, ...] = ("fc.weight", "input_norm.weight")
EMBEDDING_NORM, HIDDEN_NORM = "layers.0.input_layernorm.weight", "layers.0.hidden_norm.weight"
# Beyond so many boundaries, only the reversed order is tried and not every order.
FEW_BOUNDARIES = 3

Mend = Callable[[Tensors], Tensors]  # the tensors that differ, from all of them


@dataclass(frozen=True)
class Change:
    """One convention read otherwise than the files announce it.

    Args:
        kind: which convention; a reading makes at most one change of a kind.
        told: the change, in words.
        fields: fields of the config, and their other values.
        mend: gives the tensors that differ; a value of `None` takes a tensor away.
    """

    kind: str
    told: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    mend: Mend | None = None


Reading = Mapping[str, Change]  # by kind; an empty one is the head as it is


def changed(reading: Reading, config: Eagle3Config, tensors: Tensors) -> tuple[Eagle3Config, Tensors]:
    """Config and tensors under a reading; the given ones are left as they are.

    Raises:
        ValueError: if the changed fields make no head.
    """
    fields: dict[str, Any] = {}
    for change in reading.values():
        fields |= change.fields
        if change.mend is not None:
            mended = {**tensors, **change.mend(tensors)}
            tensors = {name: tensor for name, tensor in mended.items() if tensor is not None}
    return Eagle3Config.from_dict({**config.to_dict(), **fields}), tensors


def alternatives(config: Eagle3Config, tensors: Tensors, target: PreTrainedConfig) -> list[Change]:
    """Every change that this head's tensors and this target's depth allow.

    Args:
        config: the head's, as our loader takes it.
        tensors: the head's, canonical and complete.
        target: the target's config.
    """
    layers = target.get_text_config(decoder=True).num_hidden_layers
    return [
        *_boundaries(config, layers),
        *_ropes(config, target),
        *_flags(config, tensors),
        *_swapped_norms(tensors),
        *_absolute_ids(config, tensors),
        *_input_order(tensors),
        *_boundary_order(config, tensors),
    ]


# ---------------------------------------------------------------------- conventions of the config


def _boundaries(config: Eagle3Config, layers: int) -> Iterator[Change]:
    """Ids of outputs taken for boundaries, and the reverse (traps 1 and 2); and the official default."""
    if config.reads_last_hidden_state:
        return
    default = default_boundaries(layers) if config.num_target_boundaries == 3 and layers >= 7 else None
    present = config.target_boundaries or default
    bases = [("one later", present, 1), ("one earlier", present, -1)]
    bases += [("the official default", default, 0)]
    bases += [("one later than the default", default, 1), ("one earlier than the default", default, -1)]
    seen = [present]
    for told, base, step in bases:
        ids = None if base is None else [boundary + step for boundary in base]
        if ids is not None and ids not in seen and all(0 <= boundary <= layers for boundary in ids):
            seen.append(ids)
            yield Change(
                "boundaries", f"boundaries {ids}, {told}", {"target_boundaries": ids, "boundaries_from_outputs": False}
            )


def _ropes(config: Eagle3Config, target: PreTrainedConfig) -> Iterator[Change]:
    """Bases and scalings that a config has left out, or has and the trainer ignored (traps 12, 13 and 15)."""
    present: Any = config.rope_parameters
    of_target: Any = Eagle3Config.from_target(target, reads_last_hidden_state=True).rope_parameters or {}
    bases = [of_target.get("rope_theta", COMMON_BASES[0]), present["rope_theta"], *COMMON_BASES]
    plain = [{"rope_type": "default", "rope_theta": float(base)} for base in bases]
    scaled = [{**of_target, "rope_theta": float(base)} for base in bases[:2]] if of_target else []
    seen = [present]
    for rope in [*plain, *scaled]:
        if rope not in seen:
            seen.append(rope)
            whose = ", the target's" if rope == of_target else ""
            kind = "" if rope["rope_type"] == "default" else f", {rope['rope_type']} scaling"
            unscaled = ", unscaled" if not kind and present["rope_type"] != "default" else ""
            told = f"rope base {rope['rope_theta']:g}{kind}{unscaled}{whose}"
            yield Change("rope", told, {"rope_parameters": rope})


def _flags(config: Eagle3Config, tensors: Tensors) -> Iterator[Change]:
    """Flags that leave no tensor behind, and so differ from trainer to trainer (traps 8 and 11); then those that do,
    where config and tensors allow both."""
    for name in ("norm_before_residual", "norm_output"):
        value = not getattr(config, name)
        yield Change(name, f"{name} {'on' if value else 'off'}", {name: value})
    norms = {"norm_before_fc": ["input_norm.weight"], "fc_norm": [name for name in tensors if name[:8] == "fc_norm."]}
    for name, made_of in norms.items():
        if not made_of or any(tensor not in tensors for tensor in made_of):
            continue
        value = not getattr(config, name)
        drop = None if value else partial(_without, made_of)
        yield Change(name, f"{name} {'on' if value else 'off'}", {name: value}, drop)


# ---------------------------------------------------------------------- conventions of the tensors


def _swapped_norms(tensors: Tensors) -> Iterator[Change]:
    if EMBEDDING_NORM in tensors and HIDDEN_NORM in tensors:
        yield Change("norms", "input_layernorm and hidden_norm under each other's names", {}, _swap_norms)


def _absolute_ids(config: Eagle3Config, tensors: Tensors) -> Iterator[Change]:
    """`d2t` that holds ids, where offsets belong (trap 5)."""
    if could_be_ids(tensors.get("d2t"), config.vocab_size):
        yield Change("d2t", "d2t holds target ids, not offsets", {}, partial(_to_offsets, config.vocab_size))


def could_be_ids(d2t: torch.Tensor | None, vocabulary: int) -> bool:
    """Whether `d2t` could be the target ids themselves: they ascend without a repetition, inside of the vocabulary.

    Offsets do not: neighbouring tokens have the same.
    """
    if d2t is None or d2t.ndim != 1 or len(d2t) < 2:
        return False
    return bool((d2t.diff() > 0).all()) and int(d2t[0]) >= 0 and int(d2t[-1]) < vocabulary


def _input_order(tensors: Tensors) -> Iterator[Change]:
    if all(name in tensors for name in FIRST_READERS):
        yield Change("input order", "attention reads [hidden ; embedding]", {}, _swap_halves)


def _boundary_order(config: Eagle3Config, tensors: Tensors) -> Iterator[Change]:
    """States concatenated in the order of an unsorted config, not in the order of the layers (trap 3)."""
    number = int(config.num_target_boundaries or 1)
    if number < 2 or "fc.weight" not in tensors:
        return
    orders: list[Sequence[int]] = [range(number - 1, -1, -1)]
    if number <= FEW_BOUNDARIES:
        orders = [order for order in permutations(range(number)) if list(order) != sorted(order)]
    for order in orders:
        told = f"states concatenated in the order {', '.join(str(place + 1) for place in order)}"
        yield Change("state order", told, {}, partial(_reorder_states, list(order)))


def _without(names: Sequence[str], tensors: Tensors) -> Any:
    return dict.fromkeys(names)


def _swap_norms(tensors: Tensors) -> Tensors:
    return {EMBEDDING_NORM: tensors[HIDDEN_NORM], HIDDEN_NORM: tensors[EMBEDDING_NORM]}


def _swap_halves(tensors: Tensors) -> Tensors:
    return {name: torch.cat(tensors[name].chunk(2, dim=1)[::-1], dim=1) for name in FIRST_READERS}


def _to_offsets(vocabulary: int, tensors: Tensors) -> Tensors:
    ids = tensors["d2t"]
    mask = torch.zeros(vocabulary, dtype=torch.bool, device=ids.device).index_fill_(0, ids, True)
    return {"d2t": ids - torch.arange(len(ids), device=ids.device), "t2d": mask}


def _reorder_states(order: list[int], tensors: Tensors) -> Tensors:
    """The fusion layer, and the norms before it, for states that come in layer order but were trained in `order`:
    block `i` of the trained ones belongs to the state `order[i]`."""
    back = [order.index(place) for place in range(len(order))]
    mended = {}
    for name in FUSED:
        if name in tensors:
            blocks = tensors[name].chunk(len(order), dim=-1)
            mended[name] = torch.cat([blocks[place] for place in back], dim=-1)
    for place, trained in enumerate(back):
        if f"fc_norm.{trained}.weight" in tensors:
            mended[f"fc_norm.{place}.weight"] = tensors[f"fc_norm.{trained}.weight"]
    return mended
