"""What the table of tiles promises for any call, and what becomes of a file that overrules it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subject import module

tuning = module("tuning")
_CHIPS = st.sampled_from(
    [("sm_80", 108), ("sm_86", 84), ("sm_89", 128), ("sm_90", 132), ("sm_100", 148), ("sm_75", 40)]
)
_ENTRY = {
    "itemsize": 2,
    "width": 128,
    "prefix": {"rows": 32, "keys": 16, "warps": 4, "stages": 1},
    "tree": {"rows": 16, "keys": 16, "warps": 4, "stages": 1},
}


@pytest.fixture(autouse=True)
def _no_file(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(tuning.TUNING_FILE, raising=False)
    tuning._tuned.cache_clear()
    yield
    tuning._tuned.cache_clear()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    _CHIPS,
    st.sampled_from([2, 4]),
    st.sampled_from([16, 32, 64, 128, 256]),
    st.integers(1, 256 * 16),
    st.integers(1, 64 * 32),
    st.integers(0, 2**20),
)
def test_any_call_gets_tiles_that_triton_takes(
    chip: tuple[str, int], itemsize: int, width: int, rows: int, heads: int, keys: int
) -> None:
    plan = tuning.plan(*chip, itemsize, width, rows, heads, keys)
    for tiles in (plan.prefix, plan.tree):
        for number in (tiles.rows, tiles.keys, tiles.warps):
            assert number & (number - 1) == 0
        assert min(tiles.rows, tiles.keys) >= 16, "a product of matrices needs 16"
        assert 1 <= tiles.warps <= 8
        assert tiles.stages >= 1
    assert plan.tree.keys in (16, 32), "a tile of tree keys lies within one ancestor word"
    assert 1 <= plan.splits <= 65535
    assert plan.splits == 1 or plan.splits * 128 <= keys, "pieces so short cost more than they save"
    tiles_of_rows = -(-rows // plan.prefix.rows)
    assert plan.splits == 1 or tiles_of_rows * heads * plan.splits <= 8 * chip[1], "more waves than could help"


def test_long_prefixes_of_one_sequence_fill_the_chip() -> None:
    plan = tuning.plan("sm_90", 132, 2, 128, 240, 8, 32768)
    assert -(-240 // plan.prefix.rows) * 8 * plan.splits >= 100


def _overruled(entry: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    path.write_text(json.dumps({"sm_90": [entry]}), encoding="utf-8")
    monkeypatch.setenv(tuning.TUNING_FILE, str(path))
    return tuning.plan("sm_90", 132, 2, 128, 240, 8, 32768)


def test_a_file_overrules_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _overruled(_ENTRY, tmp_path / "tuning.json", monkeypatch)
    assert plan.prefix == tuning.Tiles(32, 16, 4, 1)
    assert plan.tree == tuning.Tiles(16, 16, 4, 1)
    assert tuning.plan("sm_90", 132, 4, 128, 240, 8, 32768).prefix != plan.prefix, "it has no entry for float32"


_WRONG = {
    "tree tiles beyond a word": _ENTRY | {"tree": _ENTRY["tree"] | {"keys": 64}},
    "tiles of no power of two": _ENTRY | {"prefix": _ENTRY["prefix"] | {"rows": 48}},
    "tiles too small": _ENTRY | {"prefix": _ENTRY["prefix"] | {"keys": 8}},
    "a word for a number": _ENTRY | {"prefix": _ENTRY["prefix"] | {"rows": "many"}},
    "a field unknown": _ENTRY | {"prefix": _ENTRY["prefix"] | {"blocks": 1}},
    "a field missing": {name: given for name, given in _ENTRY.items() if name != "tree"},
}


@pytest.mark.parametrize("entry", _WRONG.values(), ids=_WRONG.keys())
def test_a_file_that_cannot_be_right_is_refused(
    entry: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=tuning.TUNING_FILE) as caught:
        _overruled(entry, tmp_path / "tuning.json", monkeypatch)
    assert "\n" not in str(caught.value)


def test_a_variable_set_to_nothing_names_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tuning.plan("sm_90", 132, 2, 128, 240, 8, 32768)
    monkeypatch.setenv(tuning.TUNING_FILE, "")
    assert tuning.plan("sm_90", 132, 2, 128, 240, 8, 32768) == before


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning.TUNING_FILE, str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=tuning.TUNING_FILE):
        tuning.plan("sm_90", 132, 2, 128, 240, 8, 32768)
