"""The comparison that most tests make: what a head gives, and what plain `generate` gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from .oracle import OracleHead

# Options that end a text early. The oracle learns the text as it would have gone on without them, so that drafts
# beyond a stop are accepted by the target and must be cut.
STOPS = ("eos_token_id", "stop_strings", "tokenizer", "stopping_criteria", "streamer", "max_length", "min_new_tokens")
BEYOND = 12

Options = dict[str, Any] | Callable[[], dict[str, Any]]


@dataclass
class Pair:
    """What plain `generate` returned, and what it returned with a head."""

    plain: Any
    drafted: Any


def fresh(options: Options) -> dict[str, Any]:
    """Options for one call; those that carry state are made anew by a function."""
    return dict(options() if callable(options) else options)


def learn_text(target: PreTrainedModel, head: OracleHead, options: Options, **inputs: Any) -> None:
    """Teach the oracle what plain `generate` writes, past every stop."""
    given = fresh(options)
    length = given.get("max_new_tokens") or given.get("max_length", 20)
    going_on = {name: value for name, value in given.items() if name not in STOPS}
    text = target.generate(**inputs, **(going_on | {"max_new_tokens": length + BEYOND}))
    skipped = 0 if text.shape[1] > length + BEYOND else _prompt_length(inputs)
    head.learn(text, skipped)


def _prompt_length(inputs: dict[str, Any]) -> int:
    embeds = inputs.get("inputs_embeds")
    return 0 if embeds is None else embeds.shape[1]


def compare(
    target: PreTrainedModel,
    head: PreTrainedModel,
    options: Options,
    least: float = 1.0,
    learn: bool = True,
    **inputs: Any,
) -> Pair:
    """Generate both ways from one prompt: the same tokens, at a mean acceptance length above `least`.

    An oracle learns the text first, unless the caller has taught it.
    """
    if learn and isinstance(head, OracleHead):
        learn_text(target, head, options, **inputs)
    asked = {"return_dict_in_generate": True}
    plain = target.generate(**inputs, **(asked | fresh(options)))
    drafted = target.generate(**inputs, **(asked | fresh(options)), assistant_model=head)
    assert drafted.sequences.tolist() == plain.sequences.tolist()
    assert drafted.sequences.dtype == plain.sequences.dtype
    assert mean_acceptance(drafted) > least
    return Pair(plain, drafted)


def mean_acceptance(drafted: Any) -> float:
    """Mean acceptance length of one call, printed; 1.0 means that not one draft was accepted."""
    lengths = drafted.acceptance_lengths[0]
    assert lengths, "no verification took place"
    mean = sum(lengths) / len(lengths)
    print(f"mean acceptance length {mean:.2f} over {len(lengths)} verifications")
    return mean


def branches_taken(head: OracleHead, sequence: torch.Tensor) -> tuple[int, int]:
    """Of the drafts accepted in the head's last call: how many they are, and how many are not a first child."""
    text, accepted, later = sequence[0].tolist(), 0, 0
    for position, tree in head.records[-1].trees:
        node, children, tokens = 0, tree.children(0), tree.tokens[0].tolist()
        for wanted in text[position + 1 :]:
            found = [child for child in children[node] if tokens[child] == wanted]
            if not found:
                break
            accepted, later = accepted + 1, later + (found[0] != children[node][0])
            node = found[0]
    return accepted, later
