"""Sampling held against the exact distribution of short texts, which a target of a few words lets one write down."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from scipy.stats import chisquare
from transformers import PreTrainedModel

from .targets import prompt, tiny_target

WORDS, TOKENS, SAMPLES = 6, 3, 1500
LEAST_P = 1e-4


def small_target() -> PreTrainedModel:
    """One layer and six words, neither sure of itself nor indifferent."""
    sizes = {"vocab_size": WORDS, "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    return tiny_target(**sizes, pad_token_id=None, initializer_range=0.35)


def exact_joint(target: PreTrainedModel, ids: torch.Tensor, options: dict[str, Any]) -> dict[tuple[int, ...], float]:
    """Probability of each text of `TOKENS` tokens, from the scores that plain `generate` reports."""

    def following(text: tuple[int, ...]) -> list[float]:
        history = torch.cat((ids, torch.tensor([text], dtype=ids.dtype)), dim=1)
        asked = {"max_new_tokens": 1, "do_sample": True, "output_scores": True, "return_dict_in_generate": True}
        seen = torch.ones_like(history)  # word 0 is a word here, not padding
        scores = target.generate(history, attention_mask=seen, **asked, **options).scores[0][0]
        return scores.double().softmax(-1).tolist()

    joint: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(TOKENS):
        joint = {
            (*text, word): chance * next_chance
            for text, chance in joint.items()
            for word, next_chance in enumerate(following(text) if chance > 0 else [0.0] * WORDS)
        }
    return joint


def p_value(counts: Counter, joint: dict[tuple[int, ...], float]) -> float:
    """Chi-square of counts against a distribution; cells that expect fewer than five are pooled."""
    total = sum(counts.values())
    assert not [text for text in counts if joint[text] == 0], "a text that plain `generate` cannot write"
    large = [text for text, chance in joint.items() if total * chance >= 5]
    observed, expected = [counts[text] for text in large], [total * joint[text] for text in large]
    if total - sum(expected) > 1:
        observed.append(total - sum(observed))
        expected.append(total - sum(expected))
    print(f"{len(expected)} cells")
    scale = sum(observed) / sum(expected)
    return float(chisquare(observed, [scale * value for value in expected]).pvalue)


def check_joint(
    target: PreTrainedModel, head: PreTrainedModel, options: dict[str, Any], samples: int = SAMPLES
) -> None:
    """Drafted texts against their exact probabilities, at a mean acceptance length above 1.3."""
    ids = prompt(4, vocabulary=WORDS)
    joint = exact_joint(target, ids, options)
    counts: Counter = Counter()
    lengths: list[int] = []
    torch.manual_seed(0)
    for _ in range(samples):
        out = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=True,
            assistant_model=head,
            return_dict_in_generate=True,
            **options,
        )
        counts[tuple(out.sequences[0, 4:].tolist())] += 1
        lengths += out.acceptance_lengths[0]
    mean, p = sum(lengths) / len(lengths), p_value(counts, joint)
    print(f"mean acceptance length {mean:.2f}, p = {p:.4f}")
    assert mean > 1.3
    assert p > LEAST_P
