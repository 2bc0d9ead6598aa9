"""How far a greedy chain of a head would be accepted, at every position of a known answer at once.

As long as a chain is accepted, its tokens are the target's; so its drafts can be scored by feeding the answer's own
tokens, all chains together, level by level: what a row meets is what the drafter meets, and no target runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ..modeling_eagle3 import Eagle3DraftModel
from .teacher import Passage

# Chains of neighbouring positions share tokens, so what is compared are means of so many: longer than a chain.
STRETCH = 8


@dataclass(frozen=True)
class ChainScore:
    """Of one passage, at each position after which a chain was begun.

    Args:
        stretch: int64 `[positions]`, which stretch of `STRETCH` positions of an answer it is in.
        right: bool `[depth, positions]`, all drafts up to this level are the target's greedy choice.
        known: bool `[depth, positions]`, the answer follows the greedy choice as far as this level needs, so that
            `right` can be told.
        fit: mean over the levels of the log-probability (nats) that the head gives to the target's choice, averaged
            over the target's own distribution, float `[positions]`. It moves where `right`, which counts whole tokens,
            does not yet.
        finite: whether all of the head's scores were numbers.
    """

    stretch: torch.Tensor
    right: torch.Tensor
    known: torch.Tensor
    fit: torch.Tensor
    finite: bool

    @property
    def fits(self) -> torch.Tensor:
        """Mean fit of each stretch, float `[stretches]`."""
        sums = torch.zeros(int(self.stretch[-1]) + 1).index_add_(0, self.stretch, self.fit)
        return sums / self.stretch.bincount()


def acceptance_length(scores: Sequence[ChainScore]) -> float:
    """Tokens that a greedy chain gives for each verification, bonus included; 1.0 if there is nothing to tell by."""
    if not scores:
        return 1.0
    right = torch.cat([score.right & score.known for score in scores], dim=1).sum(1)
    known = torch.cat([score.known for score in scores], dim=1).sum(1)
    return 1.0 + float((right / known.clamp(min=1)).sum())


def worst_fit(vocabulary: int) -> float:
    """What counts as the log-probability of a token that a head cannot draft: that of a blind guess."""
    return -math.log(vocabulary)


def score_chains(head: Eagle3DraftModel, target: PreTrainedModel, passage: Passage, depth: int) -> ChainScore:
    """Score a chain of `depth` drafts after each answer token that has so many behind it.

    Args:
        head: any reading of a head; its dtype decides.
        target: gives embeddings where the head has none.
        passage: must hold the boundaries that the head reads, and answers longer than the chain.
    """
    ids, likely, shares = (part.to(head.device) for part in (passage.ids, passage.likely, passage.shares))
    places = [torch.arange(start - 1, end - 1 - depth) for start, end in passage.spans]
    rows = torch.cat(places).to(head.device)
    layers = target.config.get_text_config(decoder=True).num_hidden_layers
    states = [passage.states[boundary] for boundary in head.config.boundaries_for(layers)]
    features = torch.cat([state.to(head.device, head.dtype) for state in states], dim=-1)[None]
    embedding = head.input_embeddings_for(target)
    embeddings = embedding(ids[None].to(embedding.weight.device)).to(head.device, head.dtype)
    vocabulary = _Vocabulary(head)
    alive, follows = (torch.ones(len(rows), dtype=torch.bool, device=head.device) for _ in range(2))
    right, known, fit, finite = [], [], torch.zeros(len(rows), device=head.device), True
    for level, logits in enumerate(_levels(head, features, embeddings, rows, depth)):
        finite = finite and bool(torch.isfinite(logits).all())
        logits = logits.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        before = rows + 1 + level  # the position that the target's choice comes after
        choice = likely[before, 0]
        alive = alive & (vocabulary.target_ids[logits.argmax(-1)] == choice)
        right.append(alive.cpu())
        known.append(follows.cpu())
        follows = follows & (ids[before + 1] == choice)
        fit = fit + vocabulary.fit(logits, likely[before], shares[before]) / depth
    return ChainScore(
        _stretches([len(each) for each in places]), torch.stack(right), torch.stack(known), fit.cpu(), finite
    )


def _stretches(lengths: list[int]) -> torch.Tensor:
    """Numbers of stretches, counted through, for answers of so many positions."""
    numbers: list[int] = []
    for length in lengths:
        first = numbers[-1] + 1 if numbers else 0
        numbers += [first + place // STRETCH for place in range(length)]
    return torch.tensor(numbers)


class _Vocabulary:
    """The draft vocabulary of a head, however damaged: what its ids mean, and where a target's token is among them."""

    def __init__(self, head: Eagle3DraftModel) -> None:
        draft_ids = torch.arange(len(head.d2t), device=head.device)
        self.target_ids = head.to_target_ids(draft_ids)
        inside = (self.target_ids >= 0) & (self.target_ids < head.config.vocab_size)
        self._places = torch.full((head.config.vocab_size,), -1, device=head.device)
        self._places[self.target_ids[inside]] = draft_ids[inside]
        self._worst = worst_fit(head.config.vocab_size)

    def fit(self, logits: torch.Tensor, likely: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Mean log-probability `[rows]` of the `likely` target tokens, weighted by their `shares` `[rows, n]`."""
        places = self._places[likely]
        said = logits.log_softmax(-1).gather(-1, places.clamp(min=0)).clamp(min=self._worst)
        return (shares * said.masked_fill(places < 0, self._worst)).sum(-1) / shares.sum(-1)


def _levels(
    head: Eagle3DraftModel, features: torch.Tensor, embeddings: torch.Tensor, rows: torch.Tensor, depth: int
) -> Iterator[torch.Tensor]:
    """Scores over the draft vocabulary at each level of the chains that begin after `rows`, `[rows, draft_vocab]`."""
    cache = DynamicCache()
    committed = features.shape[1] - 1  # the last position's next token is not known
    out = head(
        head.fuse(features[:, :committed]),
        inputs_embeds=embeddings[:, 1:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=committed - int(rows[0]),
    )
    hidden = out.last_hidden_state[:, rows]
    yield out.logits[0, rows - rows[0]]
    for level in range(1, depth):
        out = head(
            hidden,
            inputs_embeds=embeddings[:, rows + 1 + level],
            position_ids=(rows + level)[None],
            attention_mask=_mask(head, committed, rows, level),
            past_key_values=cache,
            use_cache=True,
        )
        hidden = out.last_hidden_state
        yield out.logits[0]


def _mask(head: Eagle3DraftModel, committed: int, rows: torch.Tensor, level: int) -> torch.Tensor:
    """Additive `[1, 1, rows, keys]`: a row sees what was committed when its chain began, and its own levels since."""
    keys = torch.arange(committed, device=rows.device)[None]
    visible = keys <= rows[:, None]
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device).repeat(1, level)
    window = head.config.sliding_window
    if window is not None:
        visible = visible & (rows[:, None] + level - keys < window)
        back = level - 1 - torch.arange(level, device=rows.device).repeat_interleave(len(rows))
        own = own & (back < window)[None]
    mask = torch.zeros((len(rows), committed + own.shape[1]), dtype=head.dtype, device=rows.device)
    return mask.masked_fill_(~torch.cat((visible, own), dim=1), torch.finfo(head.dtype).min)[None, None]
