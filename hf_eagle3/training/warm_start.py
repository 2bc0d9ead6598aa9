"""A head to go on from: any that we can load, whole or with a LoRA adapter on it.

Its draft vocabulary, boundaries and everything else of its config are kept.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling_eagle3 import Eagle3DraftModel
from ..pairing import check_pair
from ..release import install_command

# Every linear layer of a head, the draft vocabulary's rows among them.
ADAPTED = ("fc", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


def warm_head(source: str, target: PreTrainedModel) -> Eagle3DraftModel:
    """The head of `source` (folder or Hub id), float32, checked to belong to `target`; embeddings that it brings stay
    as they are.

    Raises:
        OSError: if there is no such head.
        ValueError: if it is broken, or was made for another target.
    """
    head = Eagle3DraftModel.from_pretrained(source, dtype=torch.float32)
    check_pair(target, head)
    if head.embed_tokens is not None:
        head.embed_tokens.requires_grad_(False)
    return head


def adapted(head: Eagle3DraftModel, rank: int, seed: int = 0) -> Any:
    """A `PeftModel` that trains a LoRA adapter (arXiv 2106.09685) of `rank`, scaled by 2, on every linear layer.

    Raises:
        ImportError: without peft.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(f"Training an adapter needs peft: {install_command('train')}.") from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(ADAPTED))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(head, config)


def save_adapter(model: Any, folder: str | os.PathLike[str]) -> None:
    """Save the adapter alone; peft would put the whole output matrix beside it, as if it had grown."""
    model.save_pretrained(folder, save_embedding_layers=False)
