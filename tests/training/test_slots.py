"""Decoding many rows at once: what each becomes is what it would become alone."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from hf_eagle3.data.slots import Request, SlotDecoder, draw

STOP = 1


def requests(count: int, temperature: float = 0.0, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(
            [rng.randrange(2, 64) for _ in range(rng.randrange(1, 20))], rng.randrange(1, 25), temperature, 0.9, i, i
        )
        for i in range(count)
    ]


def decoded(target: LlamaForCausalLM, wanted: list[Request], slots: int) -> dict[int, list[int]]:
    decoder = SlotDecoder(target, [STOP], slots=slots, max_length=45, refill=2)
    for layer in decoder.layers:
        layer.columns = 50  # so that the cursor slides back many times
    return {done.request.payload: done.new_ids for done in decoder.run(iter(wanted))}


@pytest.mark.parametrize("attention", ["sdpa", "eager", "eagle3_tree"])
def test_slots_write_what_generate_writes(target: LlamaForCausalLM, attention: str) -> None:
    target.set_attn_implementation(attention)
    found = decoded(target, requests(20), slots=3)
    assert len(found) == 20
    for request in requests(20):
        prompt = torch.tensor([request.ids])
        expected = target.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=request.max_new_tokens, do_sample=False
        )[0, prompt.shape[1] :]
        assert found[request.payload] == expected.tolist()


def test_a_sampled_request_does_not_depend_on_its_company(target: LlamaForCausalLM) -> None:
    wanted = requests(16, temperature=1.0)
    together = decoded(target, wanted, slots=4)
    backwards = decoded(target, wanted[::-1], slots=3)
    alone = {request.payload: decoded(target, [request], slots=1)[request.payload] for request in wanted}
    assert together == backwards == alone
    for request in wanted:
        request.seed += 1
    assert decoded(target, wanted, slots=4) != together


def test_a_request_too_long_is_refused(target: LlamaForCausalLM) -> None:
    decoder = SlotDecoder(target, [STOP], slots=2, max_length=20)
    with pytest.raises(ValueError, match="max_length=20"):
        list(decoder.run(iter([Request([3] * 15, 10)])))


def test_layers_that_the_cache_cannot_serve_are_refused(target: LlamaForCausalLM) -> None:
    target.config.sliding_window = 16
    target.config.layer_types = ["sliding_attention", "full_attention"] * 4
    SlotDecoder(target, [STOP], max_length=16)
    with pytest.raises(ValueError, match="--max-length 16"):
        SlotDecoder(target, [STOP], max_length=17)
    target.config.layer_types = ["linear_attention"] * 8
    with pytest.raises(ValueError, match="linear_attention"):
        SlotDecoder(target, [STOP], max_length=16)


def test_attention_that_takes_no_mask_of_its_own_is_refused(target: LlamaForCausalLM) -> None:
    target.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"flash_attention_2.*sdpa.*--server"):
        SlotDecoder(target, [STOP])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-30, 30), min_size=1, max_size=12, unique=True),
    st.floats(0.2, 2.0),
    st.floats(0.05, 1.0),
)
def test_draw_inverts_the_distribution(values: list[int], temperature: float, top_p: float) -> None:
    """Evenly spread uniforms give each token its share of the smallest likeliest set, as a plain loop finds it."""
    logits, grid = torch.tensor([values]) / 4, 1000
    shares = (logits.double()[0] / temperature).softmax(0).tolist()
    kept: list[int] = []
    for token in sorted(range(len(values)), key=lambda i: -values[i]):
        mass = sum(shares[i] for i in kept)
        assume(abs(mass - top_p) > 1e-5)
        if mass < top_p:
            kept.append(token)
    uniform = (torch.arange(grid)[:, None] + 0.5) / grid
    drawn = draw(logits.expand(grid, -1), torch.tensor([[temperature]]), torch.tensor([[top_p]]), uniform).tolist()
    for token in range(len(values)):
        share = shares[token] / sum(shares[i] for i in kept) if token in kept else 0.0
        assert drawn.count(token) == pytest.approx(share * grid, abs=1.5)
        assert token in kept or token not in drawn


def test_draw_never_leaves_the_top_set() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.9, -1.0]])
    almost_one = torch.tensor([[1.0 - 2**-24]])
    drawn = draw(logits, torch.ones(1, 1), torch.tensor([[0.9]]), almost_one)
    assert drawn.tolist() == [2]
