"""The doors: `generate(assistant_model=head)`, `custom_generate=`, and `AutoModel` on released heads.

`install()` makes three small wraps of transformers, each of which hands everything that is not a draft head to the
original, untouched; `uninstall()` takes them off.
"""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModel, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin

from . import attention, head_files, layouts, switching
from .decoding import TreeDecoderOnlyOutput, TreeDecoding
from .drafters.state import DraftState
from .loading import HEADS, head_from
from .pairing import DEFAULT_TREES, DRAFTERS, as_head, check_call, check_pair, drafter_for, tree_shape
from .tree import DraftTree, TreeShape

# Tested with these. Before 5.23 `output_hidden_states=[i]` meant another boundary: heads would draft badly, silently.
TRANSFORMERS_RANGE = (Version("5.23.0"), Version("5.24.0"))
# What `generate` fills in for `num_assistant_tokens` when nobody has set it.
UNSET_ASSISTANT_TOKENS = 20
STATE_ATTRIBUTE = "_hf_eagle3_state"


@dataclass(frozen=True)
class DraftCall:
    """A head with the tree that one call asked for. It travels through `generate` as `assistant_model`, which reads
    its `config` and hands it on; so the call's settings need no place on head or target."""

    head: PreTrainedModel
    shape: TreeShape

    @property
    def config(self) -> PreTrainedConfig:
        return self.head.config


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
    drafter = drafter_for(call.head, target, call.shape, state)
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


def drafting_with(
    head: PreTrainedModel,
    *,
    streamer: Any = None,
    on_round: Callable[[DraftTree, list[int]], None] | None = None,
    num_assistant_tokens: int | None = None,
    tree_depth: int | None = None,
    tree_top_k: int | None = None,
    assistant_confidence_threshold: float | None = None,
    draft_tree: str | Sequence[Sequence[int]] | None = None,
) -> Callable[..., Any]:
    """The other door: a callable for `model.generate(..., custom_generate=drafting_with(head))`.

    transformers drops `assistant_model`, `streamer` and `tokenizer` on this way, so head and streamer are bound here,
    and `stop_strings`, which need the tokenizer, work only with `generate(assistant_model=head)`.

    Args:
        head: the draft head, or a `PeftModel` of one.
        streamer: receives the prompt and each token, as `generate(streamer=)` would.
        on_round: called after each verification with the tree and its accepted nodes, root first.
        num_assistant_tokens, tree_depth, tree_top_k, assistant_confidence_threshold: see [`TreeShape`].
        draft_tree: a static tree instead, by name (`"mc_sim_7b_63"`) or by its paths; see [`StaticTree`].

    Raises:
        TypeError: if `head` is no draft head.
    """
    base = as_head(head)
    if base is None:
        raise TypeError(
            f"`drafting_with` needs a draft head but got {type(head).__name__}; load one by `hf_eagle3.load_head`."
        )
    given: dict[str, Any] = {
        "num_assistant_tokens": num_assistant_tokens, "tree_depth": tree_depth, "tree_top_k": tree_top_k,
        "assistant_confidence_threshold": assistant_confidence_threshold, "draft_tree": draft_tree,
    }  # fmt: skip

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
        check_call(model, generation_config, {})
        knobs = dict(given)
        asked = generation_config.num_assistant_tokens
        if draft_tree is None and num_assistant_tokens is None and asked != UNSET_ASSISTANT_TOKENS:
            knobs["num_assistant_tokens"] = asked
        call = DraftCall(base, tree_shape(model, base, knobs, None))
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
        if head is None or not _installed:
            _refuse_no_model(bound.get("assistant_model"))
            return original(self, *args, **kwargs)
        arguments = {name: value for name, value in bound.items() if name not in ("self", "kwargs", "assistant_model")}
        extra = dict(bound.get("kwargs", {}))
        if arguments.get("custom_generate") is not None:
            raise ValueError("Got both `assistant_model` and `custom_generate`; a draft head needs only one of them.")
        shape = tree_shape(self, head, extra, arguments.get("generation_config"))
        check_call(self, arguments.get("generation_config"), extra)
        check_pair(self, head)
        return original(self, **arguments, assistant_model=DraftCall(head, shape), **extra)

    return generate


def _refuse_no_model(assistant: Any) -> None:
    """Tell in a sentence what `generate` would fail at: a name in place of a model, or a head that was loaded as the
    plain model that its config says it is."""
    if isinstance(assistant, (str, os.PathLike)):
        raise ValueError(
            f"`assistant_model` is the name {os.fspath(assistant)!r}, but a model is needed; load a draft head by "
            "`hf_eagle3.load_head(name)`."
        )
    if isinstance(assistant, PreTrainedModel) and not assistant.can_generate():
        raise ValueError(
            f"`assistant_model` is a {type(assistant).__name__}, which cannot generate and is no draft head; a head "
            "whose config calls it a plain model, as EAGLE-1's do, is loaded by `hf_eagle3.load_head`."
        )


def _wrap_assisted_decoding(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def _assisted_decoding(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        call = kwargs.get("assistant_model")
        head = as_head(call)
        if head is not None:  # by a `generate` that was bound before ours was installed
            call = DraftCall(head, tree_shape(self, head, {}, None))
        if not isinstance(call, DraftCall):
            return original(self, *args, **kwargs)
        names = ("logits_processor", "stopping_criteria", "generation_config")
        processors, criteria, config = (kwargs.pop(name) for name in names)
        if kwargs.pop("synced_gpus", False):
            raise ValueError(
                "Drafting takes a different number of forwards on each process, so it cannot run under ZeRO-3 or FSDP "
                "(`synced_gpus=True`); gather the target first, or call `generate` without a head."
            )
        streamer = kwargs.pop("streamer", None)
        for name in ("assistant_model", "inputs_tensor", "assistant_tokenizer", "tokenizer"):
            kwargs.pop(name, None)
        return _decode(self, call, args[0], processors, criteria, config, streamer, kwargs)

    return _assisted_decoding


def _wrap_from_pretrained(original: classmethod) -> classmethod:
    @functools.wraps(original.__func__)
    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        if _installed and cls is AutoModel and _is_released_head(pretrained_model_name_or_path, kwargs):
            return head_from(pretrained_model_name_or_path, *args, **kwargs)
        return original.__func__(cls, pretrained_model_name_or_path, *args, **kwargs)

    return classmethod(from_pretrained)


def _is_released_head(source: str | os.PathLike, kwargs: dict[str, Any]) -> bool:
    """Whether a config.json is that of a head which calls itself something else, such as a Llama. Where only tensors
    could tell it is left to transformers: nobody who asks for a Llama may get a head."""
    try:
        fields = _config_of(source, kwargs)
    except (OSError, ValueError, TypeError):
        return False  # transformers says what is wrong with it, in its own words
    layout = layouts.recognise(fields)
    if layout is None or (layout.refused and kwargs.get("trust_remote_code")):
        return False  # code of its own may know what to do with it
    return layout.name != layouts.NATIVE


def _config_of(source: str | os.PathLike, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a repository; of an adapter, that of the model it belongs to."""
    try:
        return head_files.read_config(source, kwargs)
    except head_files.IsAdapter as adapter:
        of_base = {name: value for name, value in kwargs.items() if name not in head_files.OF_ADAPTER}
        return head_files.read_config(adapter.base, of_base)


# ---------------------------------------------------------------------- install and uninstall

_installed = False
_ORIGINALS: dict[tuple[type, str], tuple[Any, Any]] = {}  # the original and our wrap of it
_WRAPS: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
    (GenerationMixin, "generate", _wrap_generate),
    (GenerationMixin, "_assisted_decoding", _wrap_assisted_decoding),
    (AutoModel, "from_pretrained", _wrap_from_pretrained),
)


def install() -> None:
    """Let transformers take draft heads: the Auto classes, the attention implementation `eagle3_tree` and the three
    wraps. `import hf_eagle3` calls it; calling it again changes nothing.

    Raises:
        ImportError: if this transformers is not one that the wraps were tested with.
    """
    global _installed
    low, high = TRANSFORMERS_RANGE
    if not low <= Version(Version(transformers.__version__).base_version) < high:
        raise ImportError(
            f"hf-eagle3 needs transformers >={low},<{high}, whose generation code it was tested with, but "
            f"{transformers.__version__} is installed; run `pip install 'transformers>={low},<{high}'`."
        )
    if "assistant_model" not in inspect.signature(GenerationMixin.generate).parameters:
        warnings.warn(
            "Another package has replaced `GenerationMixin.generate` by one without `assistant_model`; heads work "
            "only by `generate(custom_generate=hf_eagle3.drafting_with(head))`.",
            stacklevel=2,
        )
    for config, model in HEADS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
    attention.register()
    for owner, name, wrap in _WRAPS:
        if (owner, name) not in _ORIGINALS:
            original = owner.__dict__[name]
            _ORIGINALS[owner, name] = original, wrap(original)
            setattr(owner, name, _ORIGINALS[owner, name][1])
    _installed = True


def uninstall() -> None:
    """Take the three wraps off again, and give targets the attention implementation back that they came with. A wrap
    that somebody else has wrapped in turn stays and hands everything on; transformers keeps knowing our configs and
    `eagle3_tree`, which harms nobody."""
    global _installed
    _installed = False
    for (owner, name), (original, ours) in list(_ORIGINALS.items()):
        if owner.__dict__[name] is ours:
            setattr(owner, name, original)
            del _ORIGINALS[owner, name]
    switching.restore_all()


__all__ = ["DEFAULT_TREES", "DRAFTERS", "DraftCall", "drafting_with", "install", "uninstall"]
