"""On a GPU: `eagle3_tree` is chosen by itself, runs the kernel, and gives plain `generate`'s tokens in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.agreement import compare, mean_acceptance
from helpers.oracle import oracle
from helpers.targets import prompt, tiny_target
from helpers.trees import left_padded

from hf_eagle3 import embedded, switching
from hf_eagle3.attention import EAGLE3_TREE, backend_of
from hf_eagle3.tree_kernel import tree_kernel

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

WINDOWED = ("mistral", "gemma3", "gemma2", "gpt_oss")


def on_gpu(family: str, **fields: Any):
    """A tiny target as transformers would load it, its heads as wide as a real one's can be narrow."""
    return tiny_target(family, attention=None, hidden_size=64, head_dim=16, **fields).to("cuda")


@pytest.mark.parametrize("family", ["llama", "qwen3", *WINDOWED])
def test_greedy(family: str) -> None:
    fields = {"sliding_window": 12} if family in WINDOWED else {}
    target = on_gpu(family, **fields)
    before = backend_of(target)
    head = oracle(target).to("cuda")
    ids, mask = left_padded(prompt(), 3)
    options = {"max_new_tokens": 48, "return_dict_in_generate": True}
    inputs = {"input_ids": ids.cuda(), "attention_mask": mask.cuda()}
    plain = target.generate(**inputs, **options).sequences.tolist()  # before the head has met it
    compare(target, head, {"max_new_tokens": 48}, least=1.5, **inputs)
    assert backend_of(target) == EAGLE3_TREE, f"not chosen; it runs {before}"
    assert not tree_kernel().is_reference
    assert target.generate(**inputs, **options).sequences.tolist() == plain
    switching.restore_all()
    assert backend_of(target) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embedded_pair(dtype: torch.dtype) -> None:
    """Token for token in float32; in bfloat16, where rounding turns near ties, the drafts are still good ones."""
    target, tokenizer = embedded.load(dtype=dtype, device="cuda")
    head = embedded.load_head(dtype=dtype, device="cuda")
    chat = [{"role": "user", "content": "Explain in a few sentences why the sky is blue."}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    inputs, call = inputs.to("cuda"), {"max_new_tokens": 96, "do_sample": False, "return_dict_in_generate": True}
    plain = target.generate(**inputs, **call).sequences.tolist()
    drafted = target.generate(**inputs, **call, assistant_model=head)
    assert backend_of(target) == EAGLE3_TREE
    if dtype == torch.float32:
        assert drafted.sequences.tolist() == plain
    assert mean_acceptance(drafted) > 1.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_targets_are_let_in(dtype: torch.dtype) -> None:
    """The probe's tolerance is enough for the kernel's rounding: chosen, and not declined."""
    target = on_gpu("llama").to(dtype)
    target.generate(prompt().cuda(), max_new_tokens=8, assistant_model=oracle(target).to("cuda"))
    assert backend_of(target) == EAGLE3_TREE
