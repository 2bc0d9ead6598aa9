"""How fast the trainer is beside the plain loop of the tests, and what it needs of memory.

    python benchmarks/training.py [--json FILE]

The plain loop (tests/helpers/dense_training.py) is the usual plain form: the target runs along, its softmax goes
over the whole vocabulary, attention is one dense mask, every row of every step is computed. Both train the same fresh
head for the embedded target on the same batches, the plain one after each update of `Eagle3Trainer`, and where they do
the same arithmetic they must meet the same losses. Nothing else may run.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.dense_training import dense_batch_loss
from transformers import TrainerCallback

from hf_eagle3 import embedded
from hf_eagle3.configuration_eagle3 import default_boundaries
from hf_eagle3.data.conversations import load_conversations
from hf_eagle3.data.feature_store import FeatureStore, write_features
from hf_eagle3.data.features import TargetStates, token_mass
from hf_eagle3.evaluation.report import provenance, write_json
from hf_eagle3.training.arguments import Eagle3TrainingArguments
from hf_eagle3.training.batches import Collator
from hf_eagle3.training.initialisation import feature_scale, fresh_head
from hf_eagle3.training.objective import TrainingTimeTest
from hf_eagle3.training.trainer import Eagle3Trainer
from hf_eagle3.training.vocabulary import choose_vocabulary

TEXT = ROOT / "model_cards" / embedded.HEAD_NAME / "training_ids.safetensors"
VOCABULARY, BATCH_TOKENS, STEPS, CONVERSATIONS, WARM_UP = 8192, 2560, 4, 160, 2
# What is timed. Only where every row is computed and nothing is rounded can the losses be those of the plain loop.
WAYS: dict[str, dict[str, Any]] = {
    "float32, every row, states cached": {"bf16": False, "anchor_share": 1.0},
    "bfloat16, every row, states cached": {"bf16": True, "anchor_share": 1.0},
    "bfloat16, every row, target running along": {"bf16": True, "anchor_share": 1.0, "online": True},
    "bfloat16, as by default (half the rows)": {"bf16": True, "anchor_share": 0.5},
}


class Bench:
    """A target, conversations, and a fresh head that every run begins with."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.target, _ = embedded.load(dtype=dtype)
        self.states = TargetStates(self.target, default_boundaries(self.target.config.num_hidden_layers))
        chats = [(c.ids, c.mask) for c in load_conversations(TEXT) if 200 <= len(c.ids) <= 300]
        self.rows = [{"input_ids": ids, "loss_mask": mask} for ids, mask in chats[:CONVERSATIONS]]
        mass = token_mass(self.states, chats[:CONVERSATIONS])
        vocabulary = choose_vocabulary(mass, VOCABULARY, [2])
        output = self.states.logit_rule.rows(vocabulary).weight.float()
        self.head = fresh_head(self.target, vocabulary, output, 0, self.states.boundaries)
        self.scale = feature_scale(self.states.examples(chats[:16]), len(self.states.boundaries))

    def trainer(self, folder: Path, **options: Any) -> Eagle3Trainer:
        """Ours, on cached states unless `online`."""
        online = options.pop("online", False)
        data: Any = self.rows
        if not online:
            write_features(self.states, self.rows, folder / "features")
            data = FeatureStore(folder / "features", self.states.boundaries)
        args = Eagle3TrainingArguments(
            str(folder), ttt_stages=f"1:{STEPS}", eval_strategy="no", save_strategy="no", logging_steps=1,
            load_best_model_at_end=False, disable_tqdm=True, max_batch_tokens=BATCH_TOKENS, **options,
        )  # fmt: skip
        head = copy.deepcopy(self.head)
        return Eagle3Trainer(head, self.target, args, data, feature_scale=self.scale, states=self.states)

    def plain(self, bf16: bool) -> Callable[[list[int], float], float]:
        """One update of the plain loop on the conversations of some numbers, with a learning rate; gives the loss."""
        head, embeddings = copy.deepcopy(self.head), copy.deepcopy(self.target.get_input_embeddings()).float()
        embeddings.requires_grad_(False)
        optimizer = torch.optim.AdamW(head.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True)

        def update(numbers: list[int], learning_rate: float) -> float:
            loss, _ = self._plain_loss(head, embeddings, numbers, bf16)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = learning_rate
            optimizer.step()
            return float(loss.detach())

        return update

    def _plain_loss(self, head: Any, embeddings: Any, numbers: list[int], bf16: bool) -> Any:
        chats = []
        for row in (self.rows[number] for number in numbers):
            ids = torch.tensor(row["input_ids"])
            with torch.no_grad():
                out = self.target(ids[None], output_hidden_states=self.states.boundaries)
            features = torch.cat([out.hidden_states[boundary][0] for boundary in self.states.boundaries], -1).float()
            chats.append((ids, torch.tensor(row["loss_mask"]), features * self.scale, out.logits[0].float()))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return dense_batch_loss(head, embeddings, chats, STEPS)


class Pair(TrainerCallback):
    """Times every update of the trainer and, right after it, the plain loop's on the same conversations."""

    def __init__(self, plain: Callable[[list[int], float], float]) -> None:
        self.plain = plain
        self.batches: list[list[int]] = []
        self.learning_rate = 0.0
        self.seconds: list[tuple[float, float]] = []
        self.losses: list[float] = []
        self.ended = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        ours = time.perf_counter() - self.ended  # from the end of the plain update on: the batch is in it
        started = time.perf_counter()
        self.losses.append(self.plain(self.batches[state.global_step - 1], self.learning_rate))
        self.seconds.append((ours, time.perf_counter() - started))
        self.ended = time.perf_counter()


def speed(updates: int) -> list[dict[str, Any]]:
    """Tokens per second of each way of training beside the plain loop, after two updates of warm-up."""
    rows = []
    for name, options in WAYS.items():
        bf16 = options["bf16"]
        bench = Bench(torch.bfloat16 if bf16 else torch.float32)
        pair = Pair(bench.plain(bf16))
        with tempfile.TemporaryDirectory() as folder:
            trainer = bench.trainer(Path(folder), max_steps=updates + WARM_UP, **options)
            trainer.add_callback(pair)
            trainer.batches.set_epoch(0)
            pair.batches = [[int(index) for index, _ in batch] for batch in trainer.batches]
            trainer.train()
        ours = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        timed = list(zip(pair.batches[WARM_UP:], pair.seconds[WARM_UP:], strict=False))
        tokens = [sum(len(bench.rows[number]["input_ids"]) for number in numbers) for numbers, _ in timed]
        ratios = sorted(plain / seconds for _, (seconds, plain) in timed)
        rows.append({
            "way": name,
            "updates": len(timed),
            "tokens_per_second": statistics.median(n / s for n, (_, (s, _)) in zip(tokens, timed, strict=True)),
            "plain_tokens_per_second": statistics.median(n / s for n, (_, (_, s)) in zip(tokens, timed, strict=True)),
            "ratio": statistics.median(ratios),
            "lowest_ratio": ratios[0],
            "highest_ratio": ratios[-1],
            "largest_difference_of_losses": max(abs(a - b) for a, b in zip(ours, pair.losses, strict=True)),
            "first_loss": ours[0],
            "last_loss": ours[-1],
        })  # fmt: skip
        print(told(rows[-1]), flush=True)
    return rows


def told(row: dict[str, Any]) -> str:
    speeds = f"{row['tokens_per_second']:5.0f} tokens/s, plain loop {row['plain_tokens_per_second']:4.0f}"
    ratios = f"{row['ratio']:.2f} times ({row['lowest_ratio']:.2f}-{row['highest_ratio']:.2f})"
    losses = f"loss {row['first_loss']:.4f} to {row['last_loss']:.4f}"
    return f"{row['way']:42} {speeds}: {ratios}; {losses}, {row['largest_difference_of_losses']:.1g} apart at most"


def memory(tokens: int, steps: int, checkpointing: bool) -> float:
    """Peak resident memory, in MB above what was there before, of one update on `4096 / tokens` rows of `tokens`."""
    import resource

    bench = Bench(torch.bfloat16)
    ids = [token for row in bench.rows for token in row["input_ids"]]
    count = max(1, 4096 // tokens)
    chats = [(ids[n * tokens : (n + 1) * tokens], [j >= 32 for j in range(tokens)]) for n in range(count)]
    batch = Collator(packed=False)([(example, n) for n, example in enumerate(bench.states.examples(chats))])
    part = TrainingTimeTest(bench.head, bench.target.get_input_embeddings(), bench.states.logit_rule).train()
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
    settings = {"batch_tokens": BATCH_TOKENS, "steps": STEPS, "draft_vocab_size": VOCABULARY, "updates": given.updates}
    record: dict[str, Any] = {"provenance": provenance(settings), "speed": speed(given.updates)}
    record["memory"] = memory_table()
    if given.json is not None:
        write_json(given.json, record)


if __name__ == "__main__":
    main()
