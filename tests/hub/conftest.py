"""A loopback Hub with the real client pointed at it, and the golden pair, whose head is trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.hub_client import pointed_at
from helpers.hub_server import HubServer
from helpers.targets import GOLDEN
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, PreTrainedModel

import hf_eagle3
from hf_eagle3.embedded import HEAD_NAME

SHIPPED = Path(__file__).resolve().parents[2] / "model_cards" / HEAD_NAME


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


@pytest.fixture
def api(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HfApi:
    return pointed_at(hub, monkeypatch, tmp_path / "home", token="hf_owner")


@pytest.fixture(scope="session")
def golden_target() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "llama_target", dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def golden_head() -> hf_eagle3.Eagle3DraftModel:
    return hf_eagle3.load_head(GOLDEN / "eagle3_llama_head", dtype=torch.float32)


@pytest.fixture(scope="session")
def native_head(golden_head: hf_eagle3.Eagle3DraftModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden head as we save it; tests copy the folder before they write into it."""
    folder = tmp_path_factory.mktemp("native") / "head"
    golden_head.save_pretrained(folder)
    return folder


@pytest.fixture
def trained(native_head: Path, tmp_path: Path) -> Path:
    """A head as a training run and an evaluation leave it: its records beside it, and things that stay at home."""
    folder = Path(shutil.copytree(native_head, tmp_path / "trained"))
    (folder / "training.json").write_text('{"steps": 24}\n')
    (folder / "recipe.yaml").write_text("epochs: 1\n")
    (folder / "evaluation").mkdir()
    shutil.copy(SHIPPED / "evaluation" / "cpu-speed.json", folder / "evaluation")
    (folder / "checkpoint-24").mkdir()
    (folder / "timing.json").write_text("{}")
    return folder
