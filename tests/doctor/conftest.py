"""The embedded pair and its answers, made once: trials tell faults apart only where a head was trained."""

from __future__ import annotations

import pytest
import torch

from hf_eagle3 import embedded
from hf_eagle3.doctor import Teacher
from hf_eagle3.doctor.prompts import PROMPTS


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    """Eight short answers of the embedded target in float32."""
    target, tokenizer = embedded.load(torch.float32)
    return Teacher(target, tokenizer, PROMPTS[:8], new_tokens=32)
