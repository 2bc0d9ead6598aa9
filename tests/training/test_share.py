"""Shares of the training data: nested, of the size asked for, and everything else that of the whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_eagle3.data.feature_store import FeatureStore, write_features
from hf_eagle3.data.features import TargetStates
from hf_eagle3.training.recipe import read_recipe
from hf_eagle3.training.run import Material, train_head
from hf_eagle3.training.share import nested_share

SHARES = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]


@given(answers=st.lists(st.integers(1, 300), min_size=1, max_size=200), seed=st.integers(0, 9))
def test_each_lies_within_the_next(answers: list[int], seed: int) -> None:
    parts = [nested_share(answers, share, seed) for share in SHARES]
    for share, part, larger in zip(SHARES, parts, [*parts[1:], list(range(len(answers)))], strict=True):
        assert part == sorted(set(part))
        assert part
        assert set(part) <= set(larger)
        if len(part) > 1:
            assert abs(sum(answers[index] for index in part) - share * sum(answers)) <= max(answers) / 2 + 1e-6
    assert parts[-1] == list(range(len(answers)))


def test_another_seed_draws_others() -> None:
    assert nested_share([5] * 100, 0.25, 0) == nested_share([5] * 100, 0.25, 0)
    assert len(nested_share([5] * 100, 0.25, 0)) == 25
    assert nested_share([5] * 100, 0.25, 0) != nested_share([5] * 100, 0.25, 1)


def test_a_subset_is_a_view(target: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_features(TargetStates(target, [2, 4, 5]), rows, tmp_path, shard_tokens=100)
    store = FeatureStore(tmp_path, [2, 4, 5])
    part = store.subset([3, 20, 11])
    assert (len(part), len(store)) == (3, 24)
    for place, index in enumerate((3, 20, 11)):
        assert part.length(place) == len(rows[index]["input_ids"])
        assert part[place].ids.tolist() == rows[index]["input_ids"]
        assert torch.equal(part[place].features, store[index].features)
    assert torch.equal(part.mass, store.mass)


@pytest.fixture
def data(rows: list[dict[str, Any]], tmp_path: Path) -> str:
    from datasets import Dataset, DatasetDict

    splits = {"train": Dataset.from_list(rows[4:]), "validation": Dataset.from_list(rows[:4])}
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    return str(tmp_path / "data")


@pytest.mark.parametrize("features", ["cache", "online"])
def test_a_run_on_a_share(target: Any, data: str, tmp_path: Path, features: str) -> None:
    """It learns from those conversations alone, with the vocabulary of all."""
    heads = {}
    for share in (None, 0.25):
        recipe = read_recipe(None, {
            "data": data, "features": features, "max_steps": 2, "eval_steps": 2, "save_steps": 2, "bf16": False,
            "max_batch_tokens": 64, "eval_prompts": 1, "eval_new_tokens": 4, "draft_vocab_size": 20, "seed": 5,
            "disable_tqdm": True, "train_share": share,
        })  # fmt: skip
        folder = tmp_path / f"{features}-{share}"
        train_head(recipe, target, recipe.training_arguments(folder))
        heads[share] = json.loads((folder / "training.json").read_text())
        material = Material(recipe, TargetStates(target, [2, 4, 5]), folder, seed=5)
        answers = [sum(mask) for mask in material.rows["train"]["loss_mask"]]
        kept = nested_share(answers, share or 1, 5)
        assert heads[share]["conversations"]["train"] == len(kept) == len(material.train)
        taken = [row.ids.tolist() if features == "cache" else row["input_ids"] for row in material.train]
        assert taken == [material.rows["train"][index]["input_ids"] for index in kept]
    assert heads[0.25]["conversations"]["train"] < 8
    assert heads[0.25]["draft_vocabulary_coverage"] == heads[None]["draft_vocabulary_coverage"]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"train_share is .* above 0 and up to 1"):
        read_recipe(None, {"data": "data", "train_share": share})
