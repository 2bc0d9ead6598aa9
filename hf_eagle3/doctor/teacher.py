"""The target answers a few prompts once; its states and its choices on them are kept for every reading of the head.

Knows nothing of heads, but for the boundaries that somebody wants.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.questions import encode_chat
from ..verification import captured

# So many of the target's likeliest tokens stand for its distribution: nearly all of its mass, at a thousandth of the
# memory.
LIKELY = 64


@dataclass(frozen=True)
class Answered:
    """A prompt with the target's own greedy answer: int64 `[length]` ids, and where the answer begins."""

    ids: torch.Tensor
    start: int


@dataclass(frozen=True)
class Passage:
    """What the target computed over an answered prompt.

    Args:
        ids: int64 `[length]`.
        start: where the answer begins.
        states: for each boundary `[length, target_hidden]`, in the target's dtype.
        likely: int64 `[length - start + 1, LIKELY]`, the likeliest tokens after positions `start - 1` onwards.
        shares: float `[length - start + 1, LIKELY]`, their probabilities.
    """

    ids: torch.Tensor
    start: int
    states: dict[int, torch.Tensor]
    likely: torch.Tensor
    shares: torch.Tensor


def answer(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int
) -> list[Answered]:
    """Prompts with greedy answers, all generated in one batch.

    Prompts that leave no room for an answer in the target's context are left out.
    """
    encoded = [encode_chat(tokenizer, prompt)["input_ids"][0] for prompt in prompts]
    context = getattr(target.config.get_text_config(decoder=True), "max_position_embeddings", None)
    encoded = [ids for ids in encoded if context is None or len(ids) + new_tokens <= context]
    if not encoded:
        return []
    width = max(len(ids) for ids in encoded)
    stops = stop_ids(target)
    padding = stops[0] if stops else 0
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=padding) for row in encoded])
    real = torch.stack([torch.arange(width) >= width - len(row) for row in encoded]).long()
    model: Any = target
    made = model.generate(
        input_ids=ids.to(target.device),
        attention_mask=real.to(target.device),
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=padding,
    )
    answers = [_until_stop(row[width:], stops) for row in made.cpu()]
    return [Answered(torch.cat((row, new)), len(row)) for row, new in zip(encoded, answers, strict=True)]


def passages(target: PreTrainedModel, answered: Iterable[Answered], boundaries: Iterable[int]) -> Iterator[Passage]:
    """Run the target once over each answered prompt, and keep the states at all of the boundaries.

    Raises:
        ValueError: if the target does not give them.
    """
    wanted = sorted(set(boundaries))
    model: Any = target
    fewer = "logits_to_keep" in inspect.signature(model.forward).parameters
    for row in answered:
        ids = row.ids.to(target.device)
        kept = len(ids) - row.start + 1
        keywords: dict[str, Any] = {"logits_to_keep": kept} if fewer else {}
        out = model(ids[None], use_cache=False, output_hidden_states=wanted, **keywords)
        shares = out.logits[0, -kept:].float().softmax(-1)
        best = shares.topk(min(LIKELY, shares.shape[-1]), dim=-1)
        states = {b: state[0] for b, state in zip(wanted, captured(out.hidden_states, wanted), strict=True)}
        yield Passage(ids, row.start, states, best.indices, best.values)


def stop_ids(target: PreTrainedModel) -> list[int]:
    """The ids that end an answer of the target."""
    config: Any = target.generation_config
    stops = config.eos_token_id if config is not None else None
    return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)


def _until_stop(answer: torch.Tensor, stops: Sequence[int]) -> torch.Tensor:
    """The answer with the token that ends it, without what pads the batch after it."""
    ended = torch.isin(answer, torch.tensor(stops, dtype=answer.dtype)).nonzero()
    return answer[: int(ended[0]) + 1] if len(ended) else answer
