"""How far a head has come, on held-out conversations: over their text, and over answers decoded to their prompts.

Shared between processes: each takes its part and the sums are gathered.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..data.feature_store import FeatureStore
from ..evaluation.acceptance_length import acceptance_on
from ..evaluation.timing import Settings
from .batches import Batch
from .losses import step_weights

DEPTH = 5  # of the chain whose prefix hits are counted


@torch.no_grad()
def on_text(trainer: Any, batches: Iterable[Batch], steps: int) -> dict[str, float]:
    """`loss` over `steps` steps, per supervised row; `chain_acceptance`: the acceptance length (bonus included) that a
    greedy chain of `DEPTH` drafts would have on this text, as far as the text is what the target would write."""
    objective, device = trainer.objective, trainer.args.device
    sums = torch.zeros(2, steps, device=device)
    hits = torch.zeros(DEPTH, 2)
    objective.eval()
    for batch in batches:
        batch = trainer._prepare_inputs(batch)
        with trainer.accelerator.autocast():
            out = objective(steps=steps, num_items=torch.ones(steps, device=device), **batch)
            hits += objective.prefix_hits(batch, DEPTH)
        sums += torch.stack((out["step_losses"].float(), objective.counts(batch, steps).to(device)))
    objective.train()
    sums, hits = _summed(trainer, sums), _summed(trainer, hits.to(device))
    each = sums[0] / sums[1].clamp(min=1)
    weights = torch.tensor(step_weights(steps, objective.settings.decay), device=device)
    rates = hits[:, 0] / hits[:, 1].clamp(min=1)
    return {"loss": float((each * weights).sum()), "chain_acceptance": 1 + float(rates.sum())}


def on_prompts(trainer: Any, prompts: list[torch.Tensor], new_tokens: int) -> dict[str, float]:
    """`acceptance_length`: tokens per target forward, bonus included, of greedy answers to `prompts`, each int64
    `[1, length]`, decoded with the head as it would be exported now and the device's default tree."""
    head = trainer.objective.exported(trainer.target.dtype).to(trainer.target.device)
    own = prompts[trainer.args.process_index :: trainer.args.world_size]
    inputs = [{"input_ids": ids.to(trainer.target.device)} for ids in own]
    inputs = [{**given, "attention_mask": torch.ones_like(given["input_ids"])} for given in inputs]
    figures = acceptance_on(trainer.target, head, inputs, Settings(max_new_tokens=new_tokens))
    sums = torch.tensor([sum(figures.lengths), figures.rounds], dtype=torch.float64)
    tokens, rounds = _summed(trainer, sums.to(trainer.args.device)).tolist()
    return {"acceptance_length": tokens / rounds if rounds else 1.0}


def prompts_of(dataset: Any, count: int) -> list[torch.Tensor]:
    """What comes before the first answer in the first `count` conversations, int64 `[1, length]` each."""
    prompts = []
    for index in range(min(count, len(dataset))):
        row = dataset[index]
        if isinstance(dataset, FeatureStore):
            ids, mask = row.ids, row.answers
        else:
            ids, mask = torch.as_tensor(row["input_ids"]), torch.as_tensor(row["loss_mask"], dtype=torch.bool)
        first = int(mask.int().argmax())
        if first > 0:
            prompts.append(ids[None, :first].long())
    return prompts


def _summed(trainer: Any, values: torch.Tensor) -> torch.Tensor:
    if trainer.args.world_size == 1:
        return values
    summed: torch.Tensor = trainer.accelerator.gather(values[None]).sum(0)
    return summed
