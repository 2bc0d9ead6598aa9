"""What a trained head is fed, whatever the call looks like: row `t` pairs the target's fused states at position `t`
with the embedding of the token at `t + 1`, and its cache never remembers a text that is gone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.targets import prompt

FIRST, TURN = prompt(12, seed=1, vocabulary=500), prompt(6, seed=2, vocabulary=500)
CALL = {"max_new_tokens": 16, "eos_token_id": None, "return_dict_in_generate": True}


@dataclass
class Fed:
    """One forward of the head over states that came from the target."""

    positions: list[int]
    hidden: torch.Tensor
    embeds: torch.Tensor
    remembered: int


@pytest.fixture
def fed(golden_head) -> Iterator[list[Fed]]:
    """Those forwards, as they come; forwards over the head's own states carry a mask and are left out."""
    seen: list[Fed] = []

    def note(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if kwargs.get("attention_mask") is None:
            positions, cache = kwargs["position_ids"][0].tolist(), kwargs["past_key_values"]
            seen.append(Fed(positions, args[0][0], kwargs["inputs_embeds"][0], cache.get_seq_length()))

    hook = golden_head.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    hook.remove()


def check(target: Any, head: Any, text: torch.Tensor, fed: list[Fed]) -> list[int]:
    """Every row belongs to `text`, and to its place in it; the positions that were fed, in order."""
    boundaries = head.config.boundaries_for(target.config.num_hidden_layers)
    with torch.no_grad():
        hidden = target(text, output_hidden_states=True).hidden_states
        fused = head.fuse(torch.cat([hidden[boundary] for boundary in boundaries], dim=-1))[0]
        embeds = target.get_input_embeddings()(text)[0]
    assert fed
    for rows in fed:
        assert rows.positions == list(range(rows.positions[0], rows.positions[-1] + 1))
        assert rows.remembered <= rows.positions[0], "more is remembered than there is text before these rows"
        torch.testing.assert_close(rows.hidden, fused[rows.positions], rtol=1e-3, atol=1e-3)
        following = [position + 1 for position in rows.positions]
        torch.testing.assert_close(rows.embeds, embeds[following], rtol=1e-4, atol=1e-5)
    return [position for rows in fed for position in rows.positions]


def say(target: Any, ids: torch.Tensor, head: Any = None, cache: Any = None, **options: Any) -> Any:
    more = {"assistant_model": head} if head is not None else {}
    return target.generate(ids, **(CALL | options), past_key_values=cache, **more)


def then(out: Any) -> torch.Tensor:
    return torch.cat((out.sequences, TURN), dim=1)


def test_one_call(golden_target, golden_head, fed) -> None:
    """Each position once, from the first on; the last ones never meet their next token."""
    out = say(golden_target, FIRST, golden_head)
    positions = check(golden_target, golden_head, out.sequences, fed)
    assert positions == list(range(len(positions)))
    assert fed[0].positions == list(range(12))


def test_chat_that_goes_on_from_our_cache(golden_target, golden_head, fed) -> None:
    first = say(golden_target, FIRST, golden_head)
    second = say(golden_target, then(first), golden_head, first.past_key_values)
    positions = check(golden_target, golden_head, second.sequences, fed)
    assert positions == list(range(len(positions))), "no position twice, none left out"


def test_foreign_cache(golden_target, golden_head, fed) -> None:
    first = say(golden_target, FIRST)
    second = say(golden_target, then(first), golden_head, first.past_key_values)
    positions = check(golden_target, golden_head, second.sequences, fed)
    assert positions == list(range(27, 27 + len(positions))), "from the new positions on"


def test_a_turn_that_others_wrote(golden_target, golden_head, fed) -> None:
    """Ours, then plain `generate`'s, then ours: a gap, over which no state may be paired with a token."""
    first = say(golden_target, FIRST, golden_head)
    second = say(golden_target, then(first), cache=first.past_key_values)
    third = say(golden_target, then(second), golden_head, second.past_key_values)
    check(golden_target, golden_head, third.sequences, fed)


@pytest.mark.parametrize("left", [20, 12])
def test_a_cropped_cache(golden_target, golden_head, fed, left: int) -> None:
    """What was taken back must not be remembered."""
    first = say(golden_target, FIRST, golden_head)
    cache = first.past_key_values
    cache.crop(left - cache.get_seq_length())
    fed.clear()
    out = say(golden_target, torch.cat((first.sequences[:, :left], TURN), dim=1), golden_head, cache)
    check(golden_target, golden_head, out.sequences, fed)


def test_branches_of_a_copied_cache(golden_target, golden_head, fed) -> None:
    first = say(golden_target, FIRST, golden_head)
    branch = copy.deepcopy(first.past_key_values)
    fed.clear()
    one = say(golden_target, then(first), golden_head, first.past_key_values)
    check(golden_target, golden_head, one.sequences, fed)
    fed.clear()
    ids = torch.cat((first.sequences, prompt(4, seed=5, vocabulary=500)), dim=1)
    other = say(golden_target, ids, golden_head, branch)
    check(golden_target, golden_head, other.sequences, fed)


def test_only_the_new_tokens_given(golden_target, golden_head, fed) -> None:
    first = say(golden_target, FIRST, golden_head)
    text = then(first)
    new, mask = text[:, first.past_key_values.get_seq_length() :], torch.ones_like(text)
    out = say(golden_target, new, golden_head, first.past_key_values, attention_mask=mask)
    check(golden_target, golden_head, torch.cat((text, out.sequences[:, new.shape[1] :]), dim=1), fed)


def test_embeddings_as_prompt(golden_target, golden_head, fed) -> None:
    embeds = golden_target.get_input_embeddings()(FIRST).detach()
    out = golden_target.generate(inputs_embeds=embeds, **CALL, assistant_model=golden_head)
    positions = check(golden_target, golden_head, torch.cat((FIRST, out.sequences), dim=1), fed)
    assert positions == list(range(11, 11 + len(positions))), "the tokens of the prompt are not known"


@pytest.mark.parametrize("way", ["plain", "processor", "sampling", "stop"])
def test_after_whatever_cuts_a_run(golden_target, golden_head, fed, way: str) -> None:
    options: dict[str, Callable[[], dict[str, Any]]] = {
        "plain": dict,
        "processor": lambda: {"repetition_penalty": 1.3},
        "sampling": lambda: {"do_sample": True, "temperature": 0.7},
        "stop": lambda: {"eos_token_id": say(golden_target, FIRST).sequences[0, 17].item()},
    }
    torch.manual_seed(0)
    first = say(golden_target, FIRST, golden_head, **options[way]())
    second = say(golden_target, then(first), golden_head, first.past_key_values)
    positions = check(golden_target, golden_head, second.sequences, fed)
    assert positions == list(range(len(positions)))


def test_padding_is_not_fed(golden_target, golden_head, fed) -> None:
    """Of a prompt padded on its left only the real tokens."""
    left = torch.zeros(1, 6, dtype=torch.long)
    mask = torch.cat((left, torch.ones_like(FIRST)), dim=1)
    say(golden_target, torch.cat((left, FIRST), dim=1), golden_head, attention_mask=mask)
    padded = list(fed)
    fed.clear()
    say(golden_target, FIRST, golden_head)
    assert len(padded) == len(fed)
    for ours, bare in zip(padded, fed, strict=True):
        assert len(ours.positions) == len(bare.positions)
        torch.testing.assert_close(ours.hidden, bare.hidden, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(ours.embeds, bare.embeds)
