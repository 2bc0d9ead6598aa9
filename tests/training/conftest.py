"""A tiny target, its head, a word-level chat tokenizer: small enough that every test here takes a moment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_training import VOCABULARY, own_rows, tiny_head, tiny_target
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_eagle3.modeling_eagle3 import Eagle3DraftModel

TEMPLATE = (
    "{% for message in messages %}<s> {{ message['role'] }} : {{ message['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant : {% endif %}"
)


@pytest.fixture
def target() -> LlamaForCausalLM:
    return tiny_target()


@pytest.fixture
def head(target: LlamaForCausalLM) -> Eagle3DraftModel:
    return tiny_head(target)


@pytest.fixture
def rows(target: LlamaForCausalLM) -> list[dict[str, Any]]:
    """24 conversations that the target itself continued."""
    return own_rows(target)


@pytest.fixture
def sequence() -> tuple[torch.Tensor, torch.Tensor]:
    """Features `[1, 12, 3 * 32]` and token embeddings `[1, 12, 32]`."""
    torch.manual_seed(2)
    return torch.randn(1, 12, 96), torch.randn(1, 12, 32)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<s>", "</s>", "<unk>", "system", "user", "assistant", ":", "You", "are", "a", "helpful", "the"]
    words += [f"w{i}" for i in range(VOCABULARY - len(words))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer
