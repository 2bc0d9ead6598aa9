"""What every test may rely on: no network, two threads, and a tiny pair of target and head on disk."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

# Models here are tiny: a second thread costs more in waiting than it computes.
torch.set_num_threads(1)

_WORDS = 60
_left_out: list[str] = []
_CHAT = (
    "{% for message in messages %}<user> {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<answer> {% endif %}"
)


def pytest_deselected(items: list[pytest.Item]) -> None:
    _left_out.extend(item.name for item in items if item.get_closest_marker("space"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _left_out and "not space" in config.option.markexpr:
        terminalreporter.write_line(
            f"Left out: the demo in a browser ({len(_left_out)} tests); `make test-space` runs it."
        )


@dataclass(frozen=True)
class PairFolders:
    """Where a tiny random target with its tokenizer, and a random head for it, are saved."""

    target: str
    head: str


@pytest.fixture(scope="session")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> PairFolders:
    """A random Llama of eight layers over 64 words, w0 ... w59 and four special ones, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    import hf_eagle3

    folder: Path = tmp_path_factory.mktemp("pair")
    special = ["<unk>", "<user>", "<answer>", "<end>"]
    vocabulary = {word: number for number, word in enumerate([*special, *(f"w{n}" for n in range(_WORDS))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = {"unk_token": "<unk>", "eos_token": "<end>", "pad_token": "<end>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **roles)
    tokenizer.chat_template = _CHAT
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=vocabulary["<end>"],
        pad_token_id=vocabulary["<end>"],
    )
    torch.manual_seed(0)
    target = LlamaForCausalLM(config)
    target.save_pretrained(folder / "target")
    tokenizer.save_pretrained(folder / "target")
    head = hf_eagle3.Eagle3DraftModel(hf_eagle3.Eagle3Config.from_target(config))
    head.save_pretrained(folder / "head")
    return PairFolders(str(folder / "target"), str(folder / "head"))
