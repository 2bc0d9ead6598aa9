"""The gate, its register of duplicates, the evaluation questions it knows, and the tally of its verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_eagle3.data.duplicates import Duplicates
from hf_eagle3.data.filters import FilterRules, Gate, loops, repetition
from hf_eagle3.data.overlap import Overlap, find_overlaps
from hf_eagle3.data.tally import Tally

LONG = "Please explain in simple words how a steam engine turns heat into motion and why it needs so much water"


def gate(**rules: object) -> tuple[Gate, Tally]:
    tally = Tally()
    return Gate(FilterRules(**{"personal": False, **rules}), tally), tally


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hi", "too short"), ("word " * 4000, "too long"), ("What is this \x07 sign?", "control characters"),
        ("A broken \ufffd sign here", "broken characters"), ("Explain " + "x" * 70 + "y", "gibberish"),
        ("aaaaaaaa aaaaaaaaa aaaa", "gibberish"), ("the cat sat on the mat " * 6, "repetition"),
    ],
)  # fmt: skip
def test_unfit_prompts(text: str, reason: str) -> None:
    door, tally = gate()
    assert not door.prompt([text])
    assert tally.rows() == [("prompts", 0, {reason: 1}, {})]


@pytest.mark.parametrize("text", ["Erkläre mir die Dampfmaschine", "请解释蒸汽机的工作原理", "Объясни паровую машину"])
def test_every_script_passes_unless_asked(text: str) -> None:
    assert gate()[0].prompt([text])
    assert gate(max_foreign=0.01)[0].prompt([text]) is False


def test_duplicates_exact_near_and_alike() -> None:
    seen = Duplicates(per_prefix=2)
    assert seen.seen(LONG) is None
    assert seen.seen(LONG.upper() + "!") == "duplicate"
    assert seen.seen(LONG + " at all") == "near duplicate"
    assert Duplicates(near=0).seen(LONG + " at all") is None
    for number in range(2):
        assert seen.seen(f"Opening {number}: tell me a story about {number}", "tell me a story about it") is None
    assert seen.seen("Another: tell me a story about cats", "tell me a story about cats") == "begins like others"


def test_what_is_remembered_is_not_counted() -> None:
    door, tally = gate()
    door.remember([LONG])
    assert tally.rows() == []
    assert not door.prompt([LONG])


def test_a_loop_passes_only_where_it_is_wanted() -> None:
    door, tally = gate()
    ids = [1, 2, 3] * 40
    assert not door.answer("so it goes", ids)
    assert door.answer("so it goes", ids, keep_loop=True)
    assert tally.rows() == [("answers", 1, {"loop": 1}, {})]
    assert loops(ids)
    assert not loops(list(range(100)))
    assert repetition([1, 2]) == 0.0


def test_personal_data_is_dropped_and_audited() -> None:
    tally = Tally()
    door = Gate(FilterRules(), tally)
    assert not door.prompt(["Write to anna@example.org and say hello"])
    assert door.prompt(["What is 12 times 30 plus 4?"])
    assert tally.rows() == [("prompts", 1, {"personal data": 1}, {"with EMAIL_ADDRESS": 1})]


def test_questions_are_excluded(tmp_path: Path) -> None:
    question = "A shop sells 12 red pens for 3 dollars and 7 blue pens for 2 dollars each"
    (tmp_path / "maths.jsonl").write_text(json.dumps({"turns": [question, "And then?"]}) + "\n")
    (tmp_path / "short.txt").write_text("Who wrote Faust?\n")
    overlap = Overlap.from_questions([tmp_path])
    assert overlap.hit("Today a SHOP sells 12 red pens, for 3 dollars: how many?") == "maths.jsonl"
    assert overlap.hit("A shop sells 12 red pens") is None
    assert overlap.hit("Tell me, who wrote Faust?") == "short.txt"
    assert overlap.hits == {"maths.jsonl": 1, "short.txt": 1}
    assert find_overlaps(["nothing", "who wrote faust"], overlap) == [(1, "short.txt")]
    tally = Tally()
    assert not Gate(FilterRules(personal=False), tally, overlap).prompt([question])
    assert tally.rows()[0][2] == {"of an evaluation file": 1}


@pytest.mark.parametrize(("line", "told"), [("{", "not JSON"), ('{"other": 1}', "holds no question")])
def test_unreadable_questions_are_refused(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "q.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=told):
        Overlap.from_questions([tmp_path])
    with pytest.raises(OSError, match="no question files"):
        Overlap.from_questions([tmp_path / "nowhere"])


def test_tallies_add_up_and_travel() -> None:
    one, other = Tally(), Tally()
    one.kept("prompts")
    other.kept("prompts", 2)
    other.dropped("answers", "loop")
    one.merge(Tally.from_json(json.loads(json.dumps(other.to_json()))))
    assert one.rows() == [("prompts", 3, {}, {}), ("answers", 0, {"loop": 1}, {})]
