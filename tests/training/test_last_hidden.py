"""Heads that read the target's last hidden state: EAGLE-1's inputs, and its objective, on the same rollout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.plain_training import plain_batch_loss, plain_regression
from helpers.tiny_training import own_rows, tiny_target
from safetensors import safe_open
from transformers import AutoModel

from hf_eagle3.configuration_eagle3 import LAST_HIDDEN_STATE
from hf_eagle3.data.feature_store import FeatureStore, write_features
from hf_eagle3.data.features import TargetStates
from hf_eagle3.modeling_eagle3 import Eagle3DraftModel
from hf_eagle3.training.batches import Collator
from hf_eagle3.training.initialisation import fresh_head
from hf_eagle3.training.objective import LossSettings, TrainingTimeTest
from hf_eagle3.training.recipe import read_recipe
from hf_eagle3.training.run import train_head

STEPS, LAST = 3, [LAST_HIDDEN_STATE]


def with_gains(target: Any) -> Any:
    """The tiny target, whose last norm multiplies by something else in every dimension."""
    with torch.no_grad():
        target.model.norm.weight.uniform_(0.3, 1.7, generator=torch.Generator().manual_seed(2))
    return target


@pytest.fixture
def target() -> Any:
    return with_gains(tiny_target())


@pytest.fixture
def states(target: Any) -> TargetStates:
    return TargetStates(target, LAST)


def last_head(target: Any, **fields: Any) -> Eagle3DraftModel:
    return fresh_head(target, torch.arange(40), target.lm_head.weight[:40], 3, LAST, **fields)


def conversations(target: Any, rows: list[dict[str, Any]]) -> list[tuple[torch.Tensor, ...]]:
    """As the plain loop takes them, from the target's whole output."""
    found = []
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        with torch.no_grad():
            out = target(ids[None], output_hidden_states=True)
        found.append((ids, torch.tensor(row["loss_mask"]), out.hidden_states[-1][0], out.logits[0]))
    return found


@pytest.mark.parametrize("norm_output", [True, False], ids=["normed states fed back", "as they are"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_eagle_1s_objective_is_the_plain_loops(
    target: Any, states: TargetStates, rows: list[dict[str, Any]], norm_output: bool, packed: bool
) -> None:
    """Losses and gradients of a regression and a soft cross-entropy over several steps."""
    head = last_head(target, norm_output=norm_output, initializer_range=0.2)
    assert head.fc is None
    embeddings, rows = head.input_embeddings_for(target).requires_grad_(False), rows[:5]
    examples = states.examples([(row["input_ids"], row["loss_mask"]) for row in rows])
    settings = LossSettings(ce=0.1, regression=1.0)
    out = TrainingTimeTest(head, embeddings, states.logit_rule, settings=settings)(
        STEPS, **Collator(packed)([(example, 7) for example in examples])
    )
    out["loss"].backward()
    ours = {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}
    head.zero_grad()
    plain = conversations(target, rows)
    soft, soft_steps = plain_batch_loss(head, embeddings, plain, STEPS)
    apart, apart_steps = plain_regression(head, embeddings, plain, [last for _, _, last, _ in plain], STEPS)
    (0.1 * soft + apart).backward()
    assert min(apart.item(), soft.item()) > 0.01
    torch.testing.assert_close(out["loss"], 0.1 * soft + apart, atol=1e-5, rtol=1e-5)
    each = torch.stack([0.1 * one + other for one, other in zip(soft_steps, apart_steps, strict=True)])
    torch.testing.assert_close(out["step_losses"], each.detach(), atol=1e-5, rtol=1e-5)
    theirs = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
    assert {"norm.weight", "lm_head.weight", "layers.0.self_attn.v_proj.weight"} <= set(ours) == set(theirs)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4, msg=f"the gradient of {name} differs")


@torch.no_grad()
def test_what_it_feeds_back_can_be_the_targets_last_hidden_state(target: Any, rows: list[dict[str, Any]]) -> None:
    """From what leaves the target's last layer the head's norm makes the target's very state: a head of EAGLE-1's kind
    can meet its regression exactly."""
    head = last_head(target, norm_output=True)
    seen: list[torch.Tensor] = []
    hook = target.model.layers[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    out = target(torch.tensor([rows[0]["input_ids"]]), output_hidden_states=True)
    hook.remove()
    torch.testing.assert_close(head.fed_back(seen[0]), out.hidden_states[-1], atol=1e-5, rtol=1e-5)
    assert torch.equal(last_head(target).norm.weight, torch.ones(32)), "one that feeds back other states keeps its own"


def test_a_scale_that_nothing_can_take_up_is_refused(target: Any, states: TargetStates) -> None:
    head = last_head(target)
    with pytest.raises(ValueError, match="no fusion layer to fold"):
        TrainingTimeTest(head, target.get_input_embeddings(), states.logit_rule, torch.full((32,), 2.0))


def test_an_exported_head_comes_back(target: Any, states: TargetStates) -> None:
    head = last_head(target, norm_output=True)
    part = TrainingTimeTest(head, target.get_input_embeddings(), states.logit_rule)
    exported = {name: tensor.clone() for name, tensor in part.exported().state_dict().items()}
    with torch.no_grad():
        head.layers[0].mlp.up_proj.weight.zero_()
    part.load_exported(exported)
    assert all(torch.equal(tensor, exported[name]) for name, tensor in head.state_dict().items())


# ---------------------------------------------------------------------- features


def tensors_of(folder: Path) -> set[str]:
    with safe_open(next(folder.glob("*.safetensors")), framework="pt") as shard:
        return set(shard.keys())


def test_nothing_is_stored_twice(
    target: Any, states: TargetStates, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_features(states, rows, tmp_path / "last")
    assert "features" not in tensors_of(tmp_path / "last")
    wide = TargetStates(target, [2, 4, 5])
    write_features(wide, rows, tmp_path / "wide")
    for folder in ("last", "wide"):
        store = FeatureStore(tmp_path / folder, LAST)
        for index in (0, 7):
            expected = wide.examples([(rows[index]["input_ids"], rows[index]["loss_mask"])])[0].last_hidden
            torch.testing.assert_close(store[index].features, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"boundaries \[-1\] and \[2, 4, 5\] are wanted"):
        FeatureStore(tmp_path / "last", [2, 4, 5])


def test_a_folder_of_other_boundaries_is_gone_on_with(
    target: Any, states: TargetStates, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """What was begun for three boundaries serves, and where a shard of it is lost it is made again with all three."""
    write_features(TargetStates(target, [2, 4, 5]), rows, tmp_path, shard_tokens=100)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    (tmp_path / "features-00001.safetensors").unlink()
    write_features(states, rows, tmp_path, shard_tokens=100)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before
    assert states.boundaries == LAST
    assert FeatureStore(tmp_path, [2, 4, 5])[0].features.shape[-1] == 96


# ---------------------------------------------------------------------- a run


def test_a_run_from_a_recipe(target: Any, tmp_path: Path) -> None:
    """EAGLE-1's recipe beside EAGLE-3's, on the same folder of features; its output rows stay the target's."""
    from datasets import Dataset, DatasetDict

    rows = own_rows(target)
    splits = {"train": Dataset.from_list(rows[4:]), "validation": Dataset.from_list(rows[:4])}
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    common = {
        "data": str(tmp_path / "data"), "features_dir": str(tmp_path / "features"), "max_steps": 4, "eval_steps": 4,
        "save_steps": 4, "bf16": False, "max_batch_tokens": 64, "eval_prompts": 2, "eval_new_tokens": 8,
        "draft_vocab_size": 40, "disable_tqdm": True,
    }  # fmt: skip
    eagle1 = {
        "boundaries": [-1], "head": {"norm_output": True}, "freeze_output": True, "loss_ce": 0.1,
        "loss_regression": 1.0, "ttt_stages": "1:1",
    }  # fmt: skip
    for name, own in (("eagle3", {}), ("eagle1", eagle1)):
        recipe = read_recipe(None, common | own)
        assert train_head(recipe, target, recipe.training_arguments(tmp_path / name)).finished
    head = AutoModel.from_pretrained(tmp_path / "eagle1", dtype=torch.float32)
    assert head.config.reads_last_hidden_state
    assert head.config.norm_output
    assert torch.equal(head.lm_head.weight, target.lm_head.weight[head.t2d].bfloat16().float())
    assert json.loads((tmp_path / "eagle1" / "training.json").read_text())["boundaries"] == LAST
    prompt = torch.tensor([rows[0]["input_ids"][:5]])
    drafted = target.generate(prompt, assistant_model=head, max_new_tokens=12, do_sample=False)
    assert torch.equal(drafted, target.generate(prompt, max_new_tokens=12, do_sample=False))


def test_the_last_hidden_state_is_read_alone() -> None:
    with pytest.raises(ValueError, match=r"boundaries is \[4, -1\]: the last hidden state"):
        read_recipe(None, {"data": "data", "boundaries": [4, -1]})
