"""Whether a drafted answer is the plain one, and, where it is not, whether arithmetic or an error made the difference.

A tree is verified in one batched forward, which adds numbers up in another order than token-by-token decoding does. In
half precision that may flip a choice between two tokens whose logits nearly tie; the gap is recomputed and compared
with what the dtype can resolve. In float32 no tolerance is granted: a flip goes before a float64 copy of the target,
where both ways of decoding must give the same tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from .timing import Settings, run_drafted, run_plain

# Between a batched and a stepwise forward, a bfloat16 SmolLM2 was seen to move the difference of its two top logits by
# two units in the last place; twice that is granted.
_UNITS_IN_THE_LAST_PLACE = 4
_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Verdict:
    """The comparison of one plain and one drafted answer.

    Args:
        identical: the tokens are the same, all of them.
        position: how many new tokens agree before the first difference.
        gap: how far the lesser of the two tokens lies below the top logit there; None where one answer simply ended.
        tolerance: the gap that still counts as a near tie in this dtype.
        equal_in_float64: the float64 copy decodes alike both ways; None when it was not asked.
    """

    identical: bool
    position: int | None = None
    gap: float | None = None
    tolerance: float = 0.0
    equal_in_float64: bool | None = None

    @property
    def near_tie(self) -> bool:
        return not self.identical and self.gap is not None and self.gap <= self.tolerance

    @property
    def lossless(self) -> bool:
        """Nothing but rounding stands between the two answers."""
        return self.identical or (self.near_tie if self.equal_in_float64 is None else self.equal_in_float64)

    def __str__(self) -> str:
        if self.identical:
            return "identical: yes"
        gap = "one answer ended there" if self.gap is None else f"logit gap {self.gap:.2g}"
        if self.equal_in_float64 is not None:
            ruling = "the same in float64" if self.equal_in_float64 else "DIFFERENT in float64 too"
            return f"identical up to token {self.position}, {ruling} ({gap})"
        if self.near_tie:
            return f"identical up to token {self.position}, a near tie ({gap})"
        return f"identical: NO, from token {self.position} on ({gap}, a near tie ends at {self.tolerance:.2g})"


def first_difference(plain: Sequence[int], drafted: Sequence[int]) -> int | None:
    """How many tokens agree before the first difference; None when there is none."""
    for position, (one, other) in enumerate(zip(plain, drafted, strict=False)):
        if one != other:
            return position
    return None if len(plain) == len(drafted) else min(len(plain), len(drafted))


def compare(model: PreTrainedModel, prompt: torch.Tensor, plain: Sequence[int], drafted: Sequence[int]) -> Verdict:
    """Compares two greedy answers, and recomputes the logits at their first difference with one plain forward.

    Args:
        model: the target, in the dtype that it answered in.
        prompt: token ids [1, length].
        plain: the new tokens of plain `generate`.
        drafted: the new tokens of `generate` with a head.
    """
    position = first_difference(plain, drafted)
    if position is None:
        return Verdict(identical=True)
    if position == min(len(plain), len(drafted)):
        return Verdict(identical=False, position=position)
    logits = _logits_after(model, prompt, plain[:position])
    top = logits.max()
    gap = (top - logits[[plain[position], drafted[position]]].min()).item()
    tolerance = 0.0
    if model.dtype in _HALF:
        tolerance = _UNITS_IN_THE_LAST_PLACE * torch.finfo(model.dtype).eps * logits.abs().max().item()
    return Verdict(identical=False, position=position, gap=gap, tolerance=tolerance)


class Judge:
    """Compares answers of one target; makes the float64 copy (once) only when a float32 answer was flipped.

    Args:
        model: the target.
        head: the head that drafted, used as it is: what it proposes cannot change what is accepted.
    """

    def __init__(self, model: PreTrainedModel, head: PreTrainedModel) -> None:
        self._model = model
        self._head = head
        self._exact: Any = None

    def rule(
        self, inputs: Mapping[str, Any], settings: Settings, plain: Sequence[int], drafted: Sequence[int]
    ) -> Verdict:
        """The verdict on two greedy answers to `inputs`; float32 answers that differ are adjudicated in float64."""
        verdict = compare(self._model, inputs["input_ids"], plain, drafted)
        if verdict.identical or self._model.dtype != torch.float32:
            return verdict
        exact = self._float64_model()
        answers = run_plain(exact, inputs, settings), run_drafted(exact, self._head, inputs, settings)
        in_float64 = compare(exact, inputs["input_ids"], plain, drafted)
        equal = answers[0].tokens == answers[1].tokens
        return Verdict(False, verdict.position, in_float64.gap, equal_in_float64=equal)

    def _float64_model(self) -> PreTrainedModel:
        if self._exact is None:
            self._exact = copy.deepcopy(self._model).to(torch.float64)
        return self._exact


def _logits_after(model: PreTrainedModel, prompt: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
    """Logits [vocabulary] of the token after prompt and answer, at least in float32."""
    ids = torch.cat([prompt, prompt.new_tensor([list(answer)])], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
    return logits if logits.dtype == torch.float64 else logits.float()
