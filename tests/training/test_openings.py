"""The texts that user turns are made of: every slot can be filled, and they multiply."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from hf_eagle3.data import openings
from hf_eagle3.data.diversity import Sample, of_texts
from hf_eagle3.data.openings import KINDS, LEADS, SYSTEM_PROMPTS, WORDS, fill, pick_kind


def test_every_slot_is_filled() -> None:
    rng = random.Random(0)
    texts = [text for kind in KINDS for text in (kind.hint, *kind.openings, *kind.whole, *kind.follow_ups)]
    for text in [*texts, *LEADS, *SYSTEM_PROMPTS]:
        for _ in range(5):
            found = fill(text, rng)
            assert not re.search(r"\{(a )?\w+\}|\{\d+-\d+\}", found.replace("{passage}", "")), found
            assert "  " not in re.sub(r"\n +", "", found), found


def test_every_kind_can_be_drawn() -> None:
    for kind in KINDS:
        assert bool(kind.openings) == (kind.whole_share < 1) == (kind.max_new_tokens > 0)
        assert bool(kind.whole) == (kind.whole_share > 0)
        assert kind.follow_ups
        assert kind.weight > 0
        assert len(set(kind.whole)) > 0.7 * len(kind.whole)
        if kind.uses_passage:
            assert all("{passage}" in text for text in (*kind.openings, *kind.whole))
    assert {kind.name for kind in KINDS if kind.uses_passage} == {"summary", "passage"}
    without = {pick_kind(random.Random(seed), passages=False).name for seed in range(600)}
    assert without == {kind.name for kind in KINDS if not kind.uses_passage}


def test_no_word_stands_twice_or_is_empty() -> None:
    weighted = {"topic", "audience", "constraint", "foreign"}  # by repeating some
    weighted |= {"write", "explain", "summarize", "translate", "implement"}
    for name, words in WORDS.items():
        assert all(word == word.strip() and word for word in words), name
        twice = [word for word, count in Counter(words).items() if count > 1]
        assert not twice or name in weighted, (name, twice)


def test_a_third_to_two_thirds_are_complete() -> None:
    rng = random.Random(0)
    drawn = [pick_kind(rng, passages=True).draw(rng) for _ in range(3000)]
    share = sum(whole for _, whole in drawn) / len(drawn)
    expected = sum(kind.weight * kind.whole_share for kind in KINDS) / sum(kind.weight for kind in KINDS)
    assert share == pytest.approx(expected, abs=0.04)
    assert 0.33 < expected < 0.66


def test_complete_texts_multiply() -> None:
    """Hundreds of them hold thousands of different words, and hardly any comes twice."""
    rng = random.Random(0)
    drawn = (pick_kind(rng, passages=False).draw(rng) for _ in range(2500))
    texts = [text for text, whole in drawn if whole][:1000]
    assert len(texts) == 1000
    found = of_texts(texts, Sample())
    assert len(set(texts)) > 980
    assert found["near_duplicates"] < 0.12
    assert found["content_words"] > 900
    assert found["shared_5_words"] < 0.45


def test_a_numbered_slot_is_the_same_word_and_another_than_the_others() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        first, second, again, capital = fill("{animal1}|{animal2}|{animal1}|{Animal1}", rng).split("|")
        assert first == again != second
        assert capital == first[:1].upper() + first[1:]
        low, high = map(int, fill("{3-5}|{10-10}", rng).split("|"))
        assert low in (3, 4, 5)
        assert high == 10
    assert fill("{passage}", random.Random(0)) == "{passage}"
    assert fill('{"a": {}, {x y}}', random.Random(0)) == '{"a": {}, {x y}}'


def test_articles(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {"owl": "an", "fox": "a", "honest man": "an", "unicorn": "a", "hour": "an", "one": "a"}
    for word, article in cases.items():
        monkeypatch.setitem(WORDS, "animal", (word,))
        assert fill("{a animal}, {a animal1}", random.Random(0)) == f"{article} {word}, {article} {word}"


def test_slots_that_lead_back_to_themselves_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORDS, "animal", ("a {animal}",))
    with pytest.raises(RecursionError, match=r"words\.yaml"):
        fill("{animal}", random.Random(0))
    with pytest.raises(KeyError):
        fill("{nothing_of_that_name}", random.Random(0))


def test_the_digest_is_of_both_files() -> None:
    assert re.fullmatch("[0-9a-f]{16}", openings.DIGEST)
    assert openings._read()[-1] == openings.DIGEST
