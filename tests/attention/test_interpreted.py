"""The kernel itself under `generate`, by Triton's interpreter: in its own process, as Triton decides it on import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
from helpers.agreement import compare
from helpers.oracle import oracle
from helpers.targets import prompt, tiny_target
from helpers.trees import left_padded
from hf_eagle3.tree_attention import kernel

calls, run = [], kernel.tree_attention_kernel
kernel.tree_attention_kernel = lambda *args, **options: calls.append(1) or run(*args, **options)
sizes = {"num_hidden_layers": 2, "hidden_size": 64, "head_dim": 16, "sliding_window": 12}
for family in ("mistral", "gemma2", "gpt_oss"):
    mixed = {} if family == "mistral" else {"layer_types": ["sliding_attention", "full_attention"]}
    target = tiny_target(family, attention="eagle3_tree", **sizes, **mixed)
    ids, mask = left_padded(prompt(), 3)
    before = len(calls)
    pair = compare(
        target, oracle(target, boundaries=[1]), {"max_new_tokens": 20}, least=1.5, input_ids=ids, attention_mask=mask
    )
    assert len(calls) - before == 2 * (2 + len(pair.drafted.acceptance_lengths[0])), "two trees are the probe's"
print("done")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_same_tokens_past_windows_with_padding_caps_and_sinks() -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
