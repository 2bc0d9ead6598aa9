"""A head meets a target: what a head is, which pairs belong together, and what one call asks of them.

Everything here is checked before anything runs, and refused in a sentence.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from .default_trees import DEFAULT_TREES, default_tree
from .drafters.base import TreeDrafter
from .drafters.eagle import EagleCandidateGenerator
from .drafters.parallel import eagle3_drafter
from .modeling_eagle import EagleDraftModel
from .modeling_eagle3 import Eagle3DraftModel
from .native_products import multiplies_natively
from .static_tree import static_tree
from .switching import meet
from .tree import TreeShape

logger = logging.getLogger(__name__)

# From a head's class to what drafts with it: `(head, target, shape, state) -> TreeDrafter`.
DRAFTERS: dict[type, Callable[..., TreeDrafter]] = {
    Eagle3DraftModel: eagle3_drafter,
    EagleDraftModel: EagleCandidateGenerator,
}
# The words for a dynamic tree's size, and for when it ends early; the other knob, `draft_tree`, names a static tree
# instead.
SIZES = ("num_assistant_tokens", "tree_depth", "tree_top_k")
THRESHOLD = "assistant_confidence_threshold"


def as_head(assistant: Any) -> Any:
    """The draft head in an `assistant_model`, out of `torch.compile` or a `PeftModel`; `None` for other models."""
    assistant = getattr(assistant, "_orig_mod", assistant)
    if hasattr(assistant, "peft_config") and hasattr(assistant, "get_base_model"):
        assistant = assistant.get_base_model()
    return assistant if isinstance(assistant, tuple(DRAFTERS)) else None


def drafter_for(head: PreTrainedModel, target: PreTrainedModel, shape: TreeShape, state: Any) -> TreeDrafter:
    """A fresh drafter for one call."""
    make = next(make for known, make in DRAFTERS.items() if isinstance(head, known))
    return make(head, target, shape, state=state)


def check_pair(target: PreTrainedModel, head: PreTrainedModel) -> None:
    """Refuse a head and a target that do not belong together, or a target that cannot hold a tree. The logger
    "hf_eagle3" warns once of a dtype that the target's CPU only emulates.

    Raises:
        ValueError: saying which sizes differ, or what the target cannot do.
    """
    if target.config.is_encoder_decoder:
        raise ValueError(
            f"{type(target).__name__} is an encoder-decoder model, but a draft head needs a decoder-only target; call "
            "`generate` without it."
        )
    if "prepare_inputs_for_generation" in vars(target):
        raise ValueError(
            f"{type(target).__name__} carries a learned prompt or prefix (its inputs are prepared by somebody else), "
            "which draft trees cannot follow; call `generate` without a head."
        )
    text, config = target.config.get_text_config(decoder=True), head.config
    if text.vocab_size != config.vocab_size:
        raise ValueError(
            f"The head was made for a target of {config.vocab_size} tokens but the target has {text.vocab_size}; use "
            "the target this head was trained for."
        )
    if text.hidden_size != config.target_hidden_size:
        raise ValueError(
            f"The head reads target states of width {config.target_hidden_size} but the target's are "
            f"{text.hidden_size} wide; use the target this head was trained for."
        )
    meet(target, config.boundaries_for(text.num_hidden_layers))
    place = _place(target, head)
    if place.type == "cpu" and not multiplies_natively(target.dtype, place):
        _warn_of_emulation(target.dtype)


@functools.cache  # once
def _warn_of_emulation(dtype: torch.dtype) -> None:
    logger.warning(
        "The target is in %s, in which this CPU does not multiply by itself: a forward over a draft tree costs "
        "many plain steps, and float32 is faster on this machine; load target and head with `dtype=torch.float32`.",
        str(dtype).removeprefix("torch."),
    )


def tree_shape(
    target: PreTrainedModel, head: PreTrainedModel, given: dict[str, Any], generation_config: GenerationConfig | None
) -> TreeShape:
    """The tree of a call: what `generate` was given, else `head.generation_config`, else what the target computes on.

    Takes the knobs out of `given`. Of sizes and `draft_tree` those count that were set nearer to the call; where both
    were, on a config, `draft_tree`. The threshold of the device's default tree goes with its sizes: where somebody set
    nodes or levels and no threshold, all levels are drafted.

    Raises:
        ValueError: if a call was given both, or a static tree that does not exist.
    """
    keywords = {name: given.pop(name, None) for name in (*SIZES, THRESHOLD, "draft_tree")}
    sizes = [name for name in (*SIZES, THRESHOLD) if keywords[name] is not None]
    if sizes and keywords["draft_tree"] is not None:
        raise ValueError(f"Got `draft_tree` and {', '.join(sizes)}, but a static tree has its size; give one of them.")
    places = [keywords, _set(generation_config), _set(head.generation_config)]
    for place in places:
        if place.get("draft_tree") is not None:
            return static_tree(place["draft_tree"])
        if any(place.get(name) is not None for name in SIZES):
            break
    default = vars(default_tree(_place(target, head), target.dtype))
    if any(place.get(name) is not None for place in places for name in ("num_assistant_tokens", "tree_depth")):
        default = {**default, THRESHOLD: 0.0}
    places.append(default)
    return TreeShape(
        **{name: next(p[name] for p in places if p.get(name) is not None) for name in (*SIZES, THRESHOLD)}
    )


def _place(target: PreTrainedModel, head: PreTrainedModel) -> torch.device:
    """Where a target computes: an offloaded one, whose weights are on `meta`, beside its head."""
    return head.device if target.device.type == "meta" else target.device


def _set(generation_config: GenerationConfig | None) -> dict[str, Any]:
    return {} if generation_config is None else vars(generation_config)


def check_call(target: Any, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> None:
    """Refuse a way of generating in which a head would be ignored, or could not keep its promise.

    Raises:
        ValueError: naming the option.
    """
    merged, _ = target._prepare_generation_config(generation_config, **kwargs)
    if merged.prompt_lookup_num_tokens or merged.use_mtp or merged.assistant_early_exit:
        raise ValueError("Got a draft head and another way of drafting at once; choose one of them.")
    if merged.assistant_ensemble_weight is not None:
        raise ValueError(
            "`assistant_ensemble_weight` mixes the draft into the target's distribution, which drafting with a head "
            "leaves as it is; leave it out."
        )
    if merged.cache_implementation not in (None, "dynamic"):
        raise ValueError(
            f"`cache_implementation={merged.cache_implementation!r}` makes a cache from which rejected draft tokens "
            "cannot be dropped; leave it out, and a head works with the `DynamicCache` that `generate` then makes."
        )
    mode = merged.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(
            "A draft head works with greedy search and sampling, but this call asks for "
            f"{mode.value.replace('_', ' ')} (`num_beams={merged.num_beams}`); leave out `assistant_model`, or the "
            "options that ask for it."
        )
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(merged, name, None):
            raise ValueError(
                f"`{name}=True` is not supported with a draft head, which runs whole trees through the target; leave "
                "it out, or call `generate` without the head."
            )


__all__ = [
    "DEFAULT_TREES", "DRAFTERS", "as_head", "check_call", "check_pair", "drafter_for", "tree_shape",
]  # fmt: skip
