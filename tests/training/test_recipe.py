"""Recipes: written, read and compared without loss; what is wrong in one is told with the way to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_eagle3.training.recipe import FILE, Recipe, complete, differences, read_recipe, settled, write_recipe

GIVEN = st.fixed_dictionaries(
    {"data": st.text("abc/", min_size=1)},
    optional={
        "target": st.none() | st.text("xyz", min_size=1),
        "boundaries": st.lists(st.integers(1, 9), min_size=1),
        "draft_vocab_size": st.integers(1, 9999),
        "head": st.fixed_dictionaries({"num_hidden_layers": st.integers(1, 3)}, optional={"qk_norm": st.booleans()}),
        "features": st.sampled_from(["cache", "online"]),
        "learning_rate": st.floats(1e-6, 1.0),
        "max_steps": st.integers(1, 10**6),
        "ttt_stages": st.sampled_from(["1:7", "0.5:2,0.5:3"]),
        "loss": st.sampled_from(["soft_ce", "kl", "lk"]),
        "packing": st.booleans(),
        "lr_scheduler_type": st.sampled_from(["linear", "constant"]),
        "warmup_steps": st.integers(0, 50) | st.floats(0, 0.5),
        "weight_decay": st.floats(0, 1),
        "eval_strategy": st.just("no"),
        "load_best_model_at_end": st.just(False),
    },
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=GIVEN)
def test_what_is_written_is_what_is_read(tmp_path: Path, values: dict[str, Any]) -> None:
    values = {"load_best_model_at_end": False, **values}
    recipe = read_recipe(None, values)
    whole = complete(recipe, recipe.training_arguments(tmp_path))
    assert all(whole[name] == value for name, value in values.items())
    write_recipe(whole, tmp_path)
    again = read_recipe(tmp_path / FILE, {})
    assert complete(again, again.training_arguments(tmp_path / "elsewhere")) == whole
    assert differences(whole, tmp_path) == []


def test_a_recipe_is_complete(tmp_path: Path) -> None:
    """A default that changes some day does not change what a recipe gives."""
    recipe = Recipe("data")
    whole = complete(recipe, recipe.training_arguments(tmp_path))
    decisive = ["learning_rate", "seed", "max_batch_tokens", "ttt_stages", "weight_decay", "num_train_epochs", "bf16"]
    assert all(whole[name] is not None for name in decisive)
    assert not {"output_dir", "max_minutes", "use_cpu", "local_rank"} & set(whole)


def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: there\nlearning_rate: 1e-4\nmax_steps: 5\neval_strategy: no\nadam_beta1: 0.8\n")
    recipe = read_recipe(path, {"max_steps": 7, "data": "here"})
    assert recipe.data == "here"
    assert recipe.arguments == {"learning_rate": 1e-4, "max_steps": 7, "eval_strategy": "no", "adam_beta1": 0.8}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"learnig_rate": 1.0}, "did you mean learning_rate"),
        ({"zzz": 1}, "'zzz', which nothing knows; see"),
        ({"output_dir": "x"}, "'output_dir', which nothing knows"),
        ({"max_steps": "ten"}, "max_steps is 'ten', a str; it must be int"),
        ({"bf16": 1}, "bf16 is 1, a int; it must be bool"),
        ({"seed": True}, "seed is True"),
        ({"boundaries": [2, "4"]}, "must be list of int or absent"),
        ({"features": "disk"}, "choose cache or online"),
        ({"dtype": "int4"}, "dtype is 'int4'; choose"),
        ({"features_dtype": "int8"}, "features_dtype is 'int8'; choose"),
        ({"lora_rank": 4}, "name the head with init"),
        ({"init": "head", "draft_vocab_size": 9}, "leave out draft_vocab_size"),
        ({"init": "head", "head": {"num_hidden_layers": 2}}, "boundaries and head, or init"),
        ({"head": {"vocab_size": 5, "num_hidden_layers": 2}}, "head has vocab_size, but"),
        ({"head": 2}, "head is 2, a int; it must be dict"),
        ({"head": {"num_hidden_layers": "two"}}, "The head's num_hidden_layers is 'two', a str; it must be int"),
        ({"head": {"qk_norm": 1}}, "The head's qk_norm is 1, a int; it must be bool"),
        ({"head": {"rope_parameters": 3}}, "The head's rope_parameters is 3, a int"),
        ({"head": {"num_hidden_layers": 0}}, "num_hidden_layers is 0; it must be 1 or more"),
        ({"head": {"head_dim": -8}}, "head_dim is -8; it must be 1 or more"),
        ({"init": "head", "lora_rank": 0}, "a rank of at least 1"),
        ({"data": None}, "data is None"),
    ],
)
def test_what_is_wrong_is_told(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_recipe(None, {"data": "data", **values})


def test_a_heads_fields_are_read_as_the_others(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "data: d\nhead: {rms_norm_eps: 1e-5, head_dim: null, rope_parameters: {rope_type: default, rope_theta: 5.0}}\n"
    )
    head = read_recipe(tmp_path / "r.yaml", {}).head
    rope = {"rope_type": "default", "rope_theta": 5.0}
    assert head == {"rms_norm_eps": 1e-5, "head_dim": None, "rope_parameters": rope}


@pytest.mark.parametrize("able", [True, False])
def test_a_run_goes_on_in_its_dtype_on_another_machine(
    able: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded target's, which is chosen by the machine that begins; other targets come in their own."""
    first, second = ("bfloat16", "float32") if able else ("float32", "bfloat16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    begun = settled(Recipe("data"), "cpu", tmp_path)
    assert begun.dtype == first
    write_recipe(complete(begun, begun.training_arguments(tmp_path)), tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not able})
    assert settled(Recipe("data"), "cpu", tmp_path) == begun
    assert settled(Recipe("data"), "cpu", tmp_path / "other").dtype == second
    assert settled(Recipe("data", dtype="auto"), "cpu", tmp_path).dtype == "auto"
    assert settled(Recipe("data", target="some/target"), "cpu", tmp_path).dtype is None


@pytest.mark.parametrize(("text", "told"), [("- a\n", "holds a list"), ("a: [", "is no YAML"), ("", "No data")])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=told) as caught:
        read_recipe(tmp_path / "r.yaml", {})
    assert "\n" not in str(caught.value)


def test_differences_name_what_changed_but_not_what_may(tmp_path: Path) -> None:
    recipe = Recipe("data", arguments={"max_steps": 8, "disable_tqdm": True, "max_minutes": 3.0})
    whole = complete(recipe, recipe.training_arguments(tmp_path))
    assert differences(whole, tmp_path) == []
    write_recipe(whole, tmp_path)
    assert differences({**whole, "disable_tqdm": False, "report_to": ["trackio"]}, tmp_path) == []
    assert differences({**whole, "max_steps": 9}, tmp_path) == ["max_steps was 8 and is 9"]
