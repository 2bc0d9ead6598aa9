"""How far a sequence may grow before a tree stops being exact on a target, or has no positions left.

Read from the target's config; knows nothing of modules, trees or caches in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

# Rotary frequencies that depend on the longest position of a forward: a tree that straddles the switch would compute
# its shallow nodes with the deep ones' frequencies, which no step of plain decoding does.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


# What a call on a target can do about a sliding window: nothing; load the target otherwise; or pad otherwise.
WINDOW_ADVICE = {
    "none": "lower `max_new_tokens`, or call `generate` without a head",
    "implementation": 'load the target with `attn_implementation="eagle3_tree"`, or lower `max_new_tokens`',
    "padding": "put the padding of the prompt on its left, or lower `max_new_tokens`",
}


def check_length(
    config: PreTrainedConfig, prompt: int, longest: int, slides: bool = False, advice: str = "none"
) -> None:
    """Refuse a call that might write past a window that no tree may outgrow, or past where rotary frequencies change.

    Args:
        config: the target's.
        prompt: positions that are taken before the first new token.
        longest: positions that prompt and new tokens may take.
        slides: whether trees slide with the windows of this target.
        advice: what to say of a sliding window, a key of `WINDOW_ADVICE`.

    Raises:
        ValueError: naming the limit and what to lower.
    """
    text = config.get_text_config(decoder=True)
    for limit, why, what in [*_windows(text, slides, advice), *_rope_switches(text, prompt)]:
        if longest > limit:
            raise ValueError(
                f"Prompt and new tokens may take {longest} positions, but the target {why.format(limit)}, beyond "
                f"which drafting is not supported here; {WINDOW_ADVICE[what]}."
            )


def last_position(config: PreTrainedConfig, prompt: int, slides: bool = False) -> int | None:
    """The highest position that a token drafted after such a prompt may take, or `None` if nothing limits it."""
    text = config.get_text_config(decoder=True)
    limits = [limit for limit, _, _ in [*_windows(text, slides), *_rope_switches(text, prompt)]]
    limits += [positions] if (positions := getattr(text, "max_position_embeddings", None)) is not None else []
    return min(limits) - 1 if limits else None


def _windows(text: PreTrainedConfig, slides: bool, advice: str = "none") -> Iterator[tuple[int, str, str]]:
    """Windows of the layers that transformers itself would give a cache of this config. A chunk is no window: it does
    not slide, and a tree may stand on both sides of its end."""
    found: dict[int, str] = {}
    for kind, fields in zip(*get_layer_types_and_kwargs(text), strict=False):
        if "sliding_window" in fields and not (slides and kind == "sliding_attention"):
            found[fields["sliding_window"]] = advice if kind == "sliding_attention" else "none"
    for window, what in found.items():
        yield window, "attends through a sliding window of {}", what


def _rope_switches(text: Any, prompt: int) -> Iterator[tuple[int, str, str]]:
    """Where frequencies change; "longrope" changes them once, so a prompt that is past that point meets no change."""
    rope = getattr(text, "rope_parameters", None) or {}
    nested = [entry for entry in rope.values() if isinstance(entry, dict)]
    for entry in nested or [rope]:
        if entry.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            original = entry.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None)
            limit = original or text.max_position_embeddings
            if entry["rope_type"] == "dynamic" or prompt <= limit:
                yield limit, "changes its rotary frequencies after {} positions", "none"
