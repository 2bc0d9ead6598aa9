"""How long a text may grow on a target: windows, learned positions, and rotary frequencies that change on the way."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    Gemma2Config,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3Config,
)

from hf_eagle3.limits import WINDOW_ADVICE, check_length, last_position

SIZES: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}

# A config, and the longest text that it allows; None: any length.
CASES: dict[str, tuple[PreTrainedConfig, int | None]] = {
    "plain": (LlamaConfig(**SIZES), None),
    "window": (MistralConfig(**SIZES, sliding_window=48), 48),
    "no window": (MistralConfig(**SIZES, sliding_window=None), None),
    "some layers with a window": (Gemma2Config(**SIZES, head_dim=8, sliding_window=40), 40),
    "a window that is not used": (Qwen3Config(**SIZES, sliding_window=40, use_sliding_window=False), None),
    "long rope": (
        Phi3Config(
            **SIZES,
            pad_token_id=0,
            max_position_embeddings=256,
            original_max_position_embeddings=64,
            rope_parameters=LONG,
        ),
        64,
    ),
    "dynamic rope": (LlamaConfig(**SIZES, max_position_embeddings=64, rope_parameters=DYNAMIC), 64),
    "scaled once and for all": (LlamaConfig(**SIZES, max_position_embeddings=256, rope_parameters=YARN), None),
    "learned positions": (GPT2Config(n_positions=64), None),
    "positions by bias": (MptConfig(), None),
}


@pytest.mark.parametrize("name", CASES)
def test_longest_text(name: str) -> None:
    config, limit = CASES[name]
    if limit is None:
        check_length(config, 10, 10**6)
        return
    check_length(config, 10, limit)
    with pytest.raises(ValueError, match=f"{limit + 1} positions.* {limit}[ ,]") as error:
        check_length(config, 10, limit + 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("window", 47), ("long rope", 63), ("dynamic rope", 63), ("learned positions", 63), ("plain", 2047)],
)
def test_last_position_of_a_drafted_token(name: str, expected: int) -> None:
    assert last_position(CASES[name][0], 10) == expected


def test_a_prompt_beyond_the_switch_of_long_rope_meets_no_change() -> None:
    """Every forward then takes the long factors; frequencies of the dynamic kind go on changing."""
    check_length(CASES["long rope"][0], 65, 10**6)
    assert last_position(CASES["long rope"][0], 65) == 255
    with pytest.raises(ValueError, match="after 64 positions"):
        check_length(CASES["dynamic rope"][0], 65, 66)


def test_nothing_limits_positions_by_bias() -> None:
    assert last_position(CASES["positions by bias"][0], 10) is None


# ---------------------------------------------------------------------- windows that trees slide with

CHUNKED = Llama4TextConfig(**SIZES, attention_chunk_size=32, layer_types=["chunked_attention", "full_attention"])


@pytest.mark.parametrize("name", ["window", "some layers with a window"])
def test_windows_that_slide_are_no_limit(name: str) -> None:
    config, _ = CASES[name]
    check_length(config, 10, 10**6, slides=True)
    positions = config.max_position_embeddings
    assert last_position(config, 10, slides=True) == positions - 1


def test_chunks_never_slide() -> None:
    """Nor do rotary frequencies that change."""
    for config, limit in ((CHUNKED, 32), (CASES["long rope"][0], 64)):
        check_length(config, 10, limit, slides=True)
        with pytest.raises(ValueError, match=f"{limit + 1} positions.* {limit}[ ,].*without a head"):
            check_length(config, 10, limit + 1, slides=True, advice="implementation")
        assert last_position(config, 10, slides=True) == limit - 1


@pytest.mark.parametrize("advice", WINDOW_ADVICE)
def test_what_is_said_of_a_window(advice: str) -> None:
    with pytest.raises(ValueError, match="sliding window of 48") as error:
        check_length(CASES["window"][0], 10, 49, advice=advice)
    assert WINDOW_ADVICE[advice] in str(error.value)
