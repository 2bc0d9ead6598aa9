"""The gate: verdicts on prompts and answers, and what it tells the tally of them."""

from __future__ import annotations

from typing import Any

import pytest

from hf_eagle3.data.filters import FilterRules, Gate, loops, repetition
from hf_eagle3.data.overlap import Overlap
from hf_eagle3.data.tally import Tally

LONG = "Please explain in simple words how a steam engine turns heat into motion and why it needs so much water"
UNNAMED = "names not looked for (no model)"  # none is installed for the tests


def gate(**rules: Any) -> tuple[Gate, Tally]:
    tally = Tally()
    return Gate(FilterRules(**{"personal": False, **rules}), tally), tally


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hi", "too short"), (" \n ", "too short"), ("", "too short"), ("word " * 4000, "too long"),
        ("What is this \x07 sign?", "control characters"), ("Half \ud83d of a smile", "broken characters"),
        ("A broken \ufffd sign here", "broken characters"), ("Explain " + "x" * 90 + "y", "gibberish"),
        ("aaaaaaaa aaaaaaaaa aaaa", "gibberish"), ("?!!!!!!!!!!!!!!!!!!!", "gibberish"),
        ("the cat sat on the mat " * 6, "repetition"), ("我今天很高兴！" * 6, "repetition"),
    ],
)  # fmt: skip
def test_unfit_prompts(text: str, reason: str) -> None:
    door, tally = gate()
    assert not door.prompt([text])
    assert tally.rows() == [("prompts", 0, {reason: 1}, {})]


@pytest.mark.parametrize(
    "text",
    [
        "What is 1000000000 + 10000000000?",
        "def add(a, b):\n\treturn a + b\n\nWhat does it do?",
        "| a | b |\n|---|---|\n| 1 | 2 |\n\nTurn this table into prose.",
        "Was macht ein Donaudampfschifffahrtselektrizitätenhauptbetriebswerk?",
        "See https://example.org/a/very/long/path/" + "abc/" * 6 + " and sum it up.",
        "Smile 🙂 and 🫠 and say why",
    ],
)
def test_ordinary_prompts_pass(text: str) -> None:
    assert gate()[0].prompt([text])


@pytest.mark.parametrize(
    "text",
    [
        "Erkläre mir bitte die Dampfmaschine",
        "什么是黑洞？",
        "Объясни паровую машину",
        "भाप इंजन कैसे काम करता है?",
        "เครื่องจักรไอน้ำทำงานอย่างไร",
    ],
)
def test_every_script_passes_unless_asked(text: str) -> None:
    assert gate()[0].prompt([text])
    door, tally = gate(max_foreign=0.01)
    assert not door.prompt([text])
    assert tally.rows()[0][2] == {"foreign characters": 1}


def test_sums_pass_unless_letters_are_asked_for() -> None:
    assert gate()[0].prompt(["12 * (3 + 4) = ?"])
    door, tally = gate(max_non_letters=0.5)
    assert not door.prompt(["12 * (3 + 4) = ?"])
    assert door.prompt(["What is 12 times 7?"])
    assert tally.rows() == [("prompts", 1, {"few letters": 1}, {})]


def test_all_turns_are_judged_together() -> None:
    door, tally = gate()
    assert door.prompt(["Tell me of bees.", "And?"])
    assert door.prompt(["Tell me of bees.", "And of wasps?"])
    assert not door.prompt(["Tell me of bees.", "And?"])
    assert tally.rows() == [("prompts", 2, {"duplicate": 1}, {})]


def test_near_duplicates_and_prefixes_are_counted() -> None:
    door, tally = gate(per_prefix=1)
    assert door.prompt([LONG])
    assert not door.prompt([LONG + " at all"])
    assert door.prompt(["How can I learn to juggle three balls?"], "learn to juggle three balls?")
    assert not door.prompt(["I want to learn to juggle three balls!"], "learn to juggle three balls!")
    assert tally.rows() == [("prompts", 2, {"begins like others": 1, "near duplicate": 1}, {})]


def test_what_is_remembered_is_not_counted() -> None:
    door, tally = gate()
    door.remember([LONG])
    assert tally.rows() == []
    assert not door.prompt([LONG])


def test_a_refused_prompt_is_not_remembered() -> None:
    overlap = Overlap()
    overlap.add(LONG, "q.jsonl")
    door = Gate(FilterRules(personal=False), Tally(), overlap)
    assert not door.prompt([LONG])
    door.exclude = None
    assert door.prompt([LONG])


def test_a_loop_passes_only_where_it_is_wanted() -> None:
    door, tally = gate()
    ids = [1, 2, 3] * 40
    assert not door.answer("so it goes", ids)
    assert door.answer("so it goes", ids, keep_loop=True)
    assert tally.rows() == [("answers", 1, {"loop": 1}, {})]
    assert loops(ids)
    assert not loops(list(range(100)))
    assert not loops(ids[:63])
    assert repetition([1, 2]) == 0.0
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_personal_data_is_dropped_and_audited() -> None:
    tally = Tally()
    door = Gate(FilterRules(), tally)
    assert not door.prompt(["Write to anna@example.org and say hello"])
    assert door.prompt(["What is 12 times 30 plus 4?"])
    assert not door.answer("Ask +49 30 901820 or anna@example.org", [1, 2])
    assert tally.rows() == [
        ("prompts", 1, {"personal data": 1}, {UNNAMED: 2, "with EMAIL_ADDRESS": 1}),
        ("answers", 0, {"personal data": 1}, {UNNAMED: 1, "with EMAIL_ADDRESS": 1, "with PHONE_NUMBER": 1}),
    ]


def test_evaluation_questions_pass_neither_as_prompt_nor_as_answer() -> None:
    overlap, tally = Overlap(), Tally()
    overlap.add(LONG, "q.jsonl")
    door = Gate(FilterRules(personal=False), tally, overlap)
    assert not door.prompt([f"Hello! {LONG}, please."])
    assert not door.answer(f"You asked: {LONG}", [1, 2])
    assert door.prompt(["Please explain in simple words how a diesel works"])
    noted = {"sharing words with q.jsonl": 1}
    assert tally.rows() == [
        ("prompts", 1, {"of an evaluation file": 1}, noted), ("answers", 0, {"of an evaluation file": 1}, noted)
    ]  # fmt: skip
    assert overlap.hits == {"q.jsonl": 2}


def test_short_evaluation_questions_are_whole_turns_of_the_user() -> None:
    overlap, tally = Overlap(), Tally()
    overlap.add("And why is that?", "q.jsonl")
    door = Gate(FilterRules(personal=False), tally, overlap)
    assert door.prompt(["Explain what rain is, and why is that so?"])
    assert not door.prompt(["Explain what rain is.", "and why is that"])
    assert door.answer("And why is that?", [1, 2])
    assert overlap.hits == {"q.jsonl": 1}


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"repetition": 1.5}, "repetition is 1.5"), ({"max_foreign": -0.1}, "max_foreign is -0.1"),
        ({"shortest": 10, "longest": 9}, "10 to 9"), ({"near_duplicates": 3}, "near_duplicates is 3"),
    ],
)  # fmt: skip
def test_impossible_rules_are_refused(rules: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        FilterRules(**rules)
