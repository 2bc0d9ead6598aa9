"""The operator as torch sees it: fake tensors, compiled graphs, and no gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grid
import pytest
import torch
import trees
from cases import Case, Inputs, batch_of
from subject import tree_attention
from torch._dynamo.testing import CompileCounterWithBackend
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensorMode

_Operator = OpOverload | OpOverloadPacket

_CASES = {
    "plain": Case(batch_of(trees.bushy(33))),
    "unlike value dim": Case(batch_of(trees.bushy(33)), value_dim=80),
    "prefix length on the device": grid.PADDING["padding and prefix length on the device"],
    "window": grid.WINDOWS["window, depths given"],
    "all at once": grid.EVERYTHING["all at once"],
}
_EACH_CASE = pytest.mark.parametrize("case", _CASES.values(), ids=_CASES.keys())


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class _Captured:
    """A backend that keeps the graphs it is given, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []
        self.calls: list[tuple[_Operator, tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        self.graphs.append(graph)
        return lambda *arguments: _Recorder(graph, self).run(*arguments)

    @property
    def operators(self) -> list[_Operator]:
        targets = [node.target for graph in self.graphs for node in graph.graph.nodes]
        return [target for target in targets if isinstance(target, _Operator) and "tree_attention" in str(target)]


class _Recorder(torch.fx.Interpreter):
    def __init__(self, graph: torch.fx.GraphModule, captured: _Captured) -> None:
        super().__init__(graph)
        self.captured = captured

    def call_function(self, target: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if target in self.captured.operators:
            self.captured.calls.append((target, arguments, options))
        return super().call_function(target, arguments, options)


@_EACH_CASE
def test_a_compiled_graph_holds_the_operator_whole(case: Case) -> None:
    captured = _Captured()
    inputs = case.inputs()
    inputs.check(inputs.run(torch.compile(tree_attention, fullgraph=True, backend=captured)))
    assert len(captured.graphs) == 1
    assert len(captured.operators) == 1


@_EACH_CASE
def test_operator_passes_torch_s_own_checks(case: Case) -> None:
    captured = _Captured()
    inputs = replace(case, spare=0, pad=None).inputs()  # opcheck compares with equal_nan off
    for name in "qkv":
        setattr(inputs, name, getattr(inputs, name).nan_to_num())
    inputs.run(torch.compile(tree_attention, fullgraph=True, backend=captured))
    ((operator, arguments, options),) = captured.calls
    torch.library.opcheck(operator, arguments, options)


@_EACH_CASE
def test_compiled_by_autograd_s_own_backend(case: Case) -> None:
    inputs = case.inputs()
    inputs.check(inputs.run(torch.compile(tree_attention, fullgraph=True, backend="aot_eager")))


def test_a_growing_cache_does_not_compile_anew() -> None:
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(tree_attention, fullgraph=True, backend=counter, dynamic=True)
    for prefix in (40, 41, 57, 90):
        inputs = replace(_CASES["plain"], prefix=prefix).inputs()
        inputs.check(inputs.run(compiled))
    assert counter.frame_count <= 2


def test_a_static_cache_compiles_once() -> None:
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(tree_attention, fullgraph=True, backend=counter)
    for prefix in (0, 40, 41, 57):
        inputs = Case(batch_of(trees.bushy(33)), prefix=prefix, prefix_on_device=True, spare=100 - prefix).inputs()
        inputs.check(inputs.run(compiled))
    assert counter.frame_count == 1


def test_compiled_within_a_larger_function() -> None:
    def layer(inputs: Inputs, q: torch.Tensor) -> torch.Tensor:
        out = tree_attention(2 * q, inputs.k, inputs.v, inputs.ancestors, **inputs.options)
        return out.flatten(2).sum(-1)

    inputs = _CASES["all at once"].inputs()
    compiled = torch.compile(lambda q: layer(inputs, q), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs.q), layer(inputs, inputs.q))


@_EACH_CASE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_tensors_get_the_real_answer_s_shape(case: Case, dtype: torch.dtype) -> None:
    inputs = replace(case, dtype=dtype).inputs()
    real = inputs.run(tree_attention)
    with FakeTensorMode() as mode:
        fake = tree_attention(
            *(mode.from_tensor(given) for given in (inputs.q, inputs.k, inputs.v, inputs.ancestors)),
            **{
                name: mode.from_tensor(given) if isinstance(given, torch.Tensor) else given
                for name, given in inputs.options.items()
            },
        )
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@_EACH_CASE
def test_meta_tensors_get_the_real_answer_s_shape(case: Case) -> None:
    inputs = case.inputs()
    real = inputs.run(tree_attention)
    meta = tree_attention(
        *(given.to("meta") for given in (inputs.q, inputs.k, inputs.v, inputs.ancestors)),
        **{
            name: given.to("meta") if isinstance(given, torch.Tensor) else given
            for name, given in inputs.options.items()
        },
    )
    assert meta.is_meta
    assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_gradient_is_refused_and_never_lost(name: str) -> None:
    inputs = Case(batch_of(trees.bushy(33)), spare=0).inputs()
    getattr(inputs, name).requires_grad_()
    with pytest.raises(RuntimeError, match="no backward pass"):
        inputs.run(tree_attention)


def test_no_gradient_is_asked_of_a_model_that_only_generates() -> None:
    inputs = Case(batch_of(trees.bushy(33))).inputs()
    inputs.q.requires_grad_()
    with torch.no_grad():
        inputs.check(inputs.run(tree_attention))
    with torch.inference_mode():
        inputs.check(inputs.run(tree_attention))
