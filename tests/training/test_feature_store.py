"""The folder of features: every row back unchanged, resumed, verified, refused where it does not fit."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hf_eagle3.data import feature_store
from hf_eagle3.data.feature_store import FeatureStore, write_features
from hf_eagle3.data.features import Example, LogitRule, Row, TargetStates

BOUNDARIES = [2, 4, 5]


class CountingStates:
    """Stands in for a target: states that are a function of the ids, and a count of the rows computed."""

    def __init__(self) -> None:
        config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(to_json_string=lambda use_diff: "x"))
        no_weights = nn.Module().named_parameters
        self.model: Any = SimpleNamespace(dtype=torch.float32, config=config, named_parameters=no_weights)
        self.boundaries, self.rows = BOUNDARIES, 0
        self.logit_rule = LogitRule(torch.zeros(32, 4))

    def examples(self, rows: list[Row]) -> list[Example]:
        self.rows += len(rows)
        made = []
        for ids, mask in rows:
            tokens = torch.tensor(ids)
            states = tokens[:, None].float() + torch.arange(4)
            made.append(Example(tokens, torch.tensor(mask), states.repeat(1, 3), states, tokens - 1))
        return made

    def mass_of(self, example: Example) -> torch.Tensor:
        return torch.bincount(example.ids, minlength=32).float()


def some_rows(lengths: list[int]) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(0, 32, (length,), generator=generator).tolist(),
            "loss_mask": (torch.rand(length, generator=generator) < 0.5).tolist(),
        }
        for length in lengths
    ]


def assert_holds(store: FeatureStore, rows: list[dict[str, Any]]) -> None:
    assert len(store) == len(rows)
    for index, row in enumerate(rows):
        example = store[index]
        assert store.length(index) == len(row["input_ids"])
        assert example.ids.tolist() == row["input_ids"]
        assert example.answers.tolist() == row["loss_mask"]
        assert example.last_hidden[:, 0].tolist() == row["input_ids"]
        assert example.features.shape == (len(row["input_ids"]), 12)
        assert example.best.tolist() == [token - 1 for token in row["input_ids"]]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100))
def test_every_row_comes_back(tmp_path: Path, lengths: list[int], shard_tokens: int) -> None:
    shutil.rmtree(tmp_path)
    rows = some_rows(lengths)
    write_features(CountingStates(), rows, tmp_path, shard_tokens=shard_tokens)
    store = FeatureStore(tmp_path, BOUNDARIES)
    assert_holds(store, rows)
    assert store.mass.sum() == sum(lengths)


def test_the_target_itself(tmp_path: Path, target: Any) -> None:
    """What is read back is what the target says, in the dtype asked for; a worker process can read it too."""
    rows, states = some_rows([12, 7, 20, 5]), TargetStates(target, BOUNDARIES)
    expected = states.examples([(row["input_ids"], row["loss_mask"]) for row in rows])
    write_features(states, rows, tmp_path / "whole", shard_tokens=16)
    write_features(states, rows, tmp_path / "half", dtype="bfloat16")
    whole, half = FeatureStore(tmp_path / "whole", BOUNDARIES), FeatureStore(tmp_path / "half", BOUNDARIES)
    elsewhere = pickle.loads(pickle.dumps(whole))
    for index, example in enumerate(expected):
        for store in (whole, elsewhere):
            torch.testing.assert_close(store[index].features, example.features, atol=1e-5, rtol=1e-5)
            assert torch.equal(store[index].best, example.best)
        assert half[index].features.dtype == torch.bfloat16
        torch.testing.assert_close(half[index].last_hidden.float(), example.last_hidden, atol=0.02, rtol=0.01)
    mass = sum(states.mass_of(example) for example in expected)
    torch.testing.assert_close(whole.mass, mass, atol=1e-4, rtol=1e-4)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up: one sentence, the earlier shards stay, and only the rest is computed again."""
    rows, states, real = some_rows([10] * 8), CountingStates(), feature_store.save_file
    calls = []

    def full(tensors: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half a fi")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(feature_store, "save_file", full)
    with pytest.raises(OSError, match=r"could not be written .*No space left.* run the same command again"):
        write_features(states, rows, tmp_path, shard_tokens=20)
    assert not list(tmp_path.glob(".features*"))
    with pytest.raises(OSError, match="not complete"):
        FeatureStore(tmp_path, BOUNDARIES)
    write_features(states, rows, tmp_path, shard_tokens=20)
    assert states.rows == 10  # 2 + 2 kept, 2 lost on the way, 4 written now
    assert_holds(FeatureStore(tmp_path, BOUNDARIES), rows)


def test_what_no_index_names_is_swept_away(tmp_path: Path) -> None:
    rows = some_rows([10] * 4)
    tmp_path.joinpath("features-00001.safetensors").write_bytes(b"of a killed run")
    tmp_path.joinpath(".features-00000.safetensors.4242").write_bytes(b"of a killed run")
    write_features(CountingStates(), rows, tmp_path, shard_tokens=20)
    assert_holds(FeatureStore(tmp_path, BOUNDARIES), rows)
    assert not list(tmp_path.glob(".features*"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_shard_is_found_and_written_again(tmp_path: Path, damage: str) -> None:
    rows, states = some_rows([10] * 6), CountingStates()
    write_features(states, rows, tmp_path, shard_tokens=20)
    shard = tmp_path / "features-00001.safetensors"
    contents = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(contents[:-5] if damage == "cut" else contents[:-1] + bytes([contents[-1] ^ 1]))
    with pytest.raises(OSError, match=r"features-00001\.safetensors is missing, cut short or damaged"):
        FeatureStore(tmp_path, BOUNDARIES)
    write_features(states, rows, tmp_path, shard_tokens=20)
    assert states.rows == 8
    assert_holds(FeatureStore(tmp_path, BOUNDARIES), rows)


@pytest.mark.parametrize("other", ["rows", "dtype", "boundaries", "target"])
def test_features_of_something_else_are_refused(tmp_path: Path, other: str) -> None:
    write_features(CountingStates(), some_rows([10, 5]), tmp_path)
    states, rows, dtype = CountingStates(), some_rows([10, 5]), None
    if other == "rows":
        rows[1]["loss_mask"][0] ^= True
    elif other == "dtype":
        dtype = "bfloat16"
    elif other == "boundaries":
        states.boundaries = [1, 2, 3]
    else:
        states.model.named_parameters = lambda: [("weight", torch.ones(3))]
    with pytest.raises(ValueError, match=f"made with {other}"):
        write_features(states, rows, tmp_path, dtype=dtype)
    assert_holds(FeatureStore(tmp_path, BOUNDARIES), some_rows([10, 5]))


def test_other_boundaries_are_refused_on_reading(tmp_path: Path) -> None:
    write_features(CountingStates(), some_rows([5]), tmp_path)
    with pytest.raises(ValueError, match="boundaries"):
        FeatureStore(tmp_path, [1, 2, 3])


def test_a_small_disk_is_found_out_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=10**9, used=0, free=300 << 20)
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda folder: usage)
    states = CountingStates()
    write_features(states, some_rows([10]), tmp_path / "fits")
    states.logit_rule = LogitRule(torch.zeros(32, 300_000))
    with pytest.raises(OSError, match=r"take 0\.1\d GB .* has 0\.31 GB free"):
        write_features(states, some_rows([40]), tmp_path / "small")
    assert states.rows == 1
    assert not list((tmp_path / "small").glob("*.safetensors"))


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int8"):
        write_features(CountingStates(), some_rows([5]), tmp_path, dtype="int8")


@pytest.mark.parametrize("contents", [None, "{", "[1]"])
def test_a_folder_without_an_index_is_refused(tmp_path: Path, contents: str | None) -> None:
    if contents is not None:
        (tmp_path / "index.json").write_text(contents)
    with pytest.raises(OSError, match="name a folder of features"):
        FeatureStore(tmp_path, BOUNDARIES)


def _fill(folder: str, computed: Any) -> None:
    states = CountingStates()
    write_features(states, some_rows([10] * 6), folder, shard_tokens=20)
    computed.put(states.rows)


def test_two_processes_share_the_work_of_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    computed = context.Queue()
    processes = [context.Process(target=_fill, args=(str(tmp_path), computed)) for _ in range(2)]
    for process in processes:
        process.start()
    counts = [computed.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(counts) == [0, 6]
    assert json.loads((tmp_path / "index.json").read_text())["finished"]
