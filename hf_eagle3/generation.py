"""The doors: `generate(assistant_model=head)`, `custom_generate=`, and `AutoModel` on released heads.

`install()` makes three small wraps of transformers, each of which hands everything that is not a draft head to the
original, untouched; `uninstall()` takes them off.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModel, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.generation.configuration_utils import GenerationMode

from . import layouts
from .configuration_eagle3 import Eagle3Config
from .decoding import TreeDecoderOnlyOutput, TreeDecoding
from .drafters.base import TreeDrafter
from .drafters.eagle3 import DraftState, Eagle3CandidateGenerator
from .modeling_eagle3 import Eagle3DraftModel
from .tree import DraftTree, TreeShape
from .verification import check_target

# Tested with these. Before 5.23 `output_hidden_states=[i]` meant another boundary: heads would draft badly, silently.
TRANSFORMERS_RANGE = (Version("5.23.0"), Version("5.24.0"))
KNOBS = ("num_assistant_tokens", "tree_depth", "tree_top_k")
# Where neither the call nor the head says otherwise. A GPU verifies 60 nodes for the price of one (the paper's tree);
# a CPU does not: see docs in the README for how its tree was measured.
DEFAULT_TREES = {"cpu": TreeShape(16, 5, 6), "default": TreeShape(59, 8, 10)}
STATE_ATTRIBUTE = "_hf_eagle3_state"

# From a head's class to what drafts with it: `(head, target, shape, state) -> TreeDrafter`.
DRAFTERS: dict[type, Callable[..., TreeDrafter]] = {Eagle3DraftModel: Eagle3CandidateGenerator}


@dataclass(frozen=True)
class DraftCall:
    """A head with the tree that one call asked for. It travels through `generate` as `assistant_model`, which reads
    its `config` and hands it on; so the call's settings need no place on head or target."""

    head: PreTrainedModel
    shape: TreeShape

    @property
    def config(self) -> PreTrainedConfig:
        return self.head.config


# ---------------------------------------------------------------------- a head meets a target


def as_head(assistant: Any) -> Any:
    """The draft head in an `assistant_model`, taken out of its `PeftModel` if need be; `None` for other models."""
    if assistant is not None and hasattr(assistant, "peft_config") and hasattr(assistant, "get_base_model"):
        assistant = assistant.get_base_model()
    return assistant if isinstance(assistant, tuple(DRAFTERS)) else None


def check_pair(target: PreTrainedModel, head: PreTrainedModel) -> None:
    """Refuse a head and a target that do not belong together, or a target that cannot hold a tree.

    Raises:
        ValueError: saying which sizes differ, or what the target cannot do.
    """
    if target.config.is_encoder_decoder:
        raise ValueError(
            f"{type(target).__name__} is an encoder-decoder model, but a draft head needs a decoder-only target; call "
            "`generate` without it."
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
    check_target(target, config.boundaries_for(text.num_hidden_layers))


def tree_shape(head: PreTrainedModel, kwargs: dict[str, Any], generation_config: GenerationConfig | None) -> TreeShape:
    """The tree of a call: what `generate` was given, else `head.generation_config`, else the device's default.

    Takes the knobs out of `kwargs`.
    """
    default = DEFAULT_TREES.get(head.device.type, DEFAULT_TREES["default"])
    chosen = {}
    for name in KNOBS:
        given = kwargs.pop(name, None)
        places = (given, getattr(generation_config, name, None), getattr(head.generation_config, name, None))
        chosen[name] = next((value for value in places if value is not None), getattr(default, name))
    return TreeShape(**chosen)


def _check_call(target: Any, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> None:
    """Refuse, in our words and before anything runs, a way of generating in which a head would be ignored."""
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


# ---------------------------------------------------------------------- decoding with a head


def _decode(
    target: PreTrainedModel,
    call: DraftCall,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    streamer: Any,
    model_kwargs: dict[str, Any],
    on_round: Callable[[DraftTree, list[int]], None] | None = None,
) -> TreeDecoderOnlyOutput | torch.Tensor:
    cache = model_kwargs.get("past_key_values")
    if input_ids.shape[0] > 1:
        raise ValueError(
            f"Got a batch of {input_ids.shape[0]} prompts, but a draft head takes one at a time so far; call "
            "`generate` for each prompt."
        )
    if not model_kwargs.get("use_cache") or cache is None:
        raise ValueError("Drafting needs the target's cache, but `use_cache=False` was given; leave it out.")
    state = getattr(cache, STATE_ATTRIBUTE, None)
    if isinstance(state, DraftState) and state.end > cache.get_seq_length():
        state = None  # the cache was cropped since: the head's memory is of tokens that are gone
    drafter = DRAFTERS[_head_class(call.head)](call.head, target, call.shape, state=state)
    output = TreeDecoding(
        target,
        drafter,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        streamer,
        model_kwargs,
        on_round,
    ).run()
    setattr(cache, STATE_ATTRIBUTE, getattr(drafter, "state", None))
    return output


def _head_class(head: PreTrainedModel) -> type:
    return next(known for known in DRAFTERS if isinstance(head, known))


def drafting_with(
    head: PreTrainedModel,
    *,
    streamer: Any = None,
    on_round: Callable[[DraftTree, list[int]], None] | None = None,
    num_assistant_tokens: int | None = None,
    tree_depth: int | None = None,
    tree_top_k: int | None = None,
) -> Callable[..., Any]:
    """The other door: a callable for `model.generate(..., custom_generate=drafting_with(head))`.

    transformers drops `assistant_model`, `streamer` and `tokenizer` on this way, so head and streamer are bound here,
    and `stop_strings`, which need the tokenizer, work only with `generate(assistant_model=head)`.

    Args:
        head: the draft head, or a `PeftModel` of one.
        streamer: receives the prompt and each token, as `generate(streamer=)` would.
        on_round: called after each verification with the tree and its accepted nodes, root first.
        num_assistant_tokens, tree_depth, tree_top_k: see [`TreeShape`].

    Raises:
        TypeError: if `head` is no draft head.
    """
    base = as_head(head)
    if base is None:
        raise TypeError(f"`drafting_with` needs a draft head but got {type(head).__name__}; load an Eagle3DraftModel.")
    given = {"num_assistant_tokens": num_assistant_tokens, "tree_depth": tree_depth, "tree_top_k": tree_top_k}

    def decode(
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> TreeDecoderOnlyOutput | torch.Tensor:
        check_pair(model, base)
        _check_call(model, generation_config, {})
        call = DraftCall(base, tree_shape(base, dict(given), None))
        if streamer is not None:
            streamer.put(input_ids.cpu())
        return _decode(
            model,
            call,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            streamer,
            model_kwargs,
            on_round,
        )

    return decode


# ---------------------------------------------------------------------- the three wraps


def _wrap_generate(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def generate(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs).arguments
        head = as_head(bound.get("assistant_model"))
        if head is None:
            return original(self, *args, **kwargs)
        arguments = {name: value for name, value in bound.items() if name not in ("self", "kwargs", "assistant_model")}
        extra = dict(bound.get("kwargs", {}))
        if arguments.get("custom_generate") is not None:
            raise ValueError("Got both `assistant_model` and `custom_generate`; a draft head needs only one of them.")
        shape = tree_shape(head, extra, arguments.get("generation_config"))
        _check_call(self, arguments.get("generation_config"), extra)
        check_pair(self, head)
        return original(self, **arguments, assistant_model=DraftCall(head, shape), **extra)

    return generate


def _wrap_assisted_decoding(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def _assisted_decoding(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(kwargs.get("assistant_model"), DraftCall):
            return original(self, *args, **kwargs)
        names = ("logits_processor", "stopping_criteria", "generation_config")
        processors, criteria, config = (kwargs.pop(name) for name in names)
        call, streamer = kwargs.pop("assistant_model"), kwargs.pop("streamer", None)
        if kwargs.pop("synced_gpus", False):
            raise ValueError(
                "Drafting takes a different number of forwards on each process, so it cannot run under ZeRO-3 or FSDP "
                "(`synced_gpus=True`); gather the target first, or call `generate` without a head."
            )
        for name in ("inputs_tensor", "assistant_tokenizer", "tokenizer"):
            kwargs.pop(name, None)
        return _decode(self, call, args[0], processors, criteria, config, streamer, kwargs)

    return _assisted_decoding


def _wrap_from_pretrained(original: classmethod) -> classmethod:
    @functools.wraps(original.__func__)
    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is AutoModel and _is_released_head(pretrained_model_name_or_path, kwargs):
            return Eagle3DraftModel.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return original.__func__(cls, pretrained_model_name_or_path, *args, **kwargs)

    return classmethod(from_pretrained)


def _is_released_head(source: str | os.PathLike, kwargs: dict[str, Any]) -> bool:
    """Whether a config.json is that of a head which calls itself something else, such as a Llama."""
    try:
        fields = layouts.read_config(source, kwargs)
    except (OSError, ValueError, TypeError):
        return False  # transformers says what is wrong with it, in its own words
    layout = layouts.recognise(fields)
    return layout is not None and fields.get("model_type") != Eagle3Config.model_type


# ---------------------------------------------------------------------- install and uninstall

_ORIGINALS: dict[tuple[type, str], Any] = {}
_WRAPS: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
    (GenerationMixin, "generate", _wrap_generate),
    (GenerationMixin, "_assisted_decoding", _wrap_assisted_decoding),
    (AutoModel, "from_pretrained", _wrap_from_pretrained),
)


def install() -> None:
    """Let transformers take draft heads: the Auto classes and the three wraps. `import hf_eagle3` calls it; calling it
    again changes nothing.

    Raises:
        ImportError: if this transformers is not one that the wraps were tested with.
    """
    low, high = TRANSFORMERS_RANGE
    if not low <= Version(Version(transformers.__version__).base_version) < high:
        raise ImportError(
            f"hf-eagle3 needs transformers >={low},<{high}, whose generation code it was tested with, but "
            f"{transformers.__version__} is installed; run `pip install 'transformers>={low},<{high}'`."
        )
    if "assistant_model" not in inspect.signature(GenerationMixin.generate).parameters:
        raise ImportError("`GenerationMixin.generate` has no `assistant_model`; another package has replaced it.")
    AutoConfig.register(Eagle3Config.model_type, Eagle3Config, exist_ok=True)
    AutoModel.register(Eagle3Config, Eagle3DraftModel, exist_ok=True)
    for owner, name, wrap in _WRAPS:
        if (owner, name) not in _ORIGINALS:
            _ORIGINALS[owner, name] = owner.__dict__[name]
            setattr(owner, name, wrap(owner.__dict__[name]))


def uninstall() -> None:
    """Take the three wraps off again; the Auto classes keep knowing our config, which harms nobody."""
    for (owner, name), original in list(_ORIGINALS.items()):
        setattr(owner, name, original)
        del _ORIGINALS[owner, name]


__all__ = ["DEFAULT_TREES", "DRAFTERS", "check_pair", "drafting_with", "install", "tree_shape", "uninstall"]
