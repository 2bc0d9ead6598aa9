"""A head that computes nonsense may waste time, but never tokens: the target decides."""

from __future__ import annotations

import pytest
import torch
from helpers.targets import prompt, tiny_target

from hf_eagle3 import Eagle3Config, Eagle3DraftModel


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_head_whose_states_overflow(value: float) -> None:
    """In half precision a deep level may give NaN, which sorts above every number."""
    target = tiny_target()
    head = Eagle3DraftModel(Eagle3Config.from_target(target.config)).eval()
    steps = 0

    def overflow(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return output * value if steps % 3 == 0 else output

    head.layers[0].mlp.register_forward_hook(overflow)
    plain = target.generate(prompt(), max_new_tokens=20)
    drafted = target.generate(prompt(), max_new_tokens=20, assistant_model=head)
    assert steps > 3
    assert drafted.tolist() == plain.tolist()


def test_uninstall_leaves_another_packages_wrap_alone() -> None:
    """Somebody who wrapped `generate` after us keeps their wrap, and ours in it hands everything on."""
    from transformers.generation import GenerationMixin

    import hf_eagle3

    ours, calls = GenerationMixin.generate, []

    def theirs(self, *args, **kwargs):
        calls.append(1)
        return ours(self, *args, **kwargs)

    GenerationMixin.generate = theirs
    try:
        hf_eagle3.uninstall()
        assert GenerationMixin.generate is theirs
        tiny_target().generate(prompt(), max_new_tokens=2)
        assert calls == [1]
    finally:
        GenerationMixin.generate = ours
        hf_eagle3.install()
    assert GenerationMixin.generate is ours
