"""Eagle3Trainer on a tiny target: it learns, measures, keeps the best, and says what goes wrong."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.targets import GOLDEN
from helpers.tiny_training import arguments, losses, untouched
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, Trainer

from hf_eagle3.configuration_eagle3 import Eagle3Config
from hf_eagle3.data.feature_store import FeatureStore, write_features
from hf_eagle3.data.features import TargetStates
from hf_eagle3.modeling_eagle3 import Eagle3DraftModel
from hf_eagle3.training import checkpoints, measuring
from hf_eagle3.training.trainer import Eagle3Trainer

Rows = list[dict[str, Any]]


def test_it_learns_measures_and_saves(target: Any, head: Eagle3DraftModel, rows: Rows, tmp_path: Path) -> None:
    trainer = Eagle3Trainer(
        head, target, arguments(tmp_path, max_steps=40, eval_steps=20, save_steps=20, learning_rate=5e-3),
        train_dataset=rows[4:], eval_dataset=rows[:4],
    )  # fmt: skip
    trainer.train()
    history = losses(trainer)
    assert sum(history[-5:]) < 0.9 * sum(history[:5])
    measured = [entry for entry in trainer.state.log_history if "eval_acceptance_length" in entry]
    assert [entry["step"] for entry in measured] == [20, 40]
    assert all(entry["eval_acceptance_length"] >= 1 and entry["eval_chain_acceptance"] >= 1 for entry in measured)
    assert measured[-1]["num_input_tokens_seen"] > measured[0]["num_input_tokens_seen"] > 0
    best = max(measured, key=lambda entry: entry["eval_acceptance_length"])
    assert trainer.state.best_metric == best["eval_acceptance_length"]
    loaded = AutoModel.from_pretrained(checkpoints.newest(tmp_path))
    assert isinstance(loaded, Eagle3DraftModel)
    target.generate(torch.tensor([[3, 4, 5]]), assistant_model=loaded, max_new_tokens=8)


@pytest.mark.parametrize("packing", [False, True])
def test_online_and_offline_are_the_same_run(
    target: Any, head: Eagle3DraftModel, rows: Rows, tmp_path: Path, packing: bool
) -> None:
    states = TargetStates(target, head.config.target_boundaries)
    write_features(states, rows[4:], tmp_path / "features", shard_tokens=100)
    start = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    runs = []
    for data in (rows[4:], FeatureStore(tmp_path / "features", states.boundaries)):
        head.load_state_dict(start)
        trainer = Eagle3Trainer(head, target, untouched(tmp_path / "out", packing=packing), train_dataset=data)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


def test_stages_follow_the_steps(target: Any, head: Eagle3DraftModel, rows: Rows, tmp_path: Path) -> None:
    trainer = Eagle3Trainer(head, target, arguments(tmp_path, ttt_stages="0.25:1,0.5:2,0.25:4"), rows, rows[:2])
    trainer.state.max_steps, seen = 8, []
    for step in range(8):
        trainer.state.global_step = step
        seen.append(trainer.steps_now())
    assert seen == [1, 1, 2, 2, 2, 2, 4, 4]


def test_an_update_in_parts_is_the_update(target: Any, head: Eagle3DraftModel, rows: Rows, tmp_path: Path) -> None:
    """Micro-batches of unequal numbers of rows, accumulated, give the loss of one divisor over all of them."""
    args = untouched(tmp_path, gradient_accumulation_steps=3, max_steps=1, ttt_stages="1:3")
    trainer = Eagle3Trainer(head, target, args, rows)
    batches = list(trainer.get_train_dataloader())[:3]
    assert len({int(trainer.objective.counts(batch, 3)[0]) for batch in batches}) > 1
    divisor = sum(trainer.objective.counts(batch, 3) for batch in batches)
    expected = sum(trainer.objective(3, divisor, **batch)["loss"].item() for batch in batches)
    trainer.train()
    assert losses(trainer) == pytest.approx([expected], abs=1e-5)


def test_a_loss_that_is_no_number_stops(
    target: Any, head: Eagle3DraftModel, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Eagle3Trainer(head, target, arguments(tmp_path, max_steps=12), rows[4:], rows[:4])
    real = trainer.objective.forward

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        out = real(*args, **kwargs)
        return {**out, "loss": out["loss"] * math.nan} if trainer.state.global_step == 6 else out

    monkeypatch.setattr(trainer.objective, "forward", poisoned)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 7; the last good checkpoint is .*checkpoint-4"):
        trainer.train()
    kept = checkpoints.newest(tmp_path)
    assert kept is not None
    assert all(tensor.isfinite().all() for tensor in load_file(kept / "model.safetensors").values())


def test_weights_that_are_no_numbers_are_not_saved(
    target: Any, head: Eagle3DraftModel, rows: Rows, tmp_path: Path
) -> None:
    trainer = Eagle3Trainer(head, target, arguments(tmp_path), rows[4:], rows[:4])
    with torch.no_grad():
        head.norm.weight[0] = math.inf
    with pytest.raises(FloatingPointError, match="no checkpoint was written yet"):
        trainer._save_checkpoint(trainer.model, None)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("broken", ["torch", "safetensors"])
def test_a_full_disk_leaves_the_last_checkpoint(
    target: Any, head: Eagle3DraftModel, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    trainer = Eagle3Trainer(head, target, arguments(tmp_path, max_steps=12), rows[4:], rows[:4])
    module, name = (torch, "save") if broken == "torch" else (Eagle3DraftModel, "save_pretrained")
    real, full = getattr(module, name), OSError(28, "No space left on device")

    def save(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 8:
            raise full
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, save)
    with pytest.raises(OSError, match=r"step 8 could not be written .*No space left.*last good one is .*checkpoint-4"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4


def test_checkpointing_and_bf16_train_too(target: Any, head: Eagle3DraftModel, rows: Rows, tmp_path: Path) -> None:
    args = arguments(tmp_path, bf16=True, activation_checkpointing=True)
    trainer = Eagle3Trainer(head, target, args, rows[4:], rows[:4])
    trainer.train()
    assert trainer.objective.checkpointing
    assert head.fc.weight.dtype == torch.float32
    assert all(math.isfinite(loss) for loss in losses(trainer))


def test_tensorboard_hears_of_the_acceptance_length(
    target: Any, head: Eagle3DraftModel, rows: Rows, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = arguments(tmp_path, report_to=["tensorboard"])
    Eagle3Trainer(head, target, args, rows[4:], rows[:4]).train()
    written = next(path for path in tmp_path.rglob("events.out.tfevents.*"))
    events = EventAccumulator(str(written.parent))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/acceptance_length")] == [4, 8]


def test_trackio_hears_of_the_acceptance_length(tmp_path: Path) -> None:
    """In a process of its own: trackio reads TRACKIO_DIR, where its records go, when it is imported."""
    fields = ['report_to=["trackio"]', 'project="heads"', "max_steps=4"]
    command = [sys.executable, "-m", "helpers.tiny_training", str(tmp_path / "run"), *fields]
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "records"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=Path(__file__).parents[1], env=env, check=True, capture_output=True, timeout=120)
    with closing(sqlite3.connect(tmp_path / "records" / "heads.db")) as records:
        logged = [json.loads(row[0]) for row in records.execute("select metrics from metrics order by step")]
    assert [entry["train/global_step"] for entry in logged if entry.get("eval/acceptance_length", 0) >= 1] == [4]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"ttt_stages": "7"}, "share:steps"), ({"ttt_stages": "0.5:2"}, "sum to 1"), ({"loss": "mse"}, "choose one of"),
     ({"max_minutes": 0}, "max_minutes"), ({"max_batch_tokens": 0}, "max_batch_tokens"),
     ({"eval_steps": 2}, "make them equal"), ({"eval_prompts": 0}, "eval_prompts is 0"),
     ({"max_steps": -1, "num_train_epochs": 0}, "saw nothing"), ({"auto_find_batch_size": True}, "change nothing")],
)  # fmt: skip
def test_senseless_arguments_are_refused(tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        arguments(tmp_path, **wrong)


def test_a_process_has_one_device(tmp_path: Path) -> None:
    """On a machine of many, Trainer would wrap the objective in DataParallel, which cuts divisors and rows apart."""
    args = arguments(tmp_path)
    assert args.device.type == "cpu"
    args._n_gpu = 4
    assert args.n_gpu == 1
    assert args.parallel_mode.value == "not_parallel"


def test_fsdp_is_refused(
    target: Any, head: Eagle3DraftModel, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Trainer.create_accelerator_and_postprocess

    def sharded(self: Trainer) -> None:
        make(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(ValueError, match="plain data parallelism"):
        Eagle3Trainer(head, target, arguments(tmp_path), rows[4:], rows[:4])


def test_embeddings_of_its_own_stay_as_they_are(target: Any, rows: Rows, tmp_path: Path) -> None:
    head = Eagle3DraftModel(Eagle3Config.from_target(target.config, draft_vocab_size=40, own_embeddings=True))
    head.set_draft_vocabulary(torch.arange(40))
    before = head.embed_tokens.weight.clone()
    Eagle3Trainer(head, target, untouched(tmp_path, max_steps=2), rows).train()
    assert torch.equal(head.embed_tokens.weight, before)
    assert not any("embed_tokens" in name for name, part in head.named_parameters() if part.requires_grad)


def test_the_acceptance_length_is_the_decoders(tmp_path: Path) -> None:
    """On a target and a head that were trained for one another: what `generate` itself needs in forwards."""
    target = AutoModelForCausalLM.from_pretrained(GOLDEN / "llama_target", dtype=torch.float32).eval()
    head = AutoModel.from_pretrained(GOLDEN / "eagle3_llama_head", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    held_out = []
    for _ in range(4):
        prompt = torch.randint(3, target.config.vocab_size, (1, 6), generator=generator)
        ids = target.generate(prompt, min_new_tokens=20, max_new_tokens=20, do_sample=False)[0].tolist()
        held_out.append({"input_ids": ids, "loss_mask": [False] * 6 + [True] * 20})
    trainer = Eagle3Trainer(head, target, arguments(tmp_path, eval_prompts=3), held_out, held_out)
    measured = trainer.evaluate()["eval_acceptance_length"]
    passes, lengths, forward = [0], [], target.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes[0] += 1
        return forward(*args, **kwargs)

    target.forward = counted
    with torch.inference_mode():
        for row in held_out[:3]:
            prompt = torch.tensor([row["input_ids"][:6]])
            out = target.generate(
                prompt, attention_mask=torch.ones_like(prompt), assistant_model=head, max_new_tokens=8,
                do_sample=False, return_dict_in_generate=True,
            )  # fmt: skip
            lengths += out.acceptance_lengths[0]
    assert passes[0] == len(lengths) + 3  # and the three prompts'
    assert measured == pytest.approx(sum(lengths) / len(lengths))
    assert measured > 1.5


def test_the_best_checkpoint_becomes_the_head(
    target: Any, head: Eagle3DraftModel, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acceptance that rises and falls again: the head is the one of its peak."""
    told = iter([1.5, 2.5, 2.0])
    monkeypatch.setattr(measuring, "on_prompts", lambda *_: {"acceptance_length": next(told)})
    args = arguments(tmp_path, max_steps=9, eval_steps=3, save_steps=3)
    trainer = Eagle3Trainer(head, target, args, rows[4:], rows[:4])
    trainer.train()
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (6, 2.5)
    peak = Eagle3DraftModel.from_pretrained(tmp_path / "checkpoint-6")
    last = Eagle3DraftModel.from_pretrained(tmp_path / "checkpoint-9")
    assert torch.equal(trainer.objective.exported().fc.weight, peak.fc.weight)
    assert not torch.equal(peak.fc.weight, last.fc.weight)


def test_no_data_is_refused(target: Any, head: Eagle3DraftModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no conversation"):
        Eagle3Trainer(head, target, arguments(tmp_path), [], [])
