"""How fast the trainer is beside the plain loop of the tests, and what it needs of memory.

    python benchmarks/training.py [--json FILE]

The plain loop (tests/helpers/dense_training.py) is the usual plain form: the target runs along, its softmax goes
over the whole vocabulary, attention is one dense mask, every row of every step is computed. Both train fresh heads for
the embedded target on the same conversations, in turns, and must meet the same loss. Nothing else may run.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.dense_training import dense_batch_loss  # noqa: E402  # the path to it is set two lines above

from hf_eagle3 import embedded  # noqa: E402
from hf_eagle3.configuration_eagle3 import default_boundaries  # noqa: E402
from hf_eagle3.data.conversations import load_conversations  # noqa: E402
from hf_eagle3.data.features import TargetStates, token_mass  # noqa: E402
from hf_eagle3.evaluation.report import provenance, write_json  # noqa: E402
from hf_eagle3.training.batches import Collator  # noqa: E402
from hf_eagle3.training.initialisation import feature_scale, fresh_head  # noqa: E402
from hf_eagle3.training.objective import LossSettings, TrainingTimeTest  # noqa: E402
from hf_eagle3.training.vocabulary import choose_vocabulary  # noqa: E402

TEXT = ROOT / "model_cards" / embedded.HEAD_NAME / "training_ids.safetensors"
VOCABULARY, BATCH, STEPS = 8192, 8, 4


class Bench:
    """A target, conversations, and fresh heads that are all the same."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.target, _ = embedded.load(dtype=dtype)
        self.states = TargetStates(self.target, default_boundaries(self.target.config.num_hidden_layers))
        rows = [(c.ids, c.mask) for c in load_conversations(TEXT) if 200 <= len(c.ids) <= 300]
        self.rows = rows[: 4 * BATCH]
        mass = token_mass(self.states, self.rows)
        vocabulary = choose_vocabulary(mass, VOCABULARY, [2])
        output = self.states.logit_rule.rows(vocabulary).weight.float()
        self.scale = feature_scale(self.states.examples(self.rows[:8]), 3)
        self.head = fresh_head(self.target, vocabulary, output, 0, self.states.boundaries)
        self.examples = self.states.examples(self.rows)

    def trainer(self, anchors: float, autocast: bool) -> Callable[[int], float]:
        """One update of ours on batch `n`, from cached states; gives the loss."""
        head = copy.deepcopy(self.head)
        settings = LossSettings(anchor_share=anchors)
        part = TrainingTimeTest(head, self.target.get_input_embeddings(), self.states.logit_rule, self.scale, settings)
        update = self._updater(head)
        collate = Collator(packed=False)

        def step(n: int) -> float:
            batch = collate([(example, i) for i, example in enumerate(self._part(self.examples, n))])
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = part(STEPS, **batch)["loss"]
            return update(loss)

        return step

    def plain(self, autocast: bool) -> Callable[[int], float]:
        """One update of the plain loop on the same conversations."""
        head = copy.deepcopy(self.head)
        with torch.no_grad():
            head.fc.weight.mul_(self.scale)  # the plain loop knows no scale: the same function, other gradients of fc
        update = self._updater(head)
        embeddings = copy.deepcopy(self.target.get_input_embeddings()).float().requires_grad_(False)

        def step(n: int) -> float:
            chats = []
            for ids, mask in self._part(self.rows, n):
                with torch.no_grad():
                    out = self.target(torch.tensor([ids]), output_hidden_states=self.states.boundaries)
                features = torch.cat([out.hidden_states[b][0] for b in self.states.boundaries], -1).float()
                chats.append((torch.tensor(ids), torch.tensor(mask), features, out.logits[0].float()))
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss, _ = dense_batch_loss(head, embeddings, chats, STEPS)
            return update(loss)

        return step

    def tokens(self, n: int) -> int:
        return sum(len(ids) for ids, _ in self._part(self.rows, n))

    @staticmethod
    def _part(values: list[Any], n: int) -> list[Any]:
        first = n * BATCH % len(values)
        return values[first : first + BATCH]

    @staticmethod
    def _updater(head: torch.nn.Module) -> Callable[[torch.Tensor], float]:
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

        def update(loss: torch.Tensor) -> float:
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            return float(loss.detach())

        return update


def speed(updates: int) -> dict[str, Any]:
    """Tokens per second of each way, in turns after a warm-up, and the first losses beside one another."""
    rows: dict[str, Any] = {}
    for name, dtype, autocast in (("float32", torch.float32, False), ("bfloat16", torch.bfloat16, True)):
        bench = Bench(dtype)
        ways = {
            "plain loop": bench.plain(autocast),
            "trainer": bench.trainer(1.0, autocast),
            "trainer, half the rows after step 0": bench.trainer(0.5, autocast),
        }
        first = {way: step(0) for way, step in ways.items()}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for n in range(1, updates + 1):
            for way, step in ways.items():
                started = time.perf_counter()
                step(n)
                rates[way].append(bench.tokens(n) / (time.perf_counter() - started))
        for way in ways:
            ratios = [ours / plain for ours, plain in zip(rates[way], rates["plain loop"], strict=True)]
            rows[f"{way}, {name}"] = {
                "tokens_per_second": statistics.median(rates[way]),
                "ratio": statistics.median(ratios),
                "lowest_ratio": min(ratios),
                "highest_ratio": max(ratios),
                "first_loss": first[way],
            }
    return rows


def memory(tokens: int, steps: int, checkpointing: bool) -> float:
    """Peak resident memory, in MB above what was there before, of one update on `4096 / tokens` rows of `tokens`."""
    import resource

    bench = Bench(torch.bfloat16)
    ids = [token for row, _ in bench.rows for token in row]
    count = max(1, 4096 // tokens)
    chats = [((ids * 4)[n * tokens : (n + 1) * tokens], [j >= 32 for j in range(tokens)]) for n in range(count)]
    batch = Collator(packed=False)([(example, n) for n, example in enumerate(bench.states.examples(chats))])
    head = copy.deepcopy(bench.head)
    part = TrainingTimeTest(head, bench.target.get_input_embeddings(), bench.states.logit_rule, bench.scale).train()
    if checkpointing:
        part.activation_checkpointing_enable()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    with torch.autocast("cpu", torch.bfloat16):
        loss = part(steps, **batch)["loss"]
    loss.backward()
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
    return (peak - before) / 1e6


def memory_table() -> list[dict[str, Any]]:
    """Each figure in a process of its own, so that none inherits another's heap."""
    rows = []
    for tokens in (256, 1024, 4096):
        for steps in (1, 4, 7):
            for checkpointing in (False, True):
                command = [sys.executable, __file__, "--memory-of", str(tokens), str(steps), str(int(checkpointing))]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                megabytes = float(out.strip().splitlines()[-1])
                rows.append({"tokens": tokens, "steps": steps, "checkpointing": checkpointing, "megabytes": megabytes})
                how = "computed again" if checkpointing else "kept"
                print(f"{tokens:5} tokens, {steps} steps, activations {how}: {megabytes:6.0f} MB", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures and their provenance here")
    parser.add_argument("--updates", type=int, default=6, help="timed updates of each way")
    parser.add_argument("--memory-of", nargs=3, type=int, metavar=("TOKENS", "STEPS", "CHECKPOINTING"))
    given = parser.parse_args()
    if given.memory_of:
        tokens, steps, checkpointing = given.memory_of
        print(memory(tokens, steps, bool(checkpointing)))
        return
    rows = speed(given.updates)
    for way, row in rows.items():
        print(
            f"{way:48} {row['tokens_per_second']:6.0f} tokens/s, {row['ratio']:.2f} times the plain loop "
            f"({row['lowest_ratio']:.2f}-{row['highest_ratio']:.2f}), first loss {row['first_loss']:.5f}"
        )
    settings = {"batch": BATCH, "steps": STEPS, "draft_vocab_size": VOCABULARY, "updates": given.updates}
    record = {"provenance": provenance(settings), "speed": rows, "memory": memory_table()}
    if given.json is not None:
        write_json(given.json, json.loads(json.dumps(record)))


if __name__ == "__main__":
    main()
