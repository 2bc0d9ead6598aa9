"""The speculators library itself, in an environment of its own, loads our exports and computes what our heads do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from helpers.export_heads import KINDS, LAYERS, VOCABULARY, WIDTH, tiny_head
from helpers.targets import tiny_target
from huggingface_hub.constants import HF_HOME
from safetensors.torch import load_file, save_file

from hf_eagle3.hub.export import export_head

LIBRARY = "speculators==0.9.0"
PEER = Path(__file__).parents[1] / "helpers" / "speculators_peer.py"
ROWS, STEPS = 9, 3
# In float64, but for what both do in float32: norms and rotations.
TOLERANCE = 1e-5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library() -> str:
    """The python of an environment that holds the library, made once in the cache folder; some minutes, 2 GB."""
    folder = Path(HF_HOME) / "hf_eagle3" / f"env-{LIBRARY.replace('==', '-')}"
    python, whole = folder / "bin" / "python", folder / ".whole"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not whole.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            pip(python, "install", "torch==2.13.0", LIBRARY)
            # Wheels of these may be built for another torch than pip found, and its models need neither.
            pip(python, "uninstall", "--yes", "torchvision", "torchaudio")
            whole.touch()
    return str(python)


def pip(python: Path, *arguments: str) -> None:
    done = subprocess.run([str(python), "-m", "pip", "--quiet", *arguments], capture_output=True, text=True)
    unreachable = ("No matching distribution", "Max retries exceeded", "NewConnectionError", "Temporary failure")
    if done.returncode and any(sign in done.stderr for sign in unreachable):
        pytest.skip(f"PyPI cannot be reached for {LIBRARY}: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def theirs(library: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Inputs, and logits of every step, of every kind of head that the layout can say."""
    root = tmp_path_factory.mktemp("speculators")
    target = tiny_target(num_hidden_layers=LAYERS)
    target.save_pretrained(root / "target")
    cases = [kind for kind in KINDS if "speculators" in KINDS[kind].layouts]
    generator = torch.Generator().manual_seed(2)
    for kind in cases:
        head = tiny_head(KINDS[kind])
        export_head(head, root / kind / "head", "speculators", root / "target", engine_version="0.9.0")
        states = torch.randn(
            1, ROWS, WIDTH * head.config.num_target_boundaries, generator=generator, dtype=torch.float64
        )
        ids = torch.randint(0, VOCABULARY, (1, ROWS), generator=generator)
        save_file({"hidden_states": states, "input_ids": ids}, root / kind / "inputs.safetensors")
    command = [library, str(PEER), str(STEPS), *(str(root / kind) for kind in cases)]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    embeddings = {"embeddings": target.get_input_embeddings().weight.detach()}
    return {
        kind: embeddings
        | load_file(root / kind / "inputs.safetensors")
        | load_file(root / kind / "outputs.safetensors")
        for kind in cases
    }


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "speculators" in KINDS[kind].layouts])
@torch.no_grad()
def test_it_computes_the_same_logits(kind: str, theirs: dict[str, dict[str, torch.Tensor]]) -> None:
    """Every row at the first step; then, from every row, a chain that feeds back its own states.

    Their later steps are the trainer's, whose window does not move on with the chain: where there is one, only chains
    that stay inside it are compared.
    """
    head, given = tiny_head(KINDS[kind]).double(), theirs[kind]
    states, ids = given["hidden_states"], given["input_ids"]
    embed = head.embed_tokens.weight if head.embed_tokens is not None else given["embeddings"].double()
    first = head(head.fuse(states), inputs_embeds=embed[ids]).logits[0]
    torch.testing.assert_close(first, given["logits.0"], atol=TOLERANCE, rtol=TOLERANCE)
    compared = 0
    for row in range(ROWS - STEPS + 1):
        out: Any = head(head.fuse(states[:, : row + 1]), inputs_embeds=embed[ids[:, : row + 1]], use_cache=True)
        for step in range(1, STEPS):
            token, cache = ids[:, row + step : row + step + 1], out.past_key_values
            out = head(
                out.last_hidden_state[:, -1:], inputs_embeds=embed[token], past_key_values=cache, use_cache=True
            )
            if head.config.sliding_window is None or row + step < head.config.sliding_window:
                torch.testing.assert_close(
                    out.logits[0, 0], given[f"logits.{step}"][row], atol=TOLERANCE, rtol=TOLERANCE
                )
                compared += 1
    assert compared >= 5
