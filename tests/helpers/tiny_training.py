"""A tiny target, a head and conversations for training runs, and a run of them as a process of its own.

`python -m helpers.tiny_training FOLDER [field=value ...]` trains, goes on from the newest whole checkpoint, and writes
its losses, step by step, to `FOLDER/losses.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_eagle3.configuration_eagle3 import Eagle3Config
from hf_eagle3.modeling_eagle3 import Eagle3DraftModel
from hf_eagle3.training import checkpoints
from hf_eagle3.training.arguments import Eagle3TrainingArguments
from hf_eagle3.training.trainer import Eagle3Trainer

VOCABULARY = 64


def tiny_target() -> LlamaForCausalLM:
    """Eight random layers, 32 wide, whose turns end now and then."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    target = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        target.lm_head.weight[1] *= 2.5
    return target


def tiny_head(target: Any) -> Eagle3DraftModel:
    """A random head that can draft the first 40 tokens."""
    torch.manual_seed(1)
    head = Eagle3DraftModel(Eagle3Config.from_target(target.config, draft_vocab_size=40, initializer_range=0.2))
    head.set_draft_vocabulary(torch.arange(40))
    return head


def own_rows(target: Any, count: int = 24) -> list[dict[str, Any]]:
    """Conversations that the target itself continues, of unequal lengths."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for number in range(count):
        prompt = torch.randint(2, VOCABULARY, (1, 4 + number % 5), generator=generator)
        whole = target.generate(prompt, max_new_tokens=10 + number % 7, do_sample=False, pad_token_id=1)[0].tolist()
        made.append({"input_ids": whole, "loss_mask": [j >= prompt.shape[1] for j in range(len(whole))]})
    return made


def arguments(folder: str | Path, **overrides: Any) -> Eagle3TrainingArguments:
    """Eight steps in float32, measured and saved after every fourth."""
    fields: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 8, "eval_steps": 4, "save_steps": 4, "logging_steps": 1, "bf16": False,
        "max_batch_tokens": 64, "eval_prompts": 2, "eval_new_tokens": 8, "disable_tqdm": True,
        "ttt_stages": "0.5:2,0.5:3",
    }  # fmt: skip
    return Eagle3TrainingArguments(**{**fields, **overrides})


def untouched(folder: str | Path, **overrides: Any) -> Eagle3TrainingArguments:
    """Like `arguments`, without measuring or saving."""
    return arguments(folder, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, **overrides)


def losses(trainer: Eagle3Trainer) -> list[float]:
    """The loss of every step so far, those before a resumption included."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main(folder: str, *fields: str) -> None:
    """Train as the module's docstring says. With PAUSE_IN_SAVE set, each save stops half-way for so long."""
    if os.environ.get("PAUSE_IN_SAVE"):
        real = torch.save

        def slow_save(*args: Any, **kwargs: Any) -> None:
            time.sleep(float(os.environ["PAUSE_IN_SAVE"]))
            real(*args, **kwargs)

        torch.save = slow_save
    torch.set_num_threads(1)
    target = tiny_target()
    rows, head = own_rows(target), tiny_head(target)
    given = {name: json.loads(value) for name, value in (field.split("=", 1) for field in fields)}
    trainer = Eagle3Trainer(head, target, arguments(folder, **given), rows[4:], rows[:4])
    trainer.train(resume_from_checkpoint=str(checkpoints.newest(folder) or "") or None)
    if trainer.args.should_save:
        Path(folder, "losses.json").write_text(json.dumps(losses(trainer)))


if __name__ == "__main__":
    main(*sys.argv[1:])
