"""Decoding many rows at once: what each becomes is what it would become alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from hf_eagle3.data.router import Router, lanes_for
from hf_eagle3.data.slots import Chooser, Request, SlotDecoder, Work, alike, draw

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


def routed(target: LlamaForCausalLM, wanted: list[Request], lanes: list[tuple[int, int]]) -> dict[int, list[int]]:
    return {done.request.payload: done.new_ids for done in Router(target, [STOP], lanes).run(iter(wanted))}


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
    assert routed(target, requests(20), [(20, 2), (45, 2)]) == found


def test_a_sampled_request_does_not_depend_on_its_company(target: LlamaForCausalLM) -> None:
    """Neither on what is decoded beside it nor on where it is."""
    wanted = requests(16, temperature=1.0)
    for request in wanted[::3]:
        request.temperature = 0.0
    together = decoded(target, wanted, slots=4)
    backwards = decoded(target, wanted[::-1], slots=3)
    alone = {request.payload: decoded(target, [request], slots=1)[request.payload] for request in wanted}
    assert together == backwards == alone
    assert routed(target, wanted, [(12, 2), (25, 1), (45, 2)]) == together
    assert routed(target, wanted[::-1], [(30, 3), (60, 1)]) == together
    for request in wanted:
        request.seed += 1
    assert decoded(target, wanted, slots=4) != together


def test_a_row_is_drawn_by_the_uniforms_of_its_seed() -> None:
    """One for each token, in their order, whatever slot it has and however many it is drawn together with."""
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    seated = [Request([2], 5, temperature, 0.8, seed) for seed, temperature in enumerate((1.0, 0.0, 0.7))]
    chooser = Chooser(6, 9, torch.device("cpu"))
    chooser.seat([4, 0, 3], seated)
    uniforms = [random.Random(request.seed) for request in seated]
    for step in range(5):
        slots = [0, 3, 4] if step != 2 else [3, 4]
        rows = {slot: logits[(slot + step) % 4] for slot in slots}
        found = chooser(slots, torch.tensor(slots), torch.stack([*rows.values()])).tolist()
        for slot, token in zip(slots, found, strict=True):
            request = {4: seated[0], 0: seated[1], 3: seated[2]}[slot]
            if not request.temperature:
                assert token == int(rows[slot].argmax())
                continue
            settings = (request.temperature, request.top_p, uniforms[request.seed].random())
            assert token == int(draw(rows[slot][None], *(torch.tensor([[value]]) for value in settings)))


def test_prompts_of_like_lengths_are_prefilled_together() -> None:
    wanted = [Request([3] * length, 1) for length in (30, 7, 100, 62, 59, 29, 18, 5, 4)]

    def grouped(worth: int) -> list[list[int]]:
        return [[len(request.ids) for request in group] for group in alike(wanted, worth)]

    assert grouped(14) == [[100], [62, 59], [30, 29, 18], [7, 5, 4]]
    assert grouped(38) == [[100, 62], [59, 30], [29, 18, 7], [5, 4]]
    assert grouped(10_000) == [sorted((len(request.ids) for request in wanted), reverse=True)]
    assert grouped(0) == [[length] for length in (100, 62, 59, 30, 29, 18, 7, 5, 4)]
    assert alike([], 5) == []


def mixed(count: int, seed: int = 0) -> list[Request]:
    """Mostly short requests, and long ones between them."""
    rng = random.Random(seed)
    lengths = [rng.randrange(60, 90) if rng.random() < 0.2 else rng.randrange(4, 12) for _ in range(count)]
    return [Request([rng.randrange(2, 64) for _ in range(length)], 12, 0.0, 1.0, i, i) for i, length in
            enumerate(lengths)]  # fmt: skip


def test_short_rows_do_not_pay_for_long_ones(target: LlamaForCausalLM) -> None:
    """Counted: the columns of all steps, and the padding of the prompts; and the tokens are the same."""
    alone, router = SlotDecoder(target, [STOP], 10, 110, refill=1), Router(target, [STOP], [(30, 8), (110, 2)])
    found = {done.request.payload: done.new_ids for done in alone.run(iter(mixed(60)))}
    assert {done.request.payload: done.new_ids for done in router.run(iter(mixed(60)))} == found
    parts = [decoder.work for decoder in router.decoders]
    assert sum(part.tokens for part in parts) == alone.work.tokens
    assert alone.work.tokens == sum(len(ids) - 1 for ids in found.values())  # the first comes from the prompt
    assert sum(part.columns for part in parts) < 0.7 * alone.work.columns
    own = sum(len(request.ids) for request in mixed(60))
    for work in (alone.work, Work(*map(sum, zip(*(vars(part).values() for part in parts), strict=True)))):
        assert work.prefilled - work.padding == own
        assert work.padding < 0.4 * work.prefilled


def test_a_router_keeps_all_its_decoders_at_work(target: LlamaForCausalLM) -> None:
    """Long slots take short requests when there are more than enough; few are taken up before there is room."""
    asked = []

    def asking() -> Iterator[Request | None]:
        for request in requests(30):
            asked.append(request)
            yield request
            yield None

    router = Router(target, [STOP], [(45, 2), (90, 4)])
    ended = 0
    for _ in router.run(asking()):
        ended += 1
        assert len(asked) <= ended + 6 + 2
    assert ended == 30
    assert router.decoders[1].work.tokens > 0
    assert sum(decoder.free for decoder in router.decoders) == 6


def test_lanes() -> None:
    assert lanes_for(480, 384, 1536) == [(384, 384), (1536, 96)]
    assert lanes_for(48, 384, 1536) == [(1536, 48)]
    assert lanes_for(512, 384, 700) == [(700, 512)]


@pytest.mark.parametrize("lanes", [[], [(20, 0)], [(45, 2), (20, 2)], [(20, 1), (20, 1)]])
def test_lanes_that_make_no_sense_are_refused(target: LlamaForCausalLM, lanes: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="from the shortest rows to the longest"):
        Router(target, [STOP], lanes)


def test_a_request_too_long_is_refused(target: LlamaForCausalLM) -> None:
    decoder = SlotDecoder(target, [STOP], slots=2, max_length=20)
    with pytest.raises(ValueError, match="max_length=20"):
        list(decoder.run(iter([Request([3] * 15, 10)])))
    with pytest.raises(ValueError, match="max_length=20"):
        list(Router(target, [STOP], [(10, 1), (20, 1)]).run(iter([Request([3] * 15, 10)])))


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
