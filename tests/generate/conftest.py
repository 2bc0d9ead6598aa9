"""One tiny target with its oracle for most tests, and the golden pair where a real head is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `helpers` is no package of ours

from helpers.oracle import OracleHead, oracle
from helpers.targets import GOLDEN, tiny_target

import hf_eagle3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Targets this small run several times faster on one thread than on two that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def target() -> PreTrainedModel:
    return tiny_target()


@pytest.fixture
def head(target: PreTrainedModel) -> OracleHead:
    """An oracle that has learned nothing yet."""
    return oracle(target)


@pytest.fixture(scope="session")
def golden_target() -> PreTrainedModel:
    """A Llama of eight layers that the golden head was trained on."""
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "llama_target", dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def golden_eagle1_head() -> hf_eagle3.EagleDraftModel:
    """An EAGLE-1 head of the same target."""
    return hf_eagle3.load_head(GOLDEN / "eagle1_llama_head", dtype=torch.float32)


@pytest.fixture(scope="session")
def golden_head() -> hf_eagle3.Eagle3DraftModel:
    return hf_eagle3.Eagle3DraftModel.from_pretrained(GOLDEN / "eagle3_llama_head", dtype=torch.float32).eval()
