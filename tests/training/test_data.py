"""Self-prompted data: slots, pieces of the template, roles, filters, shards, features."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_eagle3.data import self_prompting
from hf_eagle3.data.conversations import ANSWER, TEMPLATE, USER, Conversation, load_conversations, save_conversations
from hf_eagle3.data.features import FeatureCache, FeatureExtractor, extract
from hf_eagle3.data.filters import Uniqueness, acceptable_prompt, loops, repetition
from hf_eagle3.data.openings import KINDS, fill
from hf_eagle3.data.self_prompting import ChatPieces, SamplingPlan, SelfPrompter, write_conversations
from hf_eagle3.data.slots import Request, SlotDecoder

STOP = 1
PLAN = SamplingPlan(answer_tokens=300, max_answer=24, shard_size=8, two_turn_share=0.5, kept_loop_share=1.0)


@pytest.fixture(autouse=True)
def lenient_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random target writes nothing that would pass as a prompt, and a tiny vocabulary knows no opening."""
    monkeypatch.setattr(self_prompting, "acceptable_prompt", lambda text, ids, longest: bool(ids))
    monkeypatch.setattr(Uniqueness, "admit", lambda self, text, sampled=None: True)


def requests(count: int, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request([rng.randrange(2, 64) for _ in range(rng.randrange(1, 20))], rng.randrange(1, 25), payload=i)
        for i in range(count)
    ]


def test_slots_write_what_generate_writes(target: LlamaForCausalLM) -> None:
    """Rows that come and go, the cursor sliding back many times, and the captured states of every token."""
    extractor = FeatureExtractor(target, [2, 4, 5])
    decoder = SlotDecoder(target, [STOP], slots=3, max_length=45, refill=2, capture=extractor.captured)
    for layer in decoder.layers:
        layer.columns = 50
    seen = 0
    for completion in decoder.run(iter(requests(20))):
        request = completion.request
        prompt = torch.tensor([request.ids])
        expected = target.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=request.max_new_tokens, do_sample=False
        )[0, prompt.shape[1] :]
        assert completion.new_ids == expected.tolist()
        assert completion.finished == (completion.new_ids[-1] == STOP)
        alone = Conversation(request.ids + completion.new_ids)
        with torch.inference_mode():
            extractor._fill_in([alone])
        torch.testing.assert_close(completion.states, alone.states, atol=1e-4, rtol=1e-4)
        seen += 1
    assert seen == 20


def test_a_request_too_long_is_refused(target: LlamaForCausalLM) -> None:
    decoder = SlotDecoder(target, [STOP], slots=2, max_length=20)
    with pytest.raises(ValueError, match="max_length=20"):
        list(decoder.run(iter([Request([3] * 15, 10)])))


def test_pieces_render_what_the_template_renders(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = ChatPieces(tokenizer)
    turns = [{"role": role, "content": word} for role, word in [("user", "w0"), ("assistant", "w1"), ("user", "w2")]]
    rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    one, two, three = (tokenizer(word)["input_ids"] for word in ("w0", "w1", "w2"))
    parts = [pieces.before_user(), one, pieces.after_user, two, pieces.after_answer, three, pieces.after_user]
    assert [token for part in parts for token in part] == rendered
    tokenizer.chat_template = "nothing"
    with pytest.raises(ValueError, match="cannot self-prompt"):
        ChatPieces(tokenizer)


def test_roles_follow_the_template(target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """No prompt or template token is an answer's; a finished answer ends with the stop token; ids are the target's."""
    pieces = ChatPieces(tokenizer)
    conversations = list(SelfPrompter(target, tokenizer, PLAN, slots=4))
    assert any(conversation.about["turns"] == 2 for conversation in conversations)
    for conversation in conversations:
        ids, roles = conversation.ids, conversation.roles
        assert len(ids) == len(roles)
        assert 0 < conversation.answer_tokens < len(ids)
        first = roles.index(ANSWER)
        assert ids[first - len(pieces.after_user) : first] == pieces.after_user
        assert roles[first - 1] == TEMPLATE
        assert USER in roles[:first]
        assert roles[-1] == ANSWER
        assert (ids[-1] == STOP) == conversation.about["finished"]
        for i in range(1, len(ids)):
            if roles[i - 1] == ANSWER and roles[i] != ANSWER:
                assert ids[i - 1] == STOP


def test_greedy_answers_are_the_targets_own(target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    plan = replace(PLAN, greedy_share=1.0, two_turn_share=0.0)
    for conversation in list(SelfPrompter(target, tokenizer, plan, slots=4))[:5]:
        first = conversation.roles.index(ANSWER)
        prompt = torch.tensor([conversation.ids[:first]])
        expected = target.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
        assert expected[0].tolist() == conversation.ids


def test_writing_is_seeded_and_resumable(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        write_conversations(target, tokenizer, tmp_path / name, PLAN, slots=4)
    one, two = (list(load_conversations(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    more = write_conversations(target, tokenizer, tmp_path / "one", replace(PLAN, answer_tokens=500), slots=4)
    longer = list(load_conversations(tmp_path / "one"))
    assert longer[: len(one)] == one
    assert more >= 500
    assert sum(conversation.answer_tokens for conversation in longer) == more
    assert longer[len(one)] != one[0]


def test_stored_ids_come_back_as_they_were(tmp_path: Path) -> None:
    """Ids that no tokenizer would give for their text are kept, never tokenised again."""
    rows = [Conversation([5, 5, 6], [0, 1, 2], {"kind": "facts"}), Conversation([7], [2], {})]
    save_conversations(rows, tmp_path / "conversations-00000.safetensors")
    assert list(load_conversations(tmp_path)) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["conversations-00000.safetensors"]
    with pytest.raises(OSError, match="No conversations"):
        list(load_conversations(tmp_path / "nowhere"))


def test_features_captured_while_decoding_are_the_extracted_ones(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    boundaries = [2, 4, 5]
    write_conversations(target, tokenizer, tmp_path / "a", PLAN, 4, FeatureExtractor(target, boundaries))
    extract(target, tmp_path / "a", tmp_path / "b", boundaries)
    captured, extracted = FeatureCache(tmp_path / "a", boundaries), FeatureCache(tmp_path / "b", boundaries)
    assert len(captured) == len(extracted) == len(list(load_conversations(tmp_path / "a")))
    torch.testing.assert_close(captured.mass, extracted.mass, atol=1e-3, rtol=1e-3)
    for index in range(len(captured)):
        one, two = captured[index], extracted[index]
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.answers, two.answers)
        torch.testing.assert_close(one.features, two.features, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.last_hidden, two.last_hidden, atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        out = target(input_ids=one.ids[None], output_hidden_states=True)
    where = one.argmax >= 0
    assert torch.equal(one.argmax[where], out.logits[0].argmax(-1)[where])
    torch.testing.assert_close(one.features[:-1, :32], out.hidden_states[2][0, :-1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"boundaries \[2, 4, 5\]"):
        FeatureCache(tmp_path / "a", [1, 2, 3])


def test_a_scaled_target_is_refused(target: LlamaForCausalLM) -> None:
    forward = target.forward

    def scaled(**kwargs: torch.Tensor) -> object:
        out = forward(**kwargs)
        out.logits = out.logits * 2
        return out

    target.forward = scaled  # type: ignore[assignment]
    with pytest.raises(ValueError, match="soft cap"):
        FeatureExtractor(target, [2, 4, 5])


@given(st.lists(st.integers(0, 5), max_size=40))
def test_repetition_counts_repeated_grams(ids: list[int]) -> None:
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    repeats = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert repetition(ids) == pytest.approx(repeats / len(grams) if grams else 0.0)


def test_filters() -> None:
    assert loops([1, 2, 3] * 30)
    assert not loops(list(range(90)))
    assert not loops([1, 2, 3] * 10)
    assert acceptable_prompt("What is a bee?", list(range(5)))
    assert not acceptable_prompt("Hi", [1, 2])
    assert not acceptable_prompt("é" * 20, list(range(20)))
    assert not acceptable_prompt("again and again " * 8, [1, 2, 3] * 8)


def test_uniqueness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    register = Uniqueness(per_prefix=2)
    assert register.admit("What is a bee?")
    assert not register.admit("what is a  BEE")
    assert register.admit("Tell me one two three four five")
    assert register.admit("Tell me one two three six")
    assert not register.admit("Tell me one two three seven")
    assert register.admit("Opening: tell me", "tell me other things entirely now")


def test_every_opening_can_be_filled() -> None:
    rng = random.Random(0)
    for kind in KINDS:
        for text in (kind.hint, *kind.openings):
            assert "{" not in fill(text, rng).replace("{passage}", "")
        assert all("{passage}" in text for text in kind.openings) or kind.max_new_tokens > 0
