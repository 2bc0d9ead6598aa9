"""What --write changes in a head's folder, and what it leaves as it was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_eagle3
from hf_eagle3.doctor import prescription
from hf_eagle3.doctor.alternatives import Change, alternatives
from hf_eagle3.doctor.prescription import check_in_place, check_new_folder, write_in_place, write_new
from hf_eagle3.doctor.subject import complete, open_subject

NORM_OUTPUT = Change("norm_output", "norm_output on", {"norm_output": True})


@pytest.fixture
def folder(pair_folders, tmp_path: Path) -> Path:
    shutil.copytree(pair_folders.head, tmp_path / "head")
    return tmp_path / "head"


def _swapped(subject) -> Change:
    target = hf_eagle3.Eagle3Config(num_hidden_layers=8, vocab_size=subject.config.vocab_size)
    choices = alternatives(subject.config, complete(subject.tensors, subject.config), target)
    return next(change for change in choices if change.kind == "norms")


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_field_changes_in_the_config_and_nothing_else(folder: Path) -> None:
    before = _contents(folder)
    told = write_in_place(open_subject(folder), {"norm_output": NORM_OUTPUT})
    assert told == [f"{folder}/config.json: norm_output = true"]
    after = _contents(folder)
    assert {name for name in after if after[name] != before.get(name)} == {"config.json"}
    fields = json.loads(before["config.json"])
    assert json.loads(after["config.json"]) == {**fields, "norm_output": True}
    assert hf_eagle3.load_head(folder).config.norm_output


def test_swapped_norms_change_two_tensors_and_no_config(folder: Path) -> None:
    head = hf_eagle3.load_head(folder)
    torch.nn.init.normal_(head.layers[0].hidden_norm.weight, 1.0, 0.1)
    head.save_pretrained(folder)
    before, tensors = _contents(folder), load_file(folder / "model.safetensors")
    mode = (folder / "model.safetensors").stat().st_mode
    subject = open_subject(folder)
    told = write_in_place(subject, {"norms": _swapped(subject)})
    assert len(told) == 1
    assert told[0].endswith("layers.0.hidden_norm.weight, layers.0.input_layernorm.weight")
    after, mended = _contents(folder), load_file(folder / "model.safetensors")
    assert {name for name in after if after[name] != before.get(name)} == {"model.safetensors"}
    assert torch.equal(mended["layers.0.hidden_norm.weight"], tensors["layers.0.input_layernorm.weight"])
    assert torch.equal(mended["layers.0.input_layernorm.weight"], tensors["layers.0.hidden_norm.weight"])
    others = {name for name in tensors if "0.hidden_norm" not in name and "0.input_layernorm" not in name}
    assert all(torch.equal(mended[name], tensors[name]) for name in others)
    assert mended.keys() == tensors.keys()
    assert (folder / "model.safetensors").stat().st_mode == mode


def _as_released(folder: Path) -> None:
    """The head as yuhuili's are: a pickle with `midlayer.` names and a config that calls itself a Llama."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("layers.0.", "midlayer."): tensor.half().clone() if tensor.is_floating_point() else tensor
               for name, tensor in tensors.items()}  # fmt: skip
    torch.save(renamed, folder / "pytorch_model.bin")
    fields = json.loads((folder / "config.json").read_text())
    kept = ("vocab_size", "draft_vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
            "num_key_value_heads", "rms_norm_eps", "max_position_embeddings")  # fmt: skip
    released = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **{name: fields[name] for name in kept}}
    (folder / "config.json").write_text(json.dumps(released))
    (folder / "model.safetensors").unlink()


def test_a_head_of_another_layout_becomes_ours(folder: Path) -> None:
    _as_released(folder)
    pickle = (folder / "pytorch_model.bin").read_bytes()
    before = hf_eagle3.load_head(folder)
    told = write_in_place(open_subject(folder), {"norm_output": NORM_OUTPUT})
    assert len(told) == 2
    after = hf_eagle3.load_head(folder)
    assert after.config.norm_output
    assert after.config.model_type == "eagle3"
    assert after.dtype == before.dtype == torch.float16
    assert all(torch.equal(before.state_dict()[name], tensor) for name, tensor in after.state_dict().items())
    assert (folder / "pytorch_model.bin").read_bytes() == pickle


@pytest.mark.parametrize("released", [False, True])
def test_a_new_folder_gets_the_whole_head(folder: Path, tmp_path: Path, released: bool) -> None:
    if released:
        _as_released(folder)
    before, old = _contents(folder), hf_eagle3.load_head(folder)
    write_new(open_subject(folder), {"norm_output": NORM_OUTPUT}, tmp_path / "new" / "head")
    new = hf_eagle3.load_head(tmp_path / "new" / "head")
    assert new.config.norm_output
    assert new.dtype == old.dtype
    assert all(torch.equal(old.state_dict()[name], tensor) for name, tensor in new.state_dict().items())
    assert _contents(folder) == before
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["head"]


def test_a_write_that_fails_leaves_the_folder_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, before = open_subject(folder), _contents(folder)
    subject.tensors["layers.0.hidden_norm.weight"] = subject.tensors["layers.0.hidden_norm.weight"] * 2

    def fail(tensors, path, metadata) -> None:
        save_file(tensors, path, metadata)
        raise OSError("no space left")

    monkeypatch.setattr(prescription, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        write_in_place(subject, {"norms": _swapped(subject)})
    assert _contents(folder) == before


def test_places_that_cannot_be_written_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"some/head is no folder of this machine; pass --write-to DIR"):
        check_in_place("some/head")
    with pytest.raises(ValueError, match="not an empty folder"):
        check_new_folder(folder)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"may not be written to; pass --write-to DIR"):
        check_in_place(folder)
