"""Which attention implementation a target verifies trees with: `eagle3_tree`, where a kernel makes it the faster one.

It is chosen when head and target first meet and stays, because it is sdpa when no tree is passed, and because a switch
for each call would reach other threads that use the target; `restore_all` takes it back.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from .attention import EAGLE3_TREE, backend_of, keep_additive_masks
from .probe import check_target, last_logits, logits_difference, tolerance_of
from .tree_kernel import tree_kernel

logger = logging.getLogger(__name__)

_LOCK = threading.RLock()
# What a target ran before it was switched; and the dtypes in which it could not be.
_SWITCHED: weakref.WeakKeyDictionary[PreTrainedModel, str] = weakref.WeakKeyDictionary()
_DECLINED: weakref.WeakKeyDictionary[PreTrainedModel, set[torch.dtype]] = weakref.WeakKeyDictionary()


def meet(target: PreTrainedModel, boundaries: Sequence[int]) -> None:
    """Let a target verify trees, with `eagle3_tree` if that is faster here and it can: else as it is.

    "sdpa" is what transformers chooses by itself, and so is "eager" for a model without sdpa; asked for by a user they
    look the same. Any other implementation stays, and with `HF_EAGLE3_TREE_KERNEL=reference` these do too.

    Raises:
        ValueError: if a draft tree does not give the target's plain logits; see [`check_target`].
    """
    if not _is_settled(target):
        with _LOCK:  # a second thread waits for what the first one finds
            if not _is_settled(target) and _is_transformers_choice(target):
                _try_switch(target, boundaries)
    check_target(target, boundaries)


def restore_all() -> None:
    """Give every target the implementation back that it had; those that somebody has set since keep theirs."""
    with _LOCK:
        for target, before in list(_SWITCHED.items()):
            if _implementation(target) == EAGLE3_TREE:
                _set(target, before)
        _SWITCHED.clear()
        _DECLINED.clear()


def kernel_pays(target: PreTrainedModel) -> bool:
    """Whether trees run by our kernel here, and not by its plain-torch twin: on an NVIDIA GPU with Triton, from Ampere
    on. Earlier ones have less shared memory than a whole tree's tiles take, and the probe's small tree fits."""
    if target.device.type != "cuda" or torch.version.cuda is None or tree_kernel().is_reference:
        return False
    return torch.cuda.get_device_capability(target.device) >= (8, 0)


def _is_settled(target: PreTrainedModel) -> bool:
    """In training mode no target is tried: dropout would say nothing of it."""
    known = target in _SWITCHED or target.dtype in _DECLINED.get(target, ())
    return known or target.training or not kernel_pays(target)


def _is_transformers_choice(target: PreTrainedModel) -> bool:
    backend = _implementation(target)
    return backend == "sdpa" or (backend == "eager" and not _decoder(target)._supports_sdpa)


def _try_switch(target: PreTrainedModel, boundaries: Sequence[int]) -> None:
    """Switch, and see that trees and ordinary calls give what they gave; else as it was, and a line in the log."""
    before = backend_of(target)
    if before == "eager":
        keep_additive_masks(_decoder(target).config)
    try:
        plain = last_logits(target)
        _set(target, EAGLE3_TREE)
        if backend_of(target) != EAGLE3_TREE:
            raise ValueError("it does not use transformers' attention interface")
        difference = logits_difference(last_logits(target), plain)
        if not difference <= tolerance_of(target):  # so that NaN is no agreement
            raise ValueError(f"ordinary calls would differ by {difference:.1e} of their spread")
        check_target(target, boundaries)
    except BaseException as error:
        _set(target, before)
        if not isinstance(error, Exception) or isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise
        _DECLINED.setdefault(target, set()).add(target.dtype)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        logger.info("%s keeps attention implementation %r for draft trees: %s", type(target).__name__, before, reason)
    else:
        _SWITCHED[target] = before
        logger.info("%s now runs attention implementation %r (it was %r).", type(target).__name__, EAGLE3_TREE, before)


def _implementation(target: PreTrainedModel) -> str | None:
    return target.config.get_text_config(decoder=True)._attn_implementation


def _decoder(target: PreTrainedModel) -> PreTrainedModel:
    """The part of a target whose config its text layers read; the target, where it calls something else a decoder."""
    decoder = target.get_decoder()
    return decoder if isinstance(decoder, PreTrainedModel) else target


def _set(target: PreTrainedModel, implementation: str) -> None:
    """Of the text decoder only; a vision tower keeps its own. transformers would warn where it cannot: not asked."""
    decoder = _decoder(target)
    if decoder._can_set_attn_implementation():
        decoder.set_attn_implementation({"": implementation})
