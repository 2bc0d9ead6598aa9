"""Interviews: prompts as inference renders them, generated ids as generated, and a mask that is True on them alone."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.interviews import PLAN, REWRITING, STOP, OpenGate, answers_of, check, given
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_eagle3.data.filters import FilterRules, Gate
from hf_eagle3.data.interview import Interview, Plan
from hf_eagle3.data.interviewer import Interviewer, stop_ids
from hf_eagle3.data.self_prompting import Passage, SelfPrompter
from hf_eagle3.data.slots import Completion, Request
from hf_eagle3.data.sources import Prompt
from hf_eagle3.data.tally import Tally
from hf_eagle3.data.template import TemplateError


def held(
    target: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    plan: Plan = PLAN,
    prompts: Any = None,
    **options: Any,
) -> list[Interview]:
    gate: Any = options.pop("gate", OpenGate())
    return list(Interviewer(target, tokenizer, plan, gate, prompts, **{"slots": 4, **options}))


def test_given_turns_are_answered_in_their_order(target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    plan = replace(PLAN, answer_tokens=None, max_answer=60)
    prompts = given(12, turns=3, system="You are helpful")
    interviews = held(target, tokenizer, plan, iter(prompts))
    assert sorted(interview.number for interview in interviews) == list(range(12))
    interviews = [interview for interview in interviews if interview.answered]  # an empty answer is none
    examples = [interview.examples[0] for interview in interviews]
    check(examples, tokenizer)
    assert {example.about["turns"] for example in examples} >= {1, 3}
    for interview in interviews:
        (example,) = interview.examples
        number, prompt = prompts[interview.number]
        said = [message["content"] for message in example.messages if message["role"] == "user"]
        assert said == list(prompt.turns[: example.about["turns"]])
        assert example.messages[0] == {"role": "system", "content": "You are helpful"}
        assert len(said) == 3 or not example.about["finished"] or interview.tally.to_json()["answers"]["dropped"]
        assert example.about["source"] == f"my.jsonl:{number}"
        assert len(answers_of(example)) == len(said)


def test_an_earlier_stop_token_is_learnt_and_the_text_after_it_is_not(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    plan = replace(PLAN, answer_tokens=None, max_answer=60)
    found = 0
    for interview in held(target, tokenizer, plan, iter(given(12, turns=2))):
        for _, answer in answers_of(interview.examples[0])[:-1]:
            assert answer[-1] == STOP
            assert STOP not in answer[:-1]
            found += 1
    assert found > 3


def test_a_template_that_rewrites_history_gives_an_example_per_answer(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = REWRITING
    plan = replace(PLAN, answer_tokens=None, max_answer=60)
    interviews = held(target, tokenizer, plan, iter(given(12)))
    both = [interview for interview in interviews if len(interview.examples) == 2]
    assert len(both) > 3
    for interview in both:
        check(interview.examples, tokenizer)
        assert [example.about["turns"] for example in interview.examples] == [1, 2]
        assert [len(answers_of(example)) for example in interview.examples] == [1, 1]
        assert interview.examples[0].messages == interview.examples[1].messages[:2]


def test_generated_ids_are_kept_though_their_text_tokenises_otherwise() -> None:
    """What was generated as 5, 6 renders as 7 in the next prompt: the two do not go on from one another."""
    interview = Interview(3, "here", 0.0)
    interview.ask("one")
    interview.answer("x", True)
    interview.join([9, 9], [5, 6, STOP])
    interview.ask("two")
    interview.answer("y", True)
    interview.join([9, 9, 7, STOP, 9], [8, STOP])
    first, second = interview.examples
    assert (first.ids, first.mask) == ([9, 9, 5, 6, STOP], [False] * 2 + [True] * 3)
    assert (second.ids, second.mask) == ([9, 9, 7, STOP, 9, 8, STOP], [False] * 5 + [True] * 2)
    assert [len(first.messages), len(second.messages)] == [2, 4]


def test_a_turn_that_was_not_answered_leaves_no_trace(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Answers that do not pass, and conversations that grow too long, end with the answer before."""
    plan = replace(PLAN, answer_tokens=None, max_answer=60)
    for forbidden, limit in (("w7", 1536), ("nothing", 75)):
        interviews = held(
            target, tokenizer, replace(plan, max_length=limit), iter(given(12)), gate=OpenGate(forbidden)
        )
        assert 1 in {interview.answered for interview in interviews}
        for interview in interviews:
            check(interview.examples, tokenizer)
            assert bool(interview.examples) == bool(interview.answered)
    dropped = [interview.tally.to_json()["room for an answer"]["dropped"] for interview in interviews]
    assert {"over 75 tokens": 1} in dropped


def test_refused_prompts_are_not_asked(target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [(0, Prompt(("w1 w9",))), (1, Prompt(("w2",))), (2, Prompt(("w3", "w9")))]
    gate = OpenGate("w9")
    interviews = held(target, tokenizer, replace(PLAN, answer_tokens=None), iter(prompts), gate=gate)
    assert {interview.number: interview.refused for interview in interviews} == {0: True, 1: False, 2: True}
    assert gate.asked == [["w1 w9"], ["w2"], ["w3", "w9"]]


def test_a_chat_that_the_template_refuses_is_dropped_and_counted(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    odd = "{% if messages[-1]['content'] == 'w9 w9' %}{{ raise_exception('not that') }}{% endif %}"
    tokenizer.chat_template = odd + tokenizer.chat_template
    prompts = [(0, Prompt(("w1 w2",))), (1, Prompt(("w9 w9",))), (2, Prompt(("w3 w4",)))]
    interviews = {i.number: i for i in held(target, tokenizer, replace(PLAN, answer_tokens=None), iter(prompts))}
    rows = [row for row in interviews[1].tally.rows() if row[0] == "room for an answer"]
    assert [row[2] for row in rows] == [{"refused by the chat template": 1}]
    assert not interviews[1].examples
    assert {0, 2} <= set(interviews)
    tokenizer.chat_template = "{{ raise_exception('nothing at all') }}"
    with pytest.raises(TemplateError, match="nothing at all"):
        held(target, tokenizer, replace(PLAN, answer_tokens=None), iter(prompts))


def test_answers_do_not_depend_on_how_many_are_asked_at_once(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    plan = replace(PLAN, answer_tokens=None)
    whole = {i.number: i.examples for i in held(target, tokenizer, plan, iter(given()), slots=7)}
    some = {i.number: i.examples for i in held(target, tokenizer, plan, iter(given()[3:]), slots=2)}
    apart = {i.number: i.examples for i in held(target, tokenizer, plan, iter(given()), slots=64)}  # two decoders
    assert apart == whole
    assert {number: whole[number] for number in some} == some
    assert len({example.about["temperature"] for examples in whole.values() for example in examples}) == 2


def test_greedy_answers_are_the_targets_own(target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    for interview in held(target, tokenizer, replace(PLAN, greedy_share=1.0), iter(given(6, turns=1))):
        (before, answer), *_ = answers_of(interview.examples[0])
        prompt = torch.tensor([before])
        expected = target.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
        assert expected[0].tolist() == before + answer


def test_self_prompting_is_seeded_and_keeps_to_its_budget(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    one, two = held(target, tokenizer), held(target, tokenizer)
    assert [interview.examples for interview in one] == [interview.examples for interview in two]
    other = held(target, tokenizer, replace(PLAN, seed=1))
    assert [interview.examples for interview in one] != [interview.examples for interview in other]
    examples = [example for interview in one for example in interview.examples]
    check(examples, tokenizer)
    assert {example.about["turns"] for example in examples} == {1, 2}
    assert 300 <= sum(example.answer_tokens for example in examples) < 300 + 4 * 48
    assert all(example.about["source"].startswith("self-prompting/") for example in examples)


def test_short_conversations_are_made_up_too(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit is cut short or left out; where nothing would, it is told before anything is asked."""
    begin = SelfPrompter.begin

    def with_passages(self: SelfPrompter, number: int) -> Interview:
        self.passages.extend([Passage(tokenizer.decode(range(20, 60)), 40, "self-prompting/facts")] * 40)
        return begin(self, number)

    monkeypatch.setattr(SelfPrompter, "begin", with_passages)
    with pytest.raises(ValueError, match="--max-length") as caught:
        held(target, tokenizer, replace(PLAN, max_length=40))
    shortest = int(re.findall(r"of (\d+) or more", str(caught.value))[0])
    with pytest.raises(ValueError, match="--max-length"):
        held(target, tokenizer, replace(PLAN, max_length=shortest - 1))
    left_out = 0
    for limit in (shortest, 200, 400):
        for interview in held(target, tokenizer, replace(PLAN, max_length=limit, answer_tokens=600)):
            check(interview.examples, tokenizer)
            assert all(len(example.ids) <= limit for example in interview.examples)
            sampled = interview.tally.to_json().get("sampled user turns", {})
            left_out += sampled.get("dropped", {}).get(f"over {limit} tokens", 0)
    assert left_out


def test_a_plan_names_the_options() -> None:
    with pytest.raises(ValueError, match=r"--temperature.*--greedy-share"):
        Plan(temperature=0.0)
    with pytest.raises(ValueError, match=r"--max-answer.*--max-length"):
        Plan(max_answer=64, max_length=64)


def test_the_hint_is_never_seen_by_the_answer(target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    seen = []

    class Watched(Interviewer):
        def _sample(self, request: Request) -> None:
            seen.append(request.ids)
            super()._sample(request)

    gate: Any = OpenGate()
    interviews = list(Watched(target, tokenizer, replace(PLAN, custom_system_share=0.0), gate, None, slots=4))
    system = tokenizer.convert_tokens_to_ids("system")
    assert any(ids[:2] == [0, system] for ids in seen)
    for interview in interviews:
        assert all(message["role"] != "system" for message in interview.messages)
        assert all(example.ids[:2] != [0, system] for example in interview.examples)


def test_a_docstring_ends_where_it_closes(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["def", '"""'])
    prompter = SelfPrompter(tokenizer, PLAN)
    interview = prompter.begin(0)
    quotes, define = tokenizer.convert_tokens_to_ids(['"""', "def"])
    interview.draft.opening = [define, quotes]
    request = Request([], 9, payload=interview)
    assert not prompter.enough(request, [20, 21])
    assert prompter.enough(request, [20, quotes, 21])
    question = prompter.read(interview, Completion(request, [20, quotes, 21, 22], False))
    assert question is not None
    assert question.text == tokenizer.decode([define, quotes, 20, quotes])
    assert prompter.read(interview, Completion(request, [20, 21], False)) is None
    assert prompter.read(interview, Completion(request, [20, 0, 21, STOP], True)) is None
    assert interview.tally.to_json()["sampled user turns"]["dropped"] == {"did not end": 1, "special token": 1}


def test_a_docstring_that_is_begun_ends_where_it_closes(tokenizer: PreTrainedTokenizerFast) -> None:
    """Openings may hold its first words, and a complete one leaves nothing open."""
    tokenizer.add_tokens(["def", '"""'])
    prompter = SelfPrompter(tokenizer, PLAN)
    interview = prompter.begin(0)
    quotes, define = tokenizer.convert_tokens_to_ids(['"""', "def"])
    request = Request([], 9, payload=interview)
    interview.draft.opening = [define, quotes, 22]
    assert prompter.enough(request, [20, quotes])
    interview.draft.opening = [define, quotes, 22, quotes]
    assert not prompter.enough(request, [20, quotes])


def heard(prompter: SelfPrompter, text: str, finished: bool = True, source: str = "self-prompting/article") -> None:
    prompter.hear(Interview(0, source, 0.0), prompter._ids(text), finished)


def test_passages_are_whole_answers(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of prose, without loops; what was cut short ends with its last whole sentence."""
    prompter = SelfPrompter(tokenizer, replace(PLAN, max_passage=200))
    # No word of this tokenizer ends a sentence, so one is read as a full stop.
    monkeypatch.setattr(prompter, "_text", lambda ids: tokenizer.decode(ids).replace(" w9", "."))
    varied = " ".join(f"w{i % 41 + i // 41}" for i in range(60)).replace("w9", "w8")
    heard(prompter, f"{varied} w9")
    heard(prompter, f"{varied} w9 w1 w2", finished=False)
    assert [passage.text for passage in prompter.passages] == [f"{varied}."] * 2
    heard(prompter, varied, finished=False)  # no sentence ends in it
    heard(prompter, "w1 w2 " * 60)  # a loop
    heard(prompter, "w1 w2 w9")  # short
    heard(prompter, varied, source="self-prompting/code")
    assert len(prompter.passages) == 2


def test_turns_about_passages_are_of_the_wanted_length(tokenizer: PreTrainedTokenizerFast) -> None:
    prompter = SelfPrompter(tokenizer, replace(PLAN, max_passage=400))
    lengths = [*range(50, 400, 10)]
    for number, length in enumerate(lengths):
        source = f"self-prompting/{'article' if number % 2 else 'facts'}"
        prompter.passages.append(Passage(f"p{number} " + "w1 " * (length - 2) + "w2", length, source))
    several, found = 0, []
    for seed in range(200):
        text = prompter._with_passage("before {passage} after", random.Random(seed))
        assert text == prompter._with_passage("before {passage} after", random.Random(seed))
        assert text.startswith("before p")
        assert text.endswith(" w2 after")
        parts = text.removeprefix("before ").removesuffix(" after").split("\n\n")
        numbers = [int(part.split()[0][1:]) for part in parts]
        assert len({number % 2 for number in numbers}) == 1  # of one kind
        total = sum(lengths[number] for number in numbers)
        assert 150 <= total <= 400
        assert len(set(numbers)) == len(numbers)
        several, found = several + (len(parts) > 1), [*found, total]
    assert several > 3
    assert max(found) - min(found) > 200


def test_answers_are_joined_to_longer_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    """None of them is as long as what `max_passage` allows; and where conversations are short, so are the texts."""
    longest: dict[int, int] = {}
    for length in (1536, 500):
        plan = replace(PLAN, max_passage=1000, max_length=length, max_answer=100)
        prompter = SelfPrompter(tokenizer, plan)
        lengths = [80 + 5 * number for number in range(30)]
        for number, tokens in enumerate(lengths):
            prompter.passages.append(Passage(f"p{number}", tokens, "self-prompting/facts"))
        totals = []
        for seed in range(100):
            parts = prompter._with_passage("{passage}", random.Random(seed)).split("\n\n")
            totals.append(sum(lengths[int(part[1:])] for part in parts))
        longest[length] = max(totals)
        assert min(totals) < 300
    assert 700 < longest[1536] <= 1000
    assert longest[500] <= 500 - 100 - 128


def test_second_turns_that_are_complete_come_again(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In different conversations, though no prompt may come twice; and the target samples others by itself."""
    monkeypatch.setattr("hf_eagle3.data.self_prompting.fill", lambda text, rng: "w3" if "?" in text else text)
    repeated: list[bool] = []

    class Watched(OpenGate):
        def prompt(self, turns: Sequence[str], written: str | None = None, may_repeat: bool = False) -> bool:
            if may_repeat:
                repeated.append(written == "")
            return super().prompt(turns, written, may_repeat)

    plan = replace(PLAN, two_turn_share=1.0, answer_tokens=600)
    interviews = held(target, tokenizer, plan, gate=Watched())
    second = sum(interview.answered > 1 for interview in interviews)
    assert all(repeated)
    assert 0.2 * second < len(repeated) < second * 2
    gate = Gate(FilterRules(personal=False), Tally())
    assert gate.prompt(["Please say it in other words."])
    assert gate.prompt(["Please say it in other words."], "", True)
    assert not gate.prompt(["Please say it in other words."], "")


def test_a_target_of_which_nothing_passes_is_given_up(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_eagle3.data.interviewer._GIVE_UP", 20)
    gate: Any = OpenGate()
    gate.prompt = lambda turns, written=None, may_repeat=False: False
    with pytest.raises(ValueError, match="--prompts"):
        held(target, tokenizer, gate=gate)


def test_stop_ids(target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    assert stop_ids(tokenizer, target.generation_config) == [1]
    target.generation_config.eos_token_id = [3, 4]
    assert stop_ids(tokenizer, target.generation_config) == [3, 4]
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="eos_token_id"):
        stop_ids(tokenizer, None)


def test_a_template_that_takes_no_system_message(target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Prompts that bring one are dropped, and self-prompting does without hints."""
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refusal + str(tokenizer.chat_template)
    prompts = [(0, Prompt(("w1",), "w2")), (1, Prompt(("w1",)))]
    first, second = sorted(
        held(target, tokenizer, replace(PLAN, answer_tokens=None), iter(prompts)), key=lambda held: held.number
    )
    assert first.refused
    assert first.tally.to_json()["prompts"]["dropped"] == {"system message, which the template does not take": 1}
    check(second.examples, tokenizer)
    interviews = held(target, tokenizer, replace(PLAN, custom_system_share=1.0, answer_tokens=60))
    check([example for interview in interviews for example in interview.examples], tokenizer)
