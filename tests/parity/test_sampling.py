"""Sampling: the official acceptance cases uniform by uniform, and the exact joint distributions by chi-square."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from golden import ATTENTIONS, dump, pair
from scipy.stats import chi2
from transformers import DynamicCache, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hf_eagle3 import DraftTree, TreeShape
from hf_eagle3.acceptance import sample, walk
from hf_eagle3.drafters.eagle3 import Eagle3CandidateGenerator
from hf_eagle3.verification import captured, verify

CASES = dump("posterior_cases")["cases"]
EXACT = dump("sampling_exact")
SHAPE = TreeShape(num_assistant_tokens=11, tree_depth=4, tree_top_k=4)  # total_token=12, depth=3, top_k=4


def warpers(temperature: float, top_p: float, top_k: int) -> LogitsProcessorList:
    """The official order: temperature, top-p, top-k."""
    chosen = LogitsProcessorList()
    if temperature != 1.0:
        chosen.append(TemperatureLogitsWarper(temperature))
    if top_p:
        chosen.append(TopPLogitsWarper(top_p))
    if top_k:
        chosen.append(TopKLogitsWarper(top_k))
    return chosen


# ---------------------------------------------------------------------- acceptance, with given uniforms


@pytest.mark.parametrize("number", range(len(CASES)))
def test_acceptance_case(number: int) -> None:
    case = CASES[number]
    tokens, children, logits = tree_of(case)
    warp = warpers(case["temperature"], case["top_p"], case["top_k"])
    uniforms = iter(case["uniforms"])

    def choose(node: int, drafted: list[int]) -> int:
        scores = warp(None, logits[node][None])[0]
        return sample(scores, drafted, lambda: next(uniforms))

    steps = list(walk(children, tokens, choose))
    accepted = [step for step in steps if step.child is not None]
    assert [tokens[0], *(step.token for step in accepted)] == case["committed_tokens"]
    assert len(accepted) == case["accept_length"]
    assert next(uniforms, None) is None, "the official rule drew more uniforms"
    # The bonus is drawn from what the rejections left; nothing that was rejected can come back.
    rejected = [tokens[child] for child in children[steps[-1].node]]
    expected = torch.tensor(case["sample_p"])
    assert all(expected[token] == 0 for token in rejected)
    ours = warp(None, logits[steps[-1].node][None])[0].softmax(-1)
    ours[rejected] = 0
    torch.testing.assert_close(ours / ours.sum(), expected, rtol=1e-4, atol=1e-6)


def tree_of(case: dict[str, Any]) -> tuple[list[int], list[list[int]], list[torch.Tensor]]:
    """The tree behind the rows of root-to-leaf candidates, children in row order, with each node's logits."""
    nodes: dict[tuple[int, ...], int] = {}
    tokens: list[int] = []
    children: list[list[int]] = []
    logits: list[torch.Tensor] = []
    for row, row_logits in zip(case["candidates"], case["logits"], strict=True):
        for depth, token in enumerate(row):
            path = tuple(row[: depth + 1])
            if token < 0 or path in nodes:
                continue
            nodes[path] = len(tokens)
            if depth:
                children[nodes[path[:-1]]].append(len(tokens))
            tokens.append(token)
            children.append([])
            logits.append(torch.tensor(row_logits[depth]))
    return tokens, children, logits


# ---------------------------------------------------------------------- chi-square against the exact joints


@functools.cache
@torch.no_grad()
def tree_after(ids: tuple[int, ...], attention: str) -> tuple[DraftTree, torch.Tensor]:
    """The draft tree rooted at the last of `ids` and the target's logits at its nodes: deterministic, so made once."""
    target, head = pair("eagle3_sampling", attention)
    tokens, cache = torch.tensor([ids]), DynamicCache(config=target.config)
    drafter = Eagle3CandidateGenerator(head, target, SHAPE)
    out = target(tokens[:, :-1], past_key_values=cache, use_cache=True, **drafter.model_kwargs_overrides)
    cached = len(ids) - 1
    drafter.observe(captured(out.hidden_states, drafter.boundaries), cached)
    tree = drafter.draft(tokens)
    committed = torch.ones(1, cached, dtype=torch.bool)
    verified = verify(target, tree, cache, committed, torch.tensor([[cached]]), drafter.boundaries, use_cache=True)
    return tree, verified.logits[0].float()


def draw(prompt: list[int], warp: LogitsProcessorList, first: int, attention: str) -> list[int]:
    """Three tokens after the prompt, the first of them given, by rounds of drafting and acceptance."""
    new = [first]
    while len(new) < 3:
        tree, logits = tree_after((*prompt, *new), attention)
        steps = walk(tree.children(0), tree.tokens[0].tolist(), lambda node, drafted: sample(scores(node), drafted))

        def scores(node: int, logits: torch.Tensor = logits) -> torch.Tensor:
            return warp(None, logits[node][None])[0]

        new += [step.token for step in steps]
    return new[:3]


def assert_fits(counts: np.ndarray, expected: np.ndarray) -> None:
    """Chi-square, with cells of expectation below 5 pooled; and nothing impossible was drawn."""
    assert not ((expected == 0) & (counts > 0)).any()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    keep = wanted > 0
    statistic = ((observed - wanted)[keep] ** 2 / wanted[keep]).sum()
    assert keep.sum() > 5
    assert chi2.sf(statistic, keep.sum() - 1) > 1e-4


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", list(EXACT["configs"]))
def test_joint_distribution(name: str, attention: str) -> None:
    config, prompt, samples = EXACT["configs"][name], EXACT["prompt_ids"], 3000
    warp = warpers(config["temperature"], config["top_p"], config["top_k"])
    torch.manual_seed(7)
    firsts = torch.multinomial(torch.tensor(config["p_first"]), samples, replacement=True).tolist()
    drawn = np.array([draw(prompt, warp, first, attention) for first in firsts])
    vocab = EXACT["vocab"]
    joint2 = np.array(config["joint2"])
    joint3 = joint2[..., None] * np.array(config["p3_given_12"])
    counts2, counts3 = np.zeros((vocab,) * 2), np.zeros((vocab,) * 3)
    np.add.at(counts2, tuple(drawn[:, :2].T), 1)
    np.add.at(counts3, tuple(drawn.T), 1)
    assert_fits(counts2.ravel(), samples * joint2.ravel())
    assert_fits(counts3.ravel(), samples * joint3.ravel())


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", ["T1.3_topk5"])
def test_generate_samples_the_joint_distribution(name: str, attention: str) -> None:
    """The same through the front door, with fewer samples."""
    config, prompt, samples = EXACT["configs"][name], torch.tensor([EXACT["prompt_ids"]]), 400
    target, head = pair("eagle3_sampling", attention)
    knobs = {"temperature": config["temperature"], "top_p": 1.0, "top_k": config["top_k"] or None}
    torch.manual_seed(11)
    counts, lengths = np.zeros((EXACT["vocab"],) * 2), []
    for _ in range(samples):
        out = target.generate(
            prompt,
            assistant_model=head,
            do_sample=True,
            max_new_tokens=2,
            eos_token_id=-1,
            return_dict_in_generate=True,
            **knobs,
            **vars(SHAPE),
        )
        counts[tuple(out.sequences[0, -2:].tolist())] += 1
        lengths += out.acceptance_lengths[0]
    print(f"mean acceptance length {np.mean(lengths):.2f}")
    assert np.mean(lengths) > 1.1
    assert_fits(counts.ravel(), samples * np.array(config["joint2"]).ravel())
