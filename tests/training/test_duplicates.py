"""The register of prompts: exact and near duplicates, too many that begin alike, and the words all that rests on."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_eagle3.data.duplicates import Duplicates
from hf_eagle3.data.words import terms_of, words_of

LONG = "Please explain in simple words how a steam engine turns heat into motion and why it needs so much water"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don’t  stop:\tsnake_case 3.5!", ["don", "t", "stop", "snake_case", "3", "5"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("cafe\u0301 café ＡＢ１", ["café", "café", "ab1"]),
        ("请解释GPU", ["请", "解", "释", "gpu"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("Объясни паровую", ["объясни", "паровую"]),
    ],
)
def test_words_of_every_script(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_operators_are_terms() -> None:
    assert terms_of("3 + 2, please") == ["3", "+", "2", "please"]


@pytest.mark.parametrize("again", [LONG.upper() + "!", f'"{LONG}."', LONG.replace(" ", "  \n")])
def test_exact_duplicates(again: str) -> None:
    seen = Duplicates(near=0)
    assert seen.seen(LONG) is None
    assert seen.seen(again) == "duplicate"


@pytest.mark.parametrize("others", [("What is 3+2?", "What is 3-2?"), ("a < b", "a > b"), ("🙂🙂🙂", "🙃🙃🙃")])
def test_signs_tell_texts_apart(others: tuple[str, str]) -> None:
    seen = Duplicates()
    assert [seen.seen(text) for text in others] == [None, None]


def test_near_duplicates() -> None:
    seen = Duplicates()
    assert seen.seen(LONG) is None
    assert seen.seen(LONG + " at all") == "near duplicate"  # 18 of 20 triples are the same
    assert seen.seen(LONG.replace("engine", "turbine").replace("water", "coal")) is None  # 14 of 22
    assert Duplicates(near=0).seen(LONG + " at all") is None


def test_near_duplicates_without_spaces() -> None:
    seen = Duplicates()
    chinese = "请用简单的语言解释蒸汽机是如何把热量变成运动的以及它为什么需要那么多的水"
    assert seen.seen(chinese) is None
    assert seen.seen(chinese + "呢") == "near duplicate"
    assert seen.seen("请解释一下黑洞是怎么形成的以及光为什么不能从里面逃出来") is None


def test_of_1_only_the_same_prompts_are_duplicates() -> None:
    """A similarity of 0.99 is estimated as 1 now and then."""
    seen = Duplicates(near=1)
    assert seen.seen(LONG) is None
    assert seen.seen(LONG.replace(" ", ", ")) is None
    assert seen.seen(f"{LONG}!") == "duplicate"


@pytest.mark.parametrize("near", [1e-9, 0.001, 0.96, 0.99, 0.995, 0.9999])
def test_every_share_is_a_threshold(near: float) -> None:
    seen = Duplicates(near=near)
    assert seen.seen(LONG) is None
    assert seen.seen(LONG.replace(" ", ", ")) == "near duplicate"  # other signs, the same words


@pytest.mark.parametrize("near", [0.6, 0.7, 0.8, 0.9])
def test_the_threshold_is_kept_to(near: float) -> None:
    """Whatever the index takes for a candidate: at 0.9 it names a pair whose similarity is 0.73."""
    words = [f"w{i}" for i in range(60)]
    for changed in range(1, 10):  # each apart from the others, in three triples of 58
        other = [f"x{i}" if i % 5 == 2 and i // 5 < changed else word for i, word in enumerate(words)]
        similarity = (58 - 3 * changed) / (58 + 3 * changed)
        seen = Duplicates(near=near)
        seen.seen(" ".join(words))
        found = seen.seen(" ".join(other)) == "near duplicate"
        assert abs(similarity - near) < 0.1 or found == (similarity > near), (changed, similarity)


def test_too_many_that_go_on_alike() -> None:
    seen = Duplicates(near=0, per_prefix=2)
    for number in range(2):
        assert seen.seen(f"Opening {number}: tell me a story about {number}", "Tell me a story about it") is None
    assert seen.seen("Another: tell me a story about cats", "tell me a STORY about cats") == "begins like others"
    assert seen.seen("Another: tell me of a story", "tell me of a story") is None
    assert seen.seen("Tell me a story about dogs") is None  # a prompt from elsewhere went on from nothing


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(min_size=1, max_size=60), max_size=8))
def test_verdicts_are_the_same_again_and_nothing_passes_twice(texts: list[str]) -> None:
    one, other = Duplicates(), Duplicates()
    assert [one.seen(text) for text in texts] == [other.seen(text) for text in texts]
    assert all(one.seen(text) for text in texts)


@pytest.mark.parametrize(("near", "per_prefix", "told"), [(1.2, 4, "share from 0 to 1"), (0.8, 0, "at least 1")])
def test_impossible_thresholds_are_refused(near: float, per_prefix: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Duplicates(near, per_prefix)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ImportError, match=r"hf-eagle3\[train\]"):
        Duplicates()
    Duplicates(near=0)
