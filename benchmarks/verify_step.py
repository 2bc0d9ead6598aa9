"""What the tree-attention kernel is worth in a whole step: one verification of a Llama-3.1-8B with random weights, by
`eagle3_tree` and by sdpa in turns, beside one plain step of one token.

    python benchmarks/verify_step.py --json benchmarks/results/gpu-verify-step.json
    python benchmarks/verify_step.py --dry-run

Weights, cache and tree are random: none of them changes how much is computed, only what comes out. The implementations
are first held to each other's logits. A step is timed as a program sees it, launches and all, and, on CUDA, as the sum
of its kernels too: transformers' own Python is the larger part of a short step. Nothing else may run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from hf_eagle3.attention import SUPPORTED_BACKENDS
from hf_eagle3.cache import keep_path
from hf_eagle3.configuration_eagle3 import default_boundaries
from hf_eagle3.evaluation.report import check_writable, provenance, write_json
from hf_eagle3.tree import DraftTree
from hf_eagle3.verification import verify

LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512,
}  # fmt: skip
PLAIN, TREE_DEPTH = "one token", 8
# How far two implementations' logits may be apart: root mean square of the difference, in units of their spread. Over
# few cached positions the tree is half of what its nodes see, and a wrong mask makes 0.4 at least.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.05}
CHECKED_CONTEXT = 64


class Bench:
    """A target, a cache of one length, and a tree."""

    def __init__(self, target: Any, context: int, nodes: int) -> None:
        self.target, self.context, self.device = target, context, target.device
        self.boundaries = default_boundaries(target.config.num_hidden_layers)
        self.cache = fill_cache(target.config, context, target.dtype, target.device)
        self.tree = random_tree(nodes, target.config.vocab_size, target.device)
        self.committed = torch.ones(1, context, dtype=torch.bool, device=target.device)
        self.root_position = torch.tensor([[context]], device=target.device)

    def verification(self) -> torch.Tensor:
        """Logits of all nodes, `[1, nodes, vocab]`; the cache has grown."""
        return verify(self.target, self.tree, self.cache, self.committed, self.root_position, self.boundaries).logits

    def one_token(self) -> torch.Tensor:
        """Logits of the root alone, as plain decoding computes them; the cache has grown."""
        token, position = self.tree.tokens[:, :1], self.root_position
        return self.target(input_ids=token, position_ids=position, past_key_values=self.cache).logits

    def take_back(self) -> None:
        """The cache as it was."""
        keep_path(self.cache, self.context, [])

    def seconds(self, step: Callable[[], torch.Tensor]) -> float:
        """Of one step, from the call until the device is done."""
        self._wait()
        start = time.perf_counter()
        step()
        self._wait()
        seconds = time.perf_counter() - start
        self.take_back()
        return seconds

    def device_seconds(self, step: Callable[[], torch.Tensor], times: int = 3) -> float | None:
        """What the kernels of one step take, without what lies between them; None on a CPU."""
        if self.device.type != "cuda":
            return None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(times):
                step()
                self.take_back()
            self._wait()
        return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / times

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def build_target(sizes: dict[str, int], dtype: torch.dtype, device: torch.device) -> Any:
    """A Llama of these sizes with random weights, made where it runs."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=dtype).eval()


def fill_cache(config: Any, context: int, dtype: torch.dtype, device: torch.device) -> DynamicCache:
    """`context` positions of random keys and values in every layer."""
    cache = DynamicCache(config=config)
    sizes = (1, config.num_key_value_heads, context, config.head_dim)
    generator = torch.Generator(device).manual_seed(0)
    for layer in range(config.num_hidden_layers):
        keys, values = (torch.randn(sizes, generator=generator, device=device, dtype=dtype) for _ in range(2))
        cache.update(keys, values, layer)
    return cache


def random_tree(nodes: int, vocab_size: int, device: torch.device) -> DraftTree:
    """A tree of random tokens and shape, no deeper than EAGLE's."""
    dice, parents, depths = random.Random(0), [-1], [0]
    while len(parents) < nodes:
        parent = dice.choice([node for node, depth in enumerate(depths) if depth < TREE_DEPTH])
        parents.append(parent)
        depths.append(depths[parent] + 1)
    tokens = torch.tensor([[dice.randrange(vocab_size) for _ in parents]], device=device)
    return DraftTree(tokens, torch.tensor([parents], device=device), torch.zeros(1, nodes, device=device))


def check_agreement(bench: Bench, implementations: Sequence[str]) -> dict[str, float]:
    """How far every implementation's logits are from the last one's.

    Raises:
        ValueError: if one is too far: what computes something else is not timed.
    """
    logits = {}
    for name in implementations:
        bench.target.set_attn_implementation(name)
        logits[name] = bench.verification().float()
        bench.take_back()
    truth, allowed = logits[implementations[-1]], TOLERANCE[bench.target.dtype]
    apart = {name: float((given - truth).norm() / (truth - truth.mean()).norm()) for name, given in logits.items()}
    if not max(apart.values()) <= allowed:
        raise ValueError(
            f"The logits of {', '.join(implementations)} are {apart} from the last one's, where {allowed:g} of their "
            "spread is allowed: they do not compute the same, and nothing was timed."
        )
    return apart


def measure(bench: Bench, implementations: Sequence[str], rounds: int) -> dict[str, Any]:
    """Every step in turns, in every other round backwards; medians, spreads and ratios."""
    steps: dict[str, Callable[[], torch.Tensor]] = dict.fromkeys(implementations, bench.verification)
    steps[PLAIN] = bench.one_token
    apart = check_agreement(bench, implementations)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in list(steps)[:: -1 if number % 2 else 1]:
            bench.target.set_attn_implementation("sdpa" if name == PLAIN else name)
            took = bench.seconds(steps[name])
            if number:  # the first round warms up
                seconds[name].append(took)
    rows = {}
    for name, step in steps.items():
        bench.target.set_attn_implementation("sdpa" if name == PLAIN else name)
        rows[name] = {
            "seconds": statistics.median(seconds[name]),
            "lowest": min(seconds[name]),
            "highest": max(seconds[name]),
            "device_seconds": bench.device_seconds(step),
        }
    return {"context": bench.context, "steps": rows, "apart": apart, "ratios": ratios(rows, implementations)}


def ratios(rows: dict[str, dict[str, Any]], implementations: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each clock: a verification's cost in plain steps, which is the acceptance length that it takes to gain
    anything (drafting left aside), and how many times as long every implementation takes as the first.
    """
    found = {}
    for clock in ("seconds", "device_seconds"):
        if all(row[clock] is not None for row in rows.values()):
            first, plain = rows[implementations[0]][clock], rows[PLAIN][clock]
            found[clock] = {f"{name} / {PLAIN}": rows[name][clock] / plain for name in implementations}
            for name in implementations[1:]:
                found[clock][f"{name} / {implementations[0]}"] = rows[name][clock] / first
    return found


def told(row: dict[str, Any]) -> str:
    """A line for the terminal: ratios alone."""
    clocks = {"seconds": "as called", "device_seconds": "kernels alone"}
    parts = []
    for clock, figures in row["ratios"].items():
        parts.append(f"{clocks[clock]}: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in figures.items()))
    return f"{row['context']:6} cached: " + "; ".join(parts)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The record; in the file as well, after every context.

    Raises:
        ValueError: if an implementation is none that can express a tree, or there is no CUDA device to time.
    """
    for name in given.implementations:
        if name not in SUPPORTED_BACKENDS:
            raise ValueError(f"{name!r} cannot express a draft tree; name some of {', '.join(SUPPORTED_BACKENDS)}.")
    if not given.dry_run and not torch.cuda.is_available():
        raise ValueError("There is no CUDA device to time; give --dry-run to go through it all on the CPU.")
    device = torch.device("cpu" if given.dry_run else "cuda")
    sizes, dtype = (TINY, torch.float32) if given.dry_run else (LLAMA_8B, torch.bfloat16)
    sizes = sizes | ({"num_hidden_layers": given.layers} if given.layers else {})
    contexts = given.contexts or ([48, 96] if given.dry_run else [2048, 8192, 32768])
    settings = {"target": sizes, "nodes": given.nodes, "rounds": given.rounds, "dtype": str(dtype)}
    record = {"dry_run": given.dry_run, "provenance": provenance(settings), "contexts": []}
    target = build_target(sizes, dtype, device)
    with torch.no_grad():
        check_agreement(Bench(target, CHECKED_CONTEXT, given.nodes), given.implementations)
    for context in contexts:
        with torch.no_grad():
            row = measure(Bench(target, context, given.nodes), given.implementations, given.rounds)
        record["contexts"].append(row)
        print(told(row), flush=True)
        if given.json is not None:
            write_json(given.json, record)
    return record


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures and their provenance here")
    parser.add_argument("--contexts", nargs="+", type=_positive, help="cached positions (2048 8192 32768)")
    parser.add_argument("--nodes", type=_positive, default=60, help="of the tree, root included")
    parser.add_argument("--rounds", type=_positive, default=9)
    parser.add_argument("--layers", type=_positive, help="of the target, where fewer will do")
    parser.add_argument("--implementations", nargs="+", default=["eagle3_tree", "sdpa"], help="held to the last one")
    parser.add_argument("--dry-run", action="store_true", help="a tiny target on the CPU: checks all, times nothing")
    given = parser.parse_args(arguments)
    try:
        if given.json is not None:
            check_writable(given.json)
        if given.dry_run:
            print("DRY RUN: nothing here tells of speed.")
        run(given)
    except (ValueError, OSError) as error:
        print(f"verify_step: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
