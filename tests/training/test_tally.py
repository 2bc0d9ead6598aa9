"""The tally: counts in the order of the steps, that add up and travel as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_eagle3.data.tally import Tally

NAMES = st.sampled_from(["prompts", "answers", "loop", "too short"])
COUNTS = st.lists(st.tuples(st.sampled_from(["kept", "dropped", "noted"]), NAMES, NAMES, st.integers(1, 9)))


def tallied(counts: list[tuple[str, str, str, int]]) -> Tally:
    tally = Tally()
    for verb, step, why, n in counts:
        if verb == "kept":
            tally.kept(step, n)
        else:
            getattr(tally, verb)(step, why, n)
    return tally


def test_steps_stand_in_the_order_of_their_first_count() -> None:
    tally = Tally()
    tally.noted("second in the alphabet", "told")
    tally.dropped("first", "why", 2)
    tally.dropped("first", "because")
    tally.kept("second in the alphabet", 3)
    assert tally.rows() == [
        ("second in the alphabet", 3, {}, {"told": 1}),
        ("first", 0, {"because": 1, "why": 2}, {}),
    ]


@given(COUNTS, COUNTS)
def test_tallies_add_up(one: list[Any], other: list[Any]) -> None:
    merged = tallied(one)
    merged.merge(tallied(other))
    assert merged.rows() == tallied(one + other).rows()


@given(COUNTS)
def test_tallies_travel(counts: list[Any]) -> None:
    tally = tallied(counts)
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))).rows() == tally.rows()


@pytest.mark.parametrize("record", [{"prompts": {"kept": 1}}, {"prompts": 3}, []])
def test_what_is_no_tally_is_refused(record: Any) -> None:
    with pytest.raises(ValueError, match="was given as a tally: each step needs kept, dropped and notes"):
        Tally.from_json(record)
