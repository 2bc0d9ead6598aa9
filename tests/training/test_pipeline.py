"""The three commands of the README, one after the other: from a target's own words to a measured head, twice alike."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_eagle3.data.store import load_dataset


def hf_eagle3(folder: Path, *command: Any) -> str:
    """A command of its own process, as it is typed in `folder`."""
    run = [sys.executable, "-m", "hf_eagle3.cli", *map(str, command)]
    done = subprocess.run(run, cwd=folder, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outcome(folder: Path) -> dict[str, Any]:
    """All that must be the same whenever the commands are given: not the seconds."""
    rows = {name: [row["input_ids"] for row in split] for name, split in load_dataset(folder / "my-data").items()}
    record = json.loads((folder / "eval.json").read_text())
    return {
        "rows": rows,
        "head": sha256(folder / "my-head" / "model.safetensors"),
        "training": json.loads((folder / "my-head" / "training.json").read_text())["history"],
        "acceptance": [(row["temperature"], row["name"], row["acceptance_length"]) for row in record["files"]],
    }


def test_the_three_commands(tmp_path: Path, target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    prompts = [{"turns": [f"w{i} w{i + 1} w{40 - i} w3"]} for i in range(28)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (tmp_path / "questions").mkdir()
    questions = [{"turns": [f"w{i} w7 w{i + 2}"]} for i in range(3)]
    (tmp_path / "questions" / "own.jsonl").write_text("\n".join(map(json.dumps, questions)))
    recipe = {
        "max_steps": 4, "eval_steps": 2, "save_steps": 2, "max_batch_tokens": 256, "eval_prompts": 2,
        "eval_new_tokens": 8, "draft_vocab_size": 40, "disable_tqdm": True,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    small = ["--max-answer", 24, "--slots", 4, "--keep-personal-data", "--near-duplicates", 0]
    outcomes = []
    for name in ("one", "two"):
        folder, with_target = tmp_path / name, ["--target", tmp_path / "target"]
        folder.mkdir()
        hf_eagle3(
            folder, "data", "write", "--out", "my-data", *with_target, "--prompts", tmp_path / "prompts.jsonl", *small
        )
        hf_eagle3(
            folder, "train", "--data", "my-data", "--output-dir", "my-head", *with_target,
            "--config", tmp_path / "recipe.yaml",
        )  # fmt: skip
        told = hf_eagle3(
            folder, "eval", "--head", "my-head", *with_target, "--questions", tmp_path / "questions",
            "--max-new-tokens", 8, "--temperature", 0, "--temperature", 1, "--json", "eval.json",
        )  # fmt: skip
        assert "temperature 1" in told
        outcomes.append(outcome(folder))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["training"]
    assert {temperature for temperature, *_ in outcomes[0]["acceptance"]} == {0.0, 1.0}


@pytest.mark.slow
def test_the_readmes_commands_on_the_embedded_target(tmp_path: Path) -> None:
    """The target makes up its prompts; at a tenth of the README's tokens, which is what makes it short."""
    outcomes = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        hf_eagle3(folder, "data", "write", "--out", "my-data", "--answer-tokens", 2000, "--slots", 8)
        hf_eagle3(folder, "train", "--data", "my-data", "--output-dir", "my-head", "--epochs", 2)
        (folder / "questions").mkdir()
        (folder / "questions" / "own.jsonl").write_text('{"turns": ["Why is the sky blue?"]}\n')
        hf_eagle3(folder, "eval", "--head", "my-head", "--questions", "questions", "--json", "eval.json")
        outcomes.append(outcome(folder))
    assert outcomes[0] == outcomes[1]
