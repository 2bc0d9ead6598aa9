"""Going on with a head: its vocabulary and boundaries are kept; a LoRA adapter is trained, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_training import arguments, losses
from peft import PeftModel
from safetensors.torch import load_file

from hf_eagle3.modeling_eagle3 import Eagle3DraftModel
from hf_eagle3.training import checkpoints
from hf_eagle3.training.trainer import Eagle3Trainer
from hf_eagle3.training.warm_start import ADAPTED, adapted, warm_head

Rows = list[dict[str, Any]]


@pytest.fixture
def saved(head: Eagle3DraftModel, tmp_path: Path) -> str:
    """A head with an uneven vocabulary, on disk in bfloat16."""
    head.set_draft_vocabulary(torch.arange(0, 64, 1)[torch.arange(64) % 8 < 5])
    head.bfloat16().save_pretrained(tmp_path / "start")
    return str(tmp_path / "start")


def test_a_warm_head_is_the_head(target: Any, saved: str) -> None:
    there, warm = Eagle3DraftModel.from_pretrained(saved), warm_head(saved, target)
    assert warm.dtype == torch.float32
    assert warm.config.target_boundaries == there.config.target_boundaries
    for name, tensor in there.state_dict().items():
        torch.testing.assert_close(warm.state_dict()[name], tensor.to(warm.state_dict()[name].dtype), atol=0, rtol=0)


def test_a_head_of_another_target_is_refused(target: Any, saved: str) -> None:
    target.config.vocab_size = 65
    with pytest.raises(ValueError, match="made for a target of 64 tokens"):
        warm_head(saved, target)


def test_training_an_adapter(target: Any, rows: Rows, saved: str, tmp_path: Path) -> None:
    """Only the adapter moves; saved, peft puts it on the head again; merged, it drafts as it did."""
    model = adapted(warm_head(saved, target), rank=4)
    start = model.get_base_model().state_dict()
    before = {name: tensor.clone() for name, tensor in start.items() if "lora" not in name}
    args = arguments(tmp_path / "run", max_steps=24, eval_steps=12, save_steps=12, learning_rate=1e-2)
    trainer = Eagle3Trainer(model, target, args, rows[4:], rows[:4])
    trainer.train()
    history = losses(trainer)
    assert sum(history[-4:]) < sum(history[:4])
    after = model.get_base_model().state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    moved = [name for name, tensor in after.items() if "lora_B" in name and tensor.abs().sum() > 0]
    assert {name.split(".lora")[0].split(".")[-1] for name in moved} == set(ADAPTED)

    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(warm_head(saved, target), str(tmp_path / "adapter"))
    merged, exported = loaded.merge_and_unload(), trainer.objective.exported()
    features, embeds = torch.randn(1, 6, merged.fc.in_features), torch.randn(1, 6, 32)
    with torch.no_grad():
        found, wanted = (one.eval()(one.fuse(features), inputs_embeds=embeds).logits for one in (merged, exported))
    torch.testing.assert_close(found, wanted)
    assert torch.equal(merged.d2t, Eagle3DraftModel.from_pretrained(saved).d2t)
    target.generate(torch.tensor([[3, 4, 5]]), assistant_model=loaded, max_new_tokens=8)


def test_an_adapter_resumes_to_the_same_losses(target: Any, rows: Rows, saved: str, tmp_path: Path) -> None:
    runs = []
    for folder, sittings in (("whole", [None]), ("parts", [1e-6, 1e-6, None])):
        for minutes in sittings:
            model = adapted(warm_head(saved, target), rank=2)
            args = arguments(tmp_path / folder, max_minutes=minutes)
            trainer = Eagle3Trainer(model, target, args, rows[4:], rows[:4])
            trainer.train(resume_from_checkpoint=str(checkpoints.newest(tmp_path / folder) or "") or None)
        runs.append((losses(trainer), dict(model.named_parameters())))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(one, other) for one, other in zip(runs[0][1].values(), runs[1][1].values(), strict=True))
    last = load_file(tmp_path / "whole" / "checkpoint-8" / "adapter_model.safetensors")
    assert last
    assert all("lora" in name for name in last)
