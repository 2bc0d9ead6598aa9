"""Targets spread over devices by accelerate, and heads of another precision than their target's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.agreement import compare
from helpers.oracle import oracle
from helpers.targets import GOLDEN, prompt, tiny_target
from transformers import AutoModelForCausalLM

import hf_eagle3

OPTIONS = {"max_new_tokens": 16, "eos_token_id": None}
LAYERS = [f"model.layers.{number}" for number in range(8)]


def spread(folder: Path, **places: str) -> Any:
    """The golden target, each part on the CPU or on disk; `places` name what lies on disk."""
    parts = ["model.embed_tokens", "model.rotary_emb", *LAYERS, "model.norm", "lm_head"]
    where = {part: "disk" if part in places.get("disk", "").split() else "cpu" for part in parts}
    return AutoModelForCausalLM.from_pretrained(
        GOLDEN / "llama_target", dtype=torch.float32, device_map=where, offload_folder=folder
    ).eval()


@pytest.mark.parametrize(
    "disk",
    [
        " ".join(LAYERS[3:]),
        "model.embed_tokens",
        f"model.embed_tokens {' '.join(LAYERS[:5])} lm_head",
    ],
    ids=["later layers", "embeddings", "both ends"],
)
def test_target_partly_on_disk(golden_target, golden_head, tmp_path: Path, disk: str) -> None:
    target = spread(tmp_path, disk=disk)
    assert {"cpu", "disk"} <= set(target.hf_device_map.values())
    ids = prompt(12, vocabulary=500)
    pair = compare(target, golden_head, OPTIONS, input_ids=ids)
    whole = compare(golden_target, golden_head, OPTIONS, input_ids=ids)
    assert pair.drafted.sequences.tolist() == whole.drafted.sequences.tolist()
    assert pair.drafted.acceptance_lengths == whole.drafted.acceptance_lengths


def test_target_offloaded_to_memory(golden_target, golden_head) -> None:
    """accelerate's `cpu_offload`: the weights are on `meta` but while their module runs."""
    from accelerate import cpu_offload

    target = AutoModelForCausalLM.from_pretrained(GOLDEN / "llama_target", dtype=torch.float32).eval()
    target = cpu_offload(target, execution_device=torch.device("cpu"))
    assert target.lm_head.weight.is_meta
    ids = prompt(12, vocabulary=500)
    pair = compare(target, golden_head, OPTIONS, input_ids=ids)
    assert pair.plain.sequences.tolist() == golden_target.generate(ids, **OPTIONS).tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eagle3_tree"])
def test_a_target_that_is_offloaded_when_it_is_first_met(attention: str) -> None:
    """The probe too has to find a device for its tokens, and a packed tree passes accelerate's hooks."""
    from accelerate import cpu_offload

    target = tiny_target(max_position_embeddings=509, attention=attention)
    target = cpu_offload(target, execution_device=torch.device("cpu"))
    compare(target, oracle(target), {"max_new_tokens": 12}, input_ids=prompt())


@pytest.mark.parametrize("offloaded", [False, True], ids=["on disk", "in memory"])
def test_a_head_of_eagle1_predicts_with_offloaded_output_embeddings(
    golden_target, golden_eagle1_head, offloaded: bool, tmp_path: Path
) -> None:
    from accelerate import cpu_offload

    target = spread(tmp_path, disk="" if offloaded else "lm_head")
    if offloaded:
        target = cpu_offload(target, execution_device=torch.device("cpu"))
    assert target.lm_head.weight.is_meta
    ids = prompt(12, vocabulary=500)
    pair = compare(target, golden_eagle1_head, OPTIONS, least=1.2, input_ids=ids)
    whole = compare(golden_target, golden_eagle1_head, OPTIONS, input_ids=ids)
    assert pair.drafted.acceptance_lengths == whole.drafted.acceptance_lengths


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_head_of_eagle1_in_another_dtype_than_the_output_embeddings_it_borrows(
    golden_target, dtype: torch.dtype
) -> None:
    head = hf_eagle3.load_head(GOLDEN / "eagle1_llama_head", dtype=dtype)
    compare(golden_target, head, OPTIONS, least=1.2, input_ids=prompt(12, vocabulary=500))


def test_head_under_a_device_map(golden_target, tmp_path: Path) -> None:
    head = hf_eagle3.Eagle3DraftModel.from_pretrained(
        GOLDEN / "eagle3_llama_head", dtype=torch.float32, device_map="cpu"
    )
    compare(golden_target, head, OPTIONS, input_ids=prompt(12, vocabulary=500))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_head_of_another_dtype(golden_target, dtype: torch.dtype) -> None:
    head = hf_eagle3.Eagle3DraftModel.from_pretrained(GOLDEN / "eagle3_llama_head", dtype=dtype).eval()
    assert head.dtype == dtype
    pair = compare(golden_target, head, OPTIONS, least=1.2, input_ids=prompt(12, vocabulary=500))
    assert head.dtype == dtype
    assert pair.drafted.past_key_values.layers[0].keys.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "eagle3_tree"])
def test_target_of_half_precision(golden_head, dtype: torch.dtype, attention: str) -> None:
    """There a batched forward may turn a near tie, so only the first tokens are held against plain `generate`; but the
    drafts must be accepted about as often."""
    target = AutoModelForCausalLM.from_pretrained(
        GOLDEN / "llama_target", dtype=dtype, attn_implementation=attention
    ).eval()
    call = {"max_new_tokens": 24, "eos_token_id": None}
    ids = prompt(12, vocabulary=500)
    out = target.generate(ids, **call, assistant_model=golden_head, return_dict_in_generate=True)
    plain = target.generate(ids, **call)
    assert out.sequences[0, : 12 + 4].tolist() == plain[0, : 12 + 4].tolist()
    lengths = out.acceptance_lengths[0]
    print(f"mean acceptance length {sum(lengths) / len(lengths):.2f}")
    assert sum(lengths) / len(lengths) > 1.2


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_float64_target(family: str) -> None:
    """The dtype in which a divergence is adjudicated."""
    target = tiny_target(family).double()
    compare(target, oracle(target), {"max_new_tokens": 24}, input_ids=prompt())
