"""The kernels on a GPU: parity with float64 beside torch's own error, CUDA graphs, compiled callers, memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grid
import pytest
import torch
import trees
from cases import Case, Inputs, batch_of
from subject import module, pack_ancestors, tree_attention
from torch.nn.functional import scaled_dot_product_attention

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

_DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"]
)
_TREE = trees.bushy(60)
_LLAMA = Case(batch_of(_TREE), kv_heads=8, group=4, dim=128)
_LAYERS = {
    "Llama-3": _LLAMA,
    "Qwen3": replace(_LLAMA, group=8, kv_heads=4),
    "Gemma-3": replace(_LLAMA, kv_heads=4, group=2, dim=256),
    "gpt-oss without its sinks": replace(_LLAMA, group=8, dim=64),
    "batch of four, padded": replace(
        _LLAMA, parents=batch_of(*(trees.bushy(60, seed) for seed in range(4))), pad=(0, 100, 1, 511)
    ),
    "a static cache": replace(_LLAMA, layout="length before heads", prefix_on_device=True, spare=1000),
    "one node": replace(_LLAMA, parents=batch_of([-1])),
    "many nodes": replace(_LLAMA, parents=batch_of(trees.tall(256))),
    "window": replace(_LLAMA, window=300),
}


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@_DTYPES
@pytest.mark.parametrize("case", grid.ALL.values(), ids=grid.ALL.keys())
def test_kernel_is_attention_by_definition(case: Case, dtype: torch.dtype) -> None:
    inputs = replace(case, dtype=dtype).inputs(DEVICE)
    inputs.check(inputs.run(tree_attention))


@_DTYPES
@pytest.mark.parametrize("prefix", [512, 2048, 8192, 32768])
@pytest.mark.parametrize("layer", _LAYERS.values(), ids=_LAYERS.keys())
def test_error_is_at_most_twice_that_of_torch(layer: Case, prefix: int, dtype: torch.dtype) -> None:
    inputs = replace(layer, prefix=prefix, dtype=dtype).inputs(DEVICE)
    exact = _dense(inputs, torch.float64)
    ours, torchs = (_error(answer, exact) for answer in (inputs.run(tree_attention), _dense(inputs, dtype)))
    print({"ours": ours, "torch": torchs})
    for name, error in ours.items():
        assert error <= 2 * torchs[name] + 1e-7, f"{name} error {error:.2e}, torch's {torchs[name]:.2e}"


@pytest.mark.parametrize("splits", [1, 2, 8, 64])
def test_any_number_of_splits_is_attention_by_definition(splits: int) -> None:
    inputs = replace(_LLAMA, prefix=900, pad=(70,), window=800, sinks=True, softcap=30.0).inputs(DEVICE)
    tiles = module("tuning").Tiles
    plan = module("tuning").Plan(prefix=tiles(64, 32, 4, 2), tree=tiles(16, 32, 4, 1), splits=splits)
    inputs.check(inputs.run(partial(module("kernel").tree_attention_kernel, chosen=plan)))


@pytest.mark.parametrize("prefix", [0, 100])
def test_a_short_prefix_in_a_long_static_cache(prefix: int) -> None:
    """Splits go by what the cache can hold, so that most of them are empty here."""
    inputs = replace(_LLAMA, prefix=prefix, spare=32768, prefix_on_device=True).inputs(DEVICE)
    inputs.check(inputs.run(tree_attention))


@_DTYPES
def test_two_runs_agree_to_the_last_bit(dtype: torch.dtype) -> None:
    inputs = replace(_LLAMA, prefix=4000, dtype=dtype).inputs(DEVICE)
    assert torch.equal(inputs.run(tree_attention), inputs.run(tree_attention))


def test_keys_beyond_two_to_the_31_elements() -> None:
    """A cache so long that an offset in 32 bits would turn negative; a window keeps the oracle's work small."""
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    prefix, small = 2**21, replace(_LLAMA, prefix=512, window=256, dtype=torch.float16).inputs(DEVICE)
    k, v = (_at_the_end(cache, prefix + 60) for cache in (small.k, small.v))
    assert (prefix - 256) * k.stride(2) > 2**31 - 2**20
    small.check(tree_attention(small.q, k, v, small.ancestors, prefix_len=prefix, window=256))


def test_ancestor_words_are_packed_on_the_device() -> None:
    batch = [trees.bushy(65, seed) for seed in range(3)]
    packed = pack_ancestors(torch.tensor(batch, device=DEVICE))
    assert packed.device.type == DEVICE
    assert torch.equal(packed.cpu(), trees.words(batch))


@pytest.mark.parametrize("case", [_LLAMA, grid.EVERYTHING["all at once"]], ids=["plain", "all at once"])
def test_no_value_is_read_by_the_host(case: Case) -> None:
    inputs = case.inputs(DEVICE)
    options = inputs.options
    tree_attention(inputs.q, inputs.k, inputs.v, inputs.ancestors, **options)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        answer = tree_attention(inputs.q, inputs.k, inputs.v, inputs.ancestors, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    inputs.check(answer)


@pytest.mark.parametrize("case", [_LLAMA, grid.EVERYTHING["all at once"]], ids=["plain", "all at once"])
def test_one_cuda_graph_serves_a_growing_prefix(case: Case) -> None:
    longest = replace(case, prefix=300, prefix_on_device=True, spare=50)
    held = longest.inputs(DEVICE)
    options = held.options
    graph, answer = _captured(held, options)
    for prefix in (300, 150, 299, 160):
        fresh = replace(longest, prefix=prefix, spare=350 - prefix, seed=prefix).inputs(DEVICE)
        for name in ("q", "k", "v"):
            getattr(held, name).copy_(getattr(fresh, name))
        if held.sinks is not None:
            held.sinks.copy_(fresh.sinks)
        options["prefix_len"].fill_(prefix)
        graph.replay()
        fresh.check(answer)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("case", [_LLAMA, grid.EVERYTHING["all at once"]], ids=["plain", "all at once"])
def test_compiled_callers(case: Case, mode: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(tree_attention, fullgraph=True, mode=mode)
    for seed in range(4):
        inputs = replace(case, seed=seed).inputs(DEVICE)
        inputs.check(inputs.run(compiled).clone())


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer, of the CUDA toolkit, is not installed")
    command = ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=9", "--target-processes=all"]
    # Each allocation by itself: torch's cache of memory would hide what is read beyond one.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    script = Path(__file__).with_name("sanitized.py")
    done = subprocess.run([*command, sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "ERROR SUMMARY: 0 errors" in done.stdout or "0 hazards" in done.stdout, done.stdout[-2000:]
    assert "cases are right" in done.stdout, "the script did not reach its end"


def _dense(inputs: Inputs, dtype: torch.dtype) -> torch.Tensor:
    """torch's attention with a dense mask, computed in `dtype`, as transformers calls it: keys and values repeated for
    their groups, for with `enable_gqa` torch computes half precision in float32. `[batch, nodes, heads, dim]`."""
    case = inputs.case
    live = slice(0, case.prefix + case.nodes)
    k, v = (cache[:, :, live].nan_to_num().to(dtype) for cache in (inputs.k, inputs.v))
    k, v = (cache.repeat_interleave(case.group, dim=1) for cache in (k, v))
    out = scaled_dot_product_attention(inputs.q.to(dtype), k, v, attn_mask=_mask(inputs)[:, None])
    return out.transpose(1, 2)


def _mask(inputs: Inputs) -> torch.Tensor:
    """bool `[batch, nodes, prefix + nodes]`."""
    case = inputs.case
    mask = torch.zeros(len(case.parents), case.nodes, case.prefix + case.nodes, dtype=torch.bool)
    for row, parents in enumerate(inputs.parents):
        depth = trees.depths(parents)
        for node in range(case.nodes):
            first = 0 if case.pad is None else case.pad[row]
            if case.window is not None:
                first = max(first, case.prefix + depth[node] - case.window + 1)
            mask[row, node, first : case.prefix] = True
            for seen in trees.ancestors(parents, node):
                mask[row, node, case.prefix + seen] = case.window is None or depth[seen] > depth[node] - case.window
    return mask.to(DEVICE)


def _error(answer: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    difference = answer.double() - exact
    return {"largest": difference.abs().max().item(), "root mean square": difference.square().mean().sqrt().item()}


def _at_the_end(cache: torch.Tensor, length: int) -> torch.Tensor:
    """The live keys of `cache` at the end of zeros `[batch, heads, length, dim]`, laid out length before heads."""
    live = cache[:, :, : 512 + 60]
    batch, heads, kept, dim = live.shape
    long = torch.zeros(batch, length, heads, dim, dtype=cache.dtype, device=cache.device).transpose(1, 2)
    long[:, :, length - kept :] = live
    return long


def _captured(inputs: Inputs, options: dict[str, Any]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph of one call on the tensors of `inputs`, and where it leaves its answer."""
    call = partial(tree_attention, inputs.q, inputs.k, inputs.v, inputs.ancestors, **options)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # compiles, which a capture does not allow
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call()
    return graph, answer
