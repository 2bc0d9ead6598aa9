"""A tiny target, its head, a word-level chat tokenizer: small enough that every test here takes a moment."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_eagle3.configuration_eagle3 import Eagle3Config
from hf_eagle3.modeling_eagle3 import Eagle3DraftModel

TEMPLATE = (
    "{% for message in messages %}<s> {{ message['role'] }} : {{ message['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant : {% endif %}"
)
VOCABULARY = 64


@pytest.fixture
def target() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    target = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        target.lm_head.weight[1] *= 2.5  # so that turns do end now and then
    return target


@pytest.fixture
def head(target: LlamaForCausalLM) -> Eagle3DraftModel:
    torch.manual_seed(1)
    head = Eagle3DraftModel(Eagle3Config.from_target(target.config, draft_vocab_size=40, initializer_range=0.2))
    head.set_draft_vocabulary(torch.arange(40))
    return head


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
