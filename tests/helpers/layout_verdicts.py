"""What becomes of a catalogued checkpoint: loaded and held against the reference, or refused in a sentence.

Shared by the tests of layouts and by `layouts_report.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

import hf_eagle3
from hf_eagle3.checkpoint import read_checkpoint
from hf_eagle3.configuration_eagle3 import LAST_HIDDEN_STATE

from .checkpoint_catalogue import Synthetic, Variant, synthesise
from .reference_heads import Step, random_inputs, reference_steps

LENGTH, STEPS = 9, 4
# Largest |found - expected| / (1 + |expected|): norms and rotations of a head are float32, whatever its weights are.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Verdict:
    """
    Args:
        made: the checkpoint.
        taken: the layout and the conventions that were taken, in the loader's own words.
        difference: of all logits from the reference's, relative; None where the head was refused.
        mistakes: sentences about what else differs.
        refusal: the sentence with which it was refused.
    """

    made: Synthetic
    taken: str = ""
    difference: float | None = None
    mistakes: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def good(self) -> bool:
        """Whether it matches, or was refused in one sentence that names the folder, as it should be."""
        if self.made.refuse:
            return str(self.made.folder) in self.refusal and "\n" not in self.refusal
        return self.difference is not None and self.difference <= TOLERANCE and not self.mistakes

    def __str__(self) -> str:
        if self.difference is None:
            return f"refused: {self.refusal}"
        if self.difference > TOLERANCE or self.mistakes:
            return f"DIFFERS from the reference by {self.difference:.0e}: {'; '.join(self.mistakes) or 'logits'}"
        return f"matches the reference to {self.difference:.0e}"


@torch.no_grad()
def judge(variant: Variant, folder: Path, options: Iterable[str] = (), seed: int = 0) -> Verdict:
    """Write a variant into an empty folder, load it by `hf_eagle3.load_head`, and compare."""
    made = synthesise(variant, folder, seed=seed, options=options)
    try:
        found = read_checkpoint(folder, {})
        head = hf_eagle3.load_head(folder, dtype=torch.float64)
    except (ValueError, OSError) as error:
        return Verdict(made, refusal=str(error))
    states, tokens, embeddings, lm_head = random_inputs(made, LENGTH, STEPS)
    expected = reference_steps(made, states, tokens, embeddings, lm_head, STEPS)
    logits = drafted(head, made, states, tokens, embeddings, lm_head)
    return Verdict(
        made,
        taken=found.described().removeprefix(f"{folder}: "),
        difference=max(_difference(one, step) for one, step in zip(logits, expected, strict=True)),
        mistakes=tuple(_mistakes(head, made)),
    )


def drafted(
    head: Any, made: Synthetic, states: list[Tensor], tokens: Tensor, embeddings: Tensor, lm_head: Tensor
) -> Iterator[Tensor]:
    """Logits `[rows, draft_vocab]` of every step: all states at once, then what follows the last, step by step or, of
    a head that drafts in parallel, in the same forward."""
    embed = head.embed_tokens.weight if head.embed_tokens is not None else embeddings
    # EAGLE-1 heads predict with the target's output matrix.
    output = {} if head.get_output_embeddings() is not None else {"lm_head": partial(linear, weight=lm_head)}
    run = partial(head, use_cache=True, **output)
    hidden = head.fuse(torch.cat(states[:-1] if made.facts.boundaries else states[-1:], dim=-1)[None])
    first = tokens[None, 1 : LENGTH + 1]
    if getattr(head.config, "parallel_drafting", False) and head.config.mask_token_id is not None:
        slots = head.masked_slot().expand(1, STEPS - 1, -1)
        masks = torch.full((1, STEPS - 1), head.config.mask_token_id)
        out = run(torch.cat((hidden, slots), dim=1), inputs_embeds=embed[torch.cat((first, masks), dim=1)])
        yield from out.logits[0].split([LENGTH, *[1] * (STEPS - 1)])
        return
    out = run(hidden, inputs_embeds=embed[first])
    yield out.logits[0]
    for step in range(1, STEPS):
        new = tokens[None, LENGTH + step : LENGTH + step + 1]
        out = run(out.last_hidden_state[:, -1:], inputs_embeds=embed[new], past_key_values=out.past_key_values)
        yield out.logits[0]


def _difference(found: Tensor, step: Step) -> float:
    expected = step.draft_logits
    if found.shape != expected.shape:
        return float("inf")
    return float(((found - expected).abs() / (1 + expected.abs())).max())


def _mistakes(head: Any, made: Synthetic) -> Iterator[str]:
    """What logits do not show: which states of the target are read, and which tokens are meant."""
    wanted = list(made.facts.boundaries) or [LAST_HIDDEN_STATE]
    read = head.config.boundaries_for(made.facts.target_layers)
    if read != wanted:
        yield f"it reads boundaries {read} instead of {wanted}"
    if not torch.equal(head.to_target_ids(torch.arange(head.config.draft_vocab_size)), made.facts.target_ids):
        yield "its draft tokens mean other target tokens"
