"""Sampling: the first three tokens are distributed as plain `generate` distributes them, by a chi-square test against
the exact joint distribution. Seeds are fixed: a correct program passes always, but for one chance in 1e4 taken once.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from helpers.oracle import oracle
from helpers.targets import prompt, tiny_target
from scipy.stats import chisquare
from transformers import LogitsProcessor, PreTrainedModel

from hf_eagle3 import EagleConfig, EagleDraftModel
from hf_eagle3.head import TREE_KNOBS

STATIC = {"draft_tree": "mc_sim_7b_63"}
WORDS, TOKENS, SAMPLES = 6, 3, 1500
LEAST_P = 1e-4


@pytest.fixture(scope="module")
def small() -> PreTrainedModel:
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


def check(target: PreTrainedModel, head: PreTrainedModel, options: dict[str, Any], samples: int = SAMPLES) -> None:
    ids = prompt(4, vocabulary=WORDS)
    joint = exact_joint(target, ids, {name: value for name, value in options.items() if name not in TREE_KNOBS})
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


class FavourChange(LogitsProcessor):
    """A user's processor whose effect depends on the last two tokens."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, (input_ids[0, -1] + input_ids[0, -2]) % WORDS] += 1.5
        return scores


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8},
        {"temperature": 1.3, "top_k": 4, "top_p": 0.85},
        {"repetition_penalty": 2.5, "temperature": 1.5},
        {"logits_processor": [FavourChange()], "min_p": 0.05},
    ],
    ids=["temperature", "top_k and top_p", "repetition_penalty", "own processor"],
)
def test_joint_distribution(small, options: dict[str, Any]) -> None:
    check(small, oracle(small, boundaries=()), options)


def test_joint_distribution_when_the_draft_is_the_likeliest_text(small) -> None:
    """Drafts of the greedy text, among others: likely tokens are proposed more often, and taken no more often."""
    head = oracle(small, boundaries=())
    for first in range(WORDS):
        text = torch.cat((prompt(4, vocabulary=WORDS), torch.tensor([[first]])), dim=1)
        head.learn(small.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=8))
    check(small, head, {"temperature": 1.0})


@pytest.mark.parametrize("knobs", [{"num_assistant_tokens": 9, "tree_depth": 3, "tree_top_k": 3}, STATIC], ids=str)
def test_joint_distribution_with_a_head_of_eagle1(small, knobs: dict[str, Any]) -> None:
    """Its drafts are settled by the text alone in both of its trees, so the same rule keeps the distribution."""
    torch.manual_seed(5)
    head = EagleDraftModel(EagleConfig.from_target(small.config, initializer_range=0.5)).eval()
    check(small, head, {"temperature": 1.1, "top_p": 0.95, **knobs}, samples=400)


# ---------------------------------------------------------------------- seeds


def drawn(target, head, seed: int, **options: Any) -> list[int]:
    torch.manual_seed(seed)
    return target.generate(
        prompt(), max_new_tokens=20, do_sample=True, temperature=3.0, assistant_model=head, **options
    )[0].tolist()


def test_a_seed_gives_one_text(target, head) -> None:
    first = drawn(target, head, 1)
    assert drawn(target, head, 1) == first
    assert drawn(target, head, 2) != first


def test_greedy_draws_nothing(target, head) -> None:
    before = torch.get_rng_state()
    target.generate(prompt(), max_new_tokens=10, assistant_model=head)
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_with_all_mass_on_one_token_is_greedy(target, head) -> None:
    head.learn(target.generate(prompt(), max_new_tokens=40))
    torch.manual_seed(0)
    out = target.generate(
        prompt(),
        max_new_tokens=24,
        do_sample=True,
        top_k=1,
        assistant_model=head,
        return_dict_in_generate=True,
    )
    assert out.sequences.tolist() == target.generate(prompt(), max_new_tokens=24).tolist()
    assert sum(out.acceptance_lengths[0]) / len(out.acceptance_lengths[0]) > 1.5
