"""Run with the python of an environment that holds `speculators`, and not this package: their model's logits.

    python speculators_peer.py STEPS CASE...

Each CASE is a folder with an exported `head` and `inputs.safetensors`: `hidden_states` [1, rows, boundaries * hidden]
(float64) and `input_ids` [1, rows]. It gets `outputs.safetensors`: `logits.N` [rows, draft vocabulary] of step N. Row
t starts from its own state and sees the rows before it; at step N it has read the tokens t to t + N, and fed back its
output.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# The target's own, which the library loads to train with and never saves.
THEIRS = {"verifier_norm.weight", "verifier_lm_head.weight"}


def main(steps: int, case: Path) -> None:
    from speculators import SpeculatorModel, SpeculatorModelConfig

    config = SpeculatorModelConfig.from_pretrained(case / "head")
    # Their flex attention is for GPUs; this is their own choice for tests.
    config.transformer_layer_config._attn_implementation = "eager"
    model = SpeculatorModel.from_pretrained(case / "head", config=config, dtype=torch.float64).eval()
    loaded, stored = model.state_dict(), load_file(case / "head" / "model.safetensors")
    if loaded.keys() - THEIRS != stored.keys():
        raise SystemExit(f"{case}: file and model differ in {sorted((loaded.keys() - THEIRS) ^ stored.keys())}")
    for name, tensor in stored.items():
        if not torch.equal(loaded[name], tensor.to(loaded[name].dtype)):
            raise SystemExit(f"{case}: {name} was not taken from the file")
    logits: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda module, args, output: logits.append(output[0]))
    given = load_file(case / "inputs.safetensors")
    with torch.no_grad():
        model(
            hidden_states=given["hidden_states"],
            input_ids=given["input_ids"],
            document_ids=torch.zeros_like(given["input_ids"]),
            position_ids=torch.arange(given["input_ids"].shape[1])[None],  # their trainer begins at 1, engines at 0
            ttt_steps=steps,
        )
    save_file({f"logits.{step}": each.contiguous() for step, each in enumerate(logits)}, case / "outputs.safetensors")


if __name__ == "__main__":
    for folder in sys.argv[2:]:
        main(int(sys.argv[1]), Path(folder))
