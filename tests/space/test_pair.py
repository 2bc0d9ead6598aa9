"""Heads that visitors name: where their target is found, and the sentence where something is missing."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pair as pairs
import pytest
import torch
from pair import Pairs, head_config, named_target, weight_bytes

SPECULATORS = {"speculators_config": {"verifier": {"name_or_path": "a/target"}}}


@pytest.fixture
def loaded(pair_folders: Any) -> Pairs:
    return Pairs(1e9, torch.float32, "cpu")


def _head(folder: Path, card: str | None = None, **config: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "eagle3", **config}))
    if card is not None:
        (folder / "README.md").write_text(card)
    return str(folder)


def test_a_pair_is_loaded_once(loaded: Pairs, pair_folders: Any) -> None:
    first = loaded.get(pair_folders.head, pair_folders.target)
    assert loaded.get(f" {pair_folders.head} ", pair_folders.target) is first
    assert not first.model.training
    assert not first.head.training
    assert first.model.dtype == first.head.dtype == torch.float32


@pytest.mark.parametrize(
    ("card", "config", "expected"),
    [
        ("---\nbase_model: a/target\n---\n", {}, "a/target"),
        ("---\nbase_model:\n- a/target\n---\n", {}, "a/target"),
        ("---\nbase_model: a/other\n---\n", SPECULATORS, "a/target"),
    ],
)
def test_a_head_names_its_target(tmp_path: Path, card: str, config: dict[str, Any], expected: str) -> None:
    head = _head(tmp_path / "head", card, **config)
    assert named_target(head, head_config(head)) == expected


@pytest.mark.parametrize("card", [None, "no front matter", "---\nbase_model:\n- one/a\n- two/b\n---\n"])
def test_a_head_that_names_none_or_several_is_told(tmp_path: Path, card: str | None) -> None:
    head = _head(tmp_path / "head", card)
    with pytest.raises(ValueError, match="names no target, neither in its config nor on its card"):
        named_target(head, head_config(head))


@pytest.mark.parametrize("head", ["nobody/no-such-head", "/no/such/folder", "not an id at all"])
def test_no_such_head(loaded: Pairs, head: str) -> None:
    with pytest.raises(OSError, match=f"No head could be read from {head!r}: give the Hub id of one"):
        loaded.get(head)


def test_no_such_target(loaded: Pairs, pair_folders: Any) -> None:
    with pytest.raises(OSError, match="No target could be read from 'nobody/no-such-target': give its Hub id"):
        loaded.get(pair_folders.head, "nobody/no-such-target")


def test_a_target_that_is_too_large_is_refused_before_it_is_loaded(pair_folders: Any) -> None:
    small = Pairs(1000, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"0\.0 GB of weights and this Space loads at most 0\.0 GB: duplicate it"):
        small.get(pair_folders.head, pair_folders.target)


@pytest.mark.parametrize("size", [900, 1100])
def test_sizes_on_the_hub_are_asked_before_a_download(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    files = [
        SimpleNamespace(rfilename="model.safetensors", size=size),
        SimpleNamespace(rfilename="x/y.bin", size=9**9),
    ]
    answer = SimpleNamespace(siblings=files)
    monkeypatch.setattr(pairs, "HfApi", lambda token: SimpleNamespace(model_info=lambda *_, **__: answer))
    small = Pairs(1000, torch.float32, "cpu")
    with nullcontext() if size < 1000 else pytest.raises(ValueError, match=r"a/model has 0\.0 GB of weights"):
        small._check_size("a/model")


def test_weights_are_counted_in_one_format(tmp_path: Path) -> None:
    for name, size in (("a.safetensors", 30), ("b.safetensors", 10), ("pytorch_model.bin", 80), ("x.json", 7)):
        (tmp_path / name).write_bytes(b"0" * size)
    assert weight_bytes(str(tmp_path)) == 40


def test_a_pair_that_does_not_belong_together_is_told(loaded: Pairs, pair_folders: Any) -> None:
    from hf_eagle3 import embedded

    with pytest.raises(ValueError, match="The head was made for a target of 49152 tokens but the target has 64"):
        loaded.get(str(embedded.head_folder()), pair_folders.target)


def test_the_embedded_head_takes_no_other_target(loaded: Pairs) -> None:
    with pytest.raises(ValueError, match="leave the target empty"):
        loaded.get("", "another/target")


def test_only_the_last_pairs_are_kept_and_the_embedded_one_always(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Pairs(1e9, torch.float32, "cpu")
    monkeypatch.setattr(loaded, "_load", lambda head, target: (head, target))
    embedded = loaded.get("")
    for number in range(4):
        loaded.get(f"head/{number}")
    assert list(loaded._loaded) == [(pairs.EMBEDDED, ""), ("head/3", "")]
    assert loaded.get("") is embedded


def test_on_a_space_visitors_open_no_folders_of_the_server(
    loaded: Pairs, pair_folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPACE_ID", "owner/demo")
    with pytest.raises(ValueError, match="is a folder of this server"):
        loaded.get(pair_folders.head, pair_folders.target)
