"""Targets whose decoder is a part of them, or whose layers choose among experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.agreement import compare
from helpers.oracle import oracle
from helpers.targets import VOCABULARY, prompt
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

IMAGE = 90
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.6,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def seeded(cls: type, config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = cls(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


@pytest.fixture(scope="module")
def qwen2_vl() -> PreTrainedModel:
    """Its positions have three kinds: time, height and width."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=TEXT | {"rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    return seeded(Qwen2VLForConditionalGeneration, config)


def test_text_alone(qwen2_vl) -> None:
    compare(qwen2_vl, oracle(qwen2_vl), {"max_new_tokens": 24}, input_ids=prompt(vocabulary=IMAGE))


def test_an_image_with_positions_of_three_kinds(qwen2_vl) -> None:
    ids = torch.tensor([[5, 6, 92, *[IMAGE] * 4, 93, 7, 8]])
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).long(),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "pixel_values": torch.randn(16, 3 * 2 * 4 * 4, generator=generator),
    }
    compare(qwen2_vl, oracle(qwen2_vl), {"max_new_tokens": 24}, **inputs)


def test_an_image_in_llava() -> None:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "projection_dim": 16,
    }
    config = LlavaConfig(
        text_config=TEXT | {"model_type": "llama"}, vision_config=vision, image_token_index=IMAGE, image_seq_length=4
    )
    target = seeded(LlavaForConditionalGeneration, config)
    inputs = {
        "input_ids": torch.tensor([[5, 6, *[IMAGE] * 4, 7, 8]]),
        "pixel_values": torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    }
    compare(target, oracle(target), {"max_new_tokens": 24}, **inputs)


def test_experts() -> None:
    target = seeded(MixtralForCausalLM, MixtralConfig(**TEXT, num_local_experts=4))
    compare(target, oracle(target), {"max_new_tokens": 24}, input_ids=prompt())
