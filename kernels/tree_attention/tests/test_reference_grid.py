"""The reference, and the public function on CPU tensors, against attention by definition in float64."""

from __future__ import annotations

from dataclasses import replace

import grid
import pytest
import torch
from cases import Case
from subject import tree_attention, tree_attention_reference

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", _DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", grid.ALL.values(), ids=grid.ALL.keys())
def test_reference_is_attention_by_definition(case: Case, dtype: torch.dtype) -> None:
    inputs = replace(case, dtype=dtype).inputs()
    answer = inputs.run(tree_attention_reference)
    inputs.check(answer)
    assert torch.equal(inputs.run(tree_attention), answer), "the public function takes another path on the CPU"


@pytest.mark.parametrize("layout", ["length before heads", "a slice"])
def test_layout_does_not_matter(layout: str) -> None:
    plain = grid.EVERYTHING["all at once"]
    answers = [replace(plain, layout=layout).inputs().run(tree_attention) for layout in ("contiguous", layout)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_prefix_length_may_be_any_integer_tensor_of_one_element(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = grid.PREFIXES["nothing to spare"].inputs()
    length = torch.full(shape, inputs.case.prefix, dtype=dtype)
    inputs.check(tree_attention(inputs.q, inputs.k, inputs.v, inputs.ancestors, prefix_len=length))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_padding_and_depths_may_be_any_integers(dtype: torch.dtype) -> None:
    inputs = grid.WINDOWS["window, depths unlike the ancestors"].inputs()
    options = inputs.options | {"depth": inputs.options["depth"].to(dtype), "pad": torch.zeros(1, dtype=dtype)}
    inputs.check(tree_attention(inputs.q, inputs.k, inputs.v, inputs.ancestors, **options))


def test_inputs_are_left_as_they_were() -> None:
    inputs, untouched = (grid.EVERYTHING["all at once"].inputs() for _ in range(2))
    inputs.run(tree_attention)
    for name in ("q", "k", "v", "ancestors", "sinks"):
        left, before = getattr(inputs, name), getattr(untouched, name)
        assert torch.equal(left.nan_to_num(), before.nan_to_num()), name
