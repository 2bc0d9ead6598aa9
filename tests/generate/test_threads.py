"""Threads that share one target and one head."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from helpers.oracle import oracle
from helpers.targets import prompt, tiny_target

NEW = 32


def in_two_threads(work: Any, items: list[Any]) -> list[Any]:
    """`work` on all items, two at a time, each pair starting together."""
    start = threading.Barrier(2, timeout=60)

    def together(item: Any) -> Any:
        start.wait()
        return work(item)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(together, items))


def test_trained_head(golden_target, golden_head) -> None:
    prompts = [prompt(8 + seed, seed=seed, vocabulary=500) for seed in range(6)]

    def answer(ids: torch.Tensor) -> tuple[Any, Any]:
        out = golden_target.generate(
            ids,
            max_new_tokens=NEW,
            eos_token_id=None,
            assistant_model=golden_head,
            return_dict_in_generate=True,
            tree_depth=2 + ids.shape[1] % 4,
        )
        return out.sequences.tolist(), out.acceptance_lengths

    alone = [answer(ids) for ids in prompts]
    assert in_two_threads(answer, prompts) == alone
    for ids, (text, lengths) in zip(prompts, alone, strict=True):
        assert text == golden_target.generate(ids, max_new_tokens=NEW, eos_token_id=None).tolist()
        assert sum(lengths[0]) / len(lengths[0]) > 1.0


def test_the_first_meeting_in_two_threads_at_once() -> None:
    """Both may try the target out; neither may disturb the other."""
    target = tiny_target(max_position_embeddings=777)
    head = oracle(target)
    prompts = [prompt(9, seed=0), prompt(11, seed=1)]
    for ids in prompts:
        head.learn(target.generate(ids, max_new_tokens=NEW + 12))

    def answer(ids: torch.Tensor) -> tuple[Any, Any]:
        out = target.generate(ids, max_new_tokens=NEW, assistant_model=head, return_dict_in_generate=True)
        return out.sequences.tolist(), out.acceptance_lengths[0]

    for ids, (text, lengths) in zip(prompts, in_two_threads(answer, prompts), strict=True):
        assert text == target.generate(ids, max_new_tokens=NEW).tolist()
        assert sum(lengths) / len(lengths) > 1.5


def test_a_plain_call_beside_a_drafted_one(golden_target, golden_head) -> None:
    ids = prompt(12, vocabulary=500)
    call = {"max_new_tokens": NEW, "eos_token_id": None}
    expected = golden_target.generate(ids, **call).tolist()
    ways: list[dict[str, Any]] = [{}, {"assistant_model": golden_head}] * 3
    assert in_two_threads(lambda way: golden_target.generate(ids, **call, **way).tolist(), ways) == [expected] * 6
