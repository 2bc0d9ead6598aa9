"""`hf-eagle3 train` as it is typed: a head from nothing, from a recipe, from another head; cut, killed, refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from click.testing import Result
from helpers.tiny_training import own_rows
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from hf_eagle3.data.store import load_dataset
from hf_eagle3.modeling_eagle3 import Eagle3DraftModel
from hf_eagle3.training.command import train
from hf_eagle3.training.trainer import Eagle3Trainer

Run = Callable[..., Result]
# Small enough for a test; a YAML file, as a user would write one.
RECIPE = {
    "max_steps": 6, "eval_steps": 3, "save_steps": 3, "logging_steps": 1, "bf16": False, "max_batch_tokens": 64,
    "eval_prompts": 2, "eval_new_tokens": 8, "disable_tqdm": True, "ttt_stages": "0.5:2,0.5:3", "dtype": "float32",
    "draft_vocab_size": 40, "seed": 3,
}  # fmt: skip


@pytest.fixture
def data(target: LlamaForCausalLM, tmp_path: Path) -> str:
    from datasets import Dataset, DatasetDict

    rest = {"messages": [], "source": "test", "turns": 1, "temperature": 0.0, "finished": True}
    rows = [{**row, **rest, "messages": [{"role": "user", "content": "hi"}]} for row in own_rows(target)]
    splits = {"train": Dataset.from_list(rows[4:]), "validation": Dataset.from_list(rows[:4])}
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    return str(tmp_path / "data")


@pytest.fixture
def run(target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: str, tmp_path: Path) -> Run:
    """Runs the command on the tiny target, with `RECIPE` changed by keyword, and gives what it said."""
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    app = typer.Typer()
    app.command()(train)

    def call(out: str, *options: str, expect: int = 0, **changes: Any) -> Result:
        recipe = {"data": data, "target": str(tmp_path / "target"), **RECIPE, **changes}
        given = {name: value for name, value in recipe.items() if value is not None}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
        command = ["--output-dir", str(tmp_path / out), "--config", str(tmp_path / "recipe.yaml"), *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == expect, (result.output, result.exception)
        return result

    return call


def same_files(one: Path, other: Path, *names: str) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_from_data_to_a_head(run: Run, target: LlamaForCausalLM, tmp_path: Path) -> None:
    told = run("out").output
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert f"draft vocabulary: {record['draft_vocabulary_coverage']:.1%}" in told
    assert f"held-out prompts: {record['acceptance_length']:.2f} (bonus included)" in told
    assert 0.3 < record["draft_vocabulary_coverage"] < 1
    assert record["tokens_seen"] > 0
    assert record["boundaries"] == [2, 4, 5]
    assert [entry["step"] for entry in record["history"] if "eval_acceptance_length" in entry] == [3, 6]
    assert not any("runtime" in name or "per_second" in name for entry in record["history"] for name in entry)
    head = AutoModel.from_pretrained(tmp_path / "out")
    assert isinstance(head, Eagle3DraftModel)
    assert head.dtype == torch.bfloat16
    assert int(head.t2d.sum()) == record["draft_vocab_size"] == 40
    assert head.t2d[1], "the stop token can always be drafted"
    best = load_file(tmp_path / "out" / f"checkpoint-{record['best_step']}" / "model.safetensors")
    assert torch.equal(head.fc.weight, best["fc.weight"].bfloat16())
    target.generate(torch.tensor([[3, 4, 5]]), assistant_model=head.float(), max_new_tokens=8)


def test_a_loss_is_no_acceptance_length(run: Run, tmp_path: Path) -> None:
    told = run("out", eval_prompts=0, metric_for_best_model="loss", greater_is_better=False).output
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["acceptance_length"] is None
    assert record["best_step"] in (3, 6)
    assert "acceptance length" not in told


@pytest.mark.parametrize(
    "norms", [{"fc_norm": True}, {"norm_before_fc": True, "norm_output": True}, {"qk_norm": True}]
)
def test_a_head_of_other_layers(run: Run, target: LlamaForCausalLM, tmp_path: Path, norms: dict[str, bool]) -> None:
    run("out", head={"num_hidden_layers": 2, "intermediate_size": 64, **norms}, freeze_output=True)
    head = AutoModel.from_pretrained(tmp_path / "out")
    assert (len(head.layers), head.layers[1].mlp.up_proj.out_features) == (2, 64)
    assert all(getattr(head.config, name) is value for name, value in norms.items())
    assert torch.equal(head.lm_head.weight, target.lm_head.weight[head.t2d].bfloat16()), "they were to stay"
    learnt = load_file(tmp_path / "out" / "checkpoint-6" / "model.safetensors")
    before = load_file(tmp_path / "out" / "checkpoint-3" / "model.safetensors")
    moved = [name for name in learnt if name != "lm_head.weight" and learnt[name].is_floating_point()]
    assert all(not torch.equal(learnt[name], before[name]) for name in moved)
    prompt = torch.tensor([[3, 4, 5]])
    drafted = target.generate(prompt, assistant_model=head.float(), max_new_tokens=12, do_sample=False)
    assert torch.equal(drafted, target.generate(prompt, max_new_tokens=12, do_sample=False))


def test_its_own_recipe_makes_it_again_bit_for_bit(run: Run, tmp_path: Path) -> None:
    run("first")
    options = ["--config", str(tmp_path / "first" / "recipe.yaml")]
    run("again", *options)
    assert same_files(
        tmp_path / "first", tmp_path / "again", "model.safetensors", "training.json", "recipe.yaml", "config.json"
    )


def test_cut_into_sittings_it_is_the_same_head(run: Run, tmp_path: Path) -> None:
    run("whole")
    for step in range(1, 6):
        told = run("parts", "--max-minutes", "0.000001").output
        assert f"step {step} of 6: the same command goes on" in told
        assert not (tmp_path / "parts" / "training.json").exists()
    run("parts")
    assert same_files(tmp_path / "whole", tmp_path / "parts", "model.safetensors", "training.json", "recipe.yaml")
    sittings = json.loads((tmp_path / "parts" / "timing.json").read_text())["sittings"]
    assert [(sitting["from_step"], sitting["to_step"]) for sitting in sittings] == [(i, i + 1) for i in range(6)]


def test_a_finished_run_is_left_as_it_is(run: Run, tmp_path: Path) -> None:
    """The same command once more, as after a kill between the last checkpoint and the head."""
    run("out")
    kept = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    (tmp_path / "out" / "model.safetensors").unlink()
    run("out")
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_online_sums_the_mass_once_and_knows_its_data(
    run: Run, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("out", "--max-minutes", "0.000001", features="online")
    monkeypatch.setattr("hf_eagle3.training.run.token_mass", lambda *_: pytest.fail("summed again"))
    told = run("out", "--max-minutes", "0.000001", features="online").output
    assert "step 2 of 6" in told
    other = load_dataset(data)
    other["train"] = other["train"].select(range(5))
    other.save_to_disk(tmp_path / "other")
    shutil.rmtree(data)
    (tmp_path / "other").rename(data)
    assert "is not what it was when the run" in str(run("out", features="online", expect=1).exception)


def test_features_are_kept_in_the_dtype_asked_for(run: Run, tmp_path: Path) -> None:
    run("out", "--features-dtype", "float16")
    (shard,) = (tmp_path / "out" / "features" / "train").glob("features-*.safetensors")
    assert load_file(shard)["features"].dtype == torch.float16
    changed = str(run("out", "--features-dtype", "float32", expect=1).exception)
    assert "features_dtype was float16 and is float32" in changed


def test_online_is_the_cached_run(run: Run, tmp_path: Path) -> None:
    run("cached")
    run("online", "--features", "online")
    cached, online = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("cached", "online"))
    assert not (tmp_path / "online" / "features").exists()
    assert online["draft_vocabulary_coverage"] == pytest.approx(cached["draft_vocabulary_coverage"], abs=1e-5)
    found, wanted = ([entry["loss"] for entry in of["history"] if "loss" in entry] for of in (online, cached))
    assert found == pytest.approx(wanted, abs=1e-3)


def test_another_recipe_in_the_same_folder_is_refused(run: Run, tmp_path: Path) -> None:
    run("out", "--max-minutes", "0.000001")
    refused = run("out", "--learning-rate", "0.5", expect=1).exception
    assert "learning_rate was 0.001 and is 0.5" in str(refused)
    assert "\n" not in str(refused)
    run("out", "--learning-rate", "0.5", "--overwrite-output-dir")
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["learning_rate"] == 0.5
    (tmp_path / "out" / "recipe.yaml").unlink()
    assert "no recipe.yaml to tell" in str(run("out", expect=1).exception)


def test_a_warm_start_keeps_vocabulary_and_boundaries(run: Run, tmp_path: Path) -> None:
    run("first", "--boundaries", "1", "--boundaries", "3", "--boundaries", "6", draft_vocab_size=30)
    first = Eagle3DraftModel.from_pretrained(tmp_path / "first")
    run("second", "--init", str(tmp_path / "first"), draft_vocab_size=None)
    second = Eagle3DraftModel.from_pretrained(tmp_path / "second")
    assert first.config.target_boundaries == second.config.target_boundaries == [1, 3, 6]
    assert torch.equal(first.d2t, second.d2t)
    assert torch.equal(first.t2d, second.t2d)
    assert not torch.equal(first.fc.weight, second.fc.weight)


def test_an_adapter_from_the_command(run: Run, target: LlamaForCausalLM, tmp_path: Path) -> None:
    run("first")
    told = run("adapter", "--init", str(tmp_path / "first"), "--lora-rank", "2", draft_vocab_size=None).output
    assert "the adapter of the best checkpoint" in told
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    head = Eagle3DraftModel.from_pretrained(tmp_path / "first", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(head, str(tmp_path / "adapter"))
    target.generate(torch.tensor([[3, 4, 5]]), assistant_model=loaded, max_new_tokens=8)
    record = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert record["recipe"]["lora_rank"] == 2


@pytest.mark.slow
def test_accelerate_launch(run: Run, tmp_path: Path) -> None:
    """Two gloo processes under DDP, as `accelerate launch` starts them, have the losses of one accumulating two."""
    run("one", gradient_accumulation_steps=2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("gradient_accumulation_steps: 2", "gradient_accumulation_steps: 1"))
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "--module"]
    command = ["hf_eagle3.cli", "train", "--config", str(recipe), "--output-dir", str(tmp_path / "two")]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launch, *command]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bonus included") == 1
    one, two = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    found, wanted = ([entry["loss"] for entry in of["history"] if "loss" in entry] for of in (two, one))
    print(f"one {wanted}\ntwo {found}")
    assert found == pytest.approx(wanted, abs=1e-4)


def test_a_loss_that_is_no_number_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Eagle3Trainer, "steps_now", lambda self: 1)
    assert "loss is nan at step" in str(run("out", expect=1, learning_rate=1e38, max_grad_norm=0.0).exception)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"data": None}, "give --data"), ({"draft_vocab_size": 99}, "99 tokens"), ({"lora_rank": 3}, "needs a head"),
     ({"init": "no/such/head", "draft_vocab_size": None}, "no/such/head"), ({"max_step": 3}, "mean max_steps")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(run: Run, changes: dict[str, Any], told: str) -> None:
    refused = run("out", expect=1, **changes).exception
    assert isinstance(refused, (ValueError, OSError))
    assert told in str(refused)


def test_data_that_holds_evaluation_questions_is_refused(
    run: Run, tokenizer: PreTrainedTokenizerFast, target: LlamaForCausalLM, tmp_path: Path
) -> None:
    words = tokenizer.decode(own_rows(target)[7]["input_ids"][:10])
    (tmp_path / "held.txt").write_text(f"Please, {words} now\n")
    refused = run("out", "--exclude", str(tmp_path / "held.txt"), expect=1)
    assert "share 8 words in a row with an evaluation question" in str(refused.exception)
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    (tmp_path / "other.txt").write_text("nothing of what the small target ever said to anybody\n")
    told = run("out", "--exclude", str(tmp_path / "other.txt")).output
    assert "none of 20 conversations shares 8 words in a row" in told
