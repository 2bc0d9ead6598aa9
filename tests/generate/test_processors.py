"""Logits processors: each is applied along the tokens' own history, exactly as plain `generate` applies it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.agreement import compare
from helpers.targets import prompt
from transformers import LogitsProcessor, LogitsProcessorList

BUILT_IN: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words": {"bad_words_ids": [[word] for word in range(1, 60, 2)] + [[2, 4], [6, 8, 10]]},
    "suppress": {"suppress_tokens": list(range(1, 50))},
    "begin_suppress": {"begin_suppress_tokens": list(range(1, 90))},
    "sequence_bias": {"sequence_bias": [[[7], 30.0], [[7, 8], 60.0], [[8, 9, 10], 90.0]]},
    "encoder_repetition": {"encoder_repetition_penalty": 1.5},
    "several": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[3], [5]]},
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in(target, head, name: str) -> None:
    options = {"max_new_tokens": 30, **BUILT_IN[name]}
    pair = compare(target, head, options, input_ids=prompt())
    without = target.generate(prompt(), max_new_tokens=30)
    assert pair.plain.sequences.tolist() != without.tolist(), "the option must change this text to be tested by it"


def test_exponential_decay_of_the_length(target, head) -> None:
    options = {"max_new_tokens": 60, "exponential_decay_length_penalty": (6, 1.3), "eos_token_id": 50}
    head.learn(target.generate(prompt(), **options))
    pair = compare(target, head, options, learn=False, input_ids=prompt())
    assert pair.drafted.sequences[0, -1] == 50


def test_repetition_penalty_of_a_prompt_beyond_the_input(target, head) -> None:
    """`repetition_penalty` with a continued prompt counts the whole text."""
    ids = torch.cat((prompt(5), prompt(5)), dim=1)
    compare(target, head, {"max_new_tokens": 30, "repetition_penalty": 3.0}, input_ids=ids)


class HistoryDependent(LogitsProcessor):
    """Keeps what it was shown, and pushes the text about by it: state and history both matter."""

    def __init__(self) -> None:
        self.histories: list[list[int]] = []
        self.dtypes: set[torch.dtype] = set()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.histories.append(input_ids[0].tolist())
        self.dtypes.add(scores.dtype)
        favourite = (int(input_ids.sum()) + 31 * len(self.histories)) % scores.shape[-1]
        scores = scores.clone()
        scores[:, favourite] += 4.0
        scores[:, int(input_ids[0, -1])] = -torch.inf
        return scores


@pytest.mark.parametrize("sampling", [False, True])
def test_a_processor_with_memory(target, head, sampling: bool) -> None:
    """It meets plain `generate`'s histories, each once, in order, and none past the end."""
    made: list[HistoryDependent] = []

    def options() -> dict[str, Any]:
        made.append(HistoryDependent())
        return {"max_new_tokens": 23, "logits_processor": LogitsProcessorList([made[-1]])}

    if sampling:
        torch.manual_seed(0)
        out = target.generate(prompt(), **options(), do_sample=True, temperature=2.0, assistant_model=head)
        text = out[0].tolist()
        assert made[-1].histories == [text[:end] for end in range(9, len(text))]
    else:
        compare(target, head, options, input_ids=prompt())
        assert made[-1].histories == made[-2].histories
        assert made[-1].dtypes == made[-2].dtypes == {torch.float32}


def test_a_processor_with_memory_and_an_early_stop(target, head) -> None:
    made: list[HistoryDependent] = []

    def options() -> dict[str, Any]:
        made.append(HistoryDependent())
        return {"max_new_tokens": 23, "logits_processor": LogitsProcessorList([made[-1]])}

    new = target.generate(prompt(), **options())[0, 9:].tolist()
    eos = next(token for token in new[5:] if new.index(token) >= 5)
    pair = compare(target, head, lambda: options() | {"eos_token_id": eos}, input_ids=prompt())
    assert pair.drafted.sequences[0, -1] == eos
    assert made[-1].histories == made[-2].histories


def test_a_plain_list_of_processors(target, head) -> None:
    options = lambda: {"max_new_tokens": 12, "logits_processor": [HistoryDependent()]}  # noqa: E731
    compare(target, head, options, input_ids=prompt())


def test_prefix_allowed_tokens_fn(target, head) -> None:
    asked: list[list[tuple[int, list[int]]]] = []

    def options() -> dict[str, Any]:
        calls: list[tuple[int, list[int]]] = []
        asked.append(calls)

        def allowed(row: int, ids: torch.Tensor) -> list[int]:
            calls.append((row, ids.tolist()))
            return [(5 * int(ids[-1]) + step) % 96 for step in range(1, 9)]

        return {"max_new_tokens": 25, "prefix_allowed_tokens_fn": allowed}

    compare(target, head, options, input_ids=prompt())
    assert asked[-1] == asked[-2]


def test_nothing_allowed_fails_alike(target, head) -> None:
    errors = []
    for more in ({}, {"assistant_model": head}):
        with pytest.raises(ValueError, match="prefix_allowed_tokens_fn") as error:
            target.generate(prompt(), max_new_tokens=5, prefix_allowed_tokens_fn=lambda row, ids: [], **more)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_guidance(target, head) -> None:
    """Classifier-free guidance runs the target itself, with a cache of its own: the hardest processor there is."""
    options = {"max_new_tokens": 20, "guidance_scale": 1.5, "negative_prompt_ids": prompt(6, seed=3)}
    compare(target, head, options, input_ids=prompt())


def test_watermark_with_a_state(target, head) -> None:
    """SynthID's processor remembers the contexts that it has marked."""
    from transformers import SynthIDTextWatermarkingConfig

    marked = SynthIDTextWatermarkingConfig(ngram_len=3, keys=[11, 22, 33, 44, 55, 66], context_history_size=64)
    compare(target, head, {"max_new_tokens": 20, "watermarking_config": marked}, input_ids=prompt())


def test_watermark(target, head) -> None:
    compare(target, head, {"max_new_tokens": 20, "watermarking_config": {"bias": 20.0}}, input_ids=prompt())
