"""Configs and indexes that no head can have: one sentence each, whatever it would come to further on."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_catalogue import synthesise, variant
from helpers.targets import GOLDEN
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

import hf_eagle3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "eagle3_llama_head", tmp_path / "head"))


def edit(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in {**config, **fields}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def refusal(folder: Path) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        hf_eagle3.load_head(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_attention_heads": 0}, "makes no head"),
        ({"num_attention_heads": "8"}, "makes no head"),
        ({"rms_norm_eps": "small"}, "`rms_norm_eps` is 'small'"),
        ({"eagle_config": "none"}, "makes no head"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, "5"]}}, "makes no head"),
        ({"rope_theta": "many"}, "`rope_theta` is 'many', and no number"),
        ({"rope_scaling": "linear"}, "no object of parameters"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "without low_freq_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"hidden_act": "zzz"}, "`hidden_act` is 'zzz'"),
        ({"draft_vocab_size": None}, "`draft_vocab_size` tells one"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_head(folder: Path, fields: dict[str, Any], said: str) -> None:
    edit(folder, **fields)
    assert said in refusal(folder)


def test_mrope_is_plain_rope_under_either_name(folder: Path) -> None:
    for word in ("type", "rope_type"):
        edit(folder, rope_scaling={word: "mrope", "mrope_section": [1, 1, 2]})
        assert hf_eagle3.load_head(folder).config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_weights_that_are_no_plain_numbers(folder: Path, dtype: torch.dtype) -> None:
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors["fc.weight"] = tensors["fc.weight"].float().to(dtype)
    torch.save(tensors, folder / "pytorch_model.bin")
    assert f"`fc.weight` is stored as {str(dtype).removeprefix('torch.')}" in refusal(folder)


@pytest.mark.parametrize(
    ("index", "said"), [({}, "has no `weight_map`"), ({"weight_map": {"fc.weight": "../other.safetensors"}}, "beside")]
)
def test_an_index_that_names_no_files_of_its_own(folder: Path, index: dict[str, Any], said: str) -> None:
    save_file({"fc.weight": torch.zeros(1)}, folder.parent / "other.safetensors")
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert said in refusal(folder)


def test_the_flag_that_trainers_and_engines_read_differently_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(folder, norm_output=True)
    with caplog.at_level(logging.WARNING, logger="hf_eagle3"):
        hf_eagle3.load_head(folder)
    assert "norm_output=False" in caplog.text


def test_a_config_that_is_handed_over_stays_the_callers(folder: Path) -> None:
    config = hf_eagle3.load_head(folder).config
    config.auto_map = {"AutoModel": "there.Head"}
    head = hf_eagle3.Eagle3DraftModel.from_pretrained(folder, config=config)
    assert config.auto_map == {"AutoModel": "there.Head"}
    assert head.config is not config


def test_what_is_no_head_is_told_by_generate() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=8, **sizes)
    target, ids = LlamaForCausalLM(config).eval(), torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="the name 'owner/head', but a model is needed"):
        target.generate(ids, assistant_model="owner/head")
    with pytest.raises(ValueError, match="a LlamaModel, which cannot generate"):
        target.generate(ids, assistant_model=LlamaModel(config))


def test_a_static_tree_of_truths_is_refused() -> None:
    with pytest.raises(ValueError, match="whole numbers from 0"):
        hf_eagle3.StaticTree.of([[True]])


def test_vicunas_word_for_its_positions_counts(tmp_path: Path) -> None:
    made = synthesise(variant("eagle1_2_official-vicuna_33b"), tmp_path)
    assert "max_position_embeddings" not in made.config
    assert hf_eagle3.load_head(tmp_path).config.max_position_embeddings == made.config["max_sequence_length"]
