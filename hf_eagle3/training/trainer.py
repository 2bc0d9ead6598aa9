"""The loop: batches in, a head out, stopped by time or by epochs, resumed from its last checkpoint.

Everything random is drawn from `(seed, epoch)` or `(seed, step)`, so a resumed run takes exactly the batches and
anchors that the uninterrupted one would have taken.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.features import FeatureCache
from ..modeling_eagle3 import Eagle3DraftModel
from .dataset import Batch, bucketed, collate
from .objective import Objective, fold_scale


@dataclass(frozen=True)
class Recipe:
    """How a head is trained. `stages` are `(share of the run, steps)`; a run ends after `epochs` or `max_minutes`."""

    epochs: float = 12.0
    max_minutes: float | None = None
    learning_rate: float = 1e-3
    final_share: float = 0.05
    warmup_share: float = 0.03
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    batch_tokens: int = 2560
    stages: tuple[tuple[float, int], ...] = ((0.3, 2), (0.4, 4), (0.3, 5))
    anchor_share: float = 0.5
    autocast: bool = True
    seed: int = 0


@dataclass
class Progress:
    """Where a run stands: optimiser `step`, `epoch` and batch `position` in it, seconds spent, answer rows seen."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    loss: float = float("nan")


class HeadTrainer:
    """Trains `objective.head` in place on examples `train_indices` of `cache`; `held_out` ones are only measured.

    With a `folder`, checkpoints go there (`checkpoint.pt`, written atomically) and an existing one is continued.
    """

    def __init__(
        self, objective: Objective, cache: FeatureCache, train_indices: list[int], recipe: Recipe, folder: Path | None
    ) -> None:
        self.objective, self.cache, self.indices, self.recipe, self.folder = (
            objective,
            cache,
            train_indices,
            recipe,
            folder,
        )
        self.parameters = [parameter for parameter in objective.head.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0.0, fused=True
        )
        self.progress = Progress()
        self.per_epoch = len(self._batches(0))
        if folder is not None and (folder / "checkpoint.pt").is_file():
            self._resume(folder / "checkpoint.pt")

    # ------------------------------------------------------------------ the loop

    def run(self, every_step: Callable[[Progress], None] | None = None, max_steps: int | None = None) -> Progress:
        """Train until the recipe's end (or `max_steps` more steps); `every_step` may save or measure."""
        taken = 0
        self.objective.train()
        while self.share() < 1.0 and (max_steps is None or taken < max_steps):
            started = time.monotonic()
            for batch in self._rest_of_epoch():
                self.progress.loss = self._train_on(batch)
                self.progress.step += 1
                self.progress.position += 1
                self.progress.seconds += time.monotonic() - started
                taken += 1
                if every_step is not None:
                    every_step(self.progress)
                started = time.monotonic()  # what `every_step` takes is not training
                if self.share() >= 1.0 or taken == max_steps:
                    break
            else:
                self.progress.epoch, self.progress.position = self.progress.epoch + 1, 0
        return self.progress

    def share(self) -> float:
        """How much of the run is done, 0 to 1: by steps, or by time where that is further."""
        done = self.progress.step / max(1, round(self.recipe.epochs * self.per_epoch))
        if self.recipe.max_minutes is not None:
            done = max(done, self.progress.seconds / (60 * self.recipe.max_minutes))
        return min(done, 1.0)

    def steps_now(self) -> int:
        """Rollout steps of the stage the run is in."""
        reached = 0.0
        for share, steps in self.recipe.stages:
            reached += share
            if self.share() < reached:
                return steps
        return self.recipe.stages[-1][1]

    def _train_on(self, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * schedule(self.share(), self.recipe)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.progress.step)
        with torch.autocast(self._device().type, dtype=torch.bfloat16, enabled=self.recipe.autocast):
            loss, _ = self.objective(batch.to(self._device()), self.steps_now(), self.recipe.anchor_share, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        return float(loss.detach())

    def _batches(self, epoch: int) -> list[list[int]]:
        return bucketed(self.cache, self.indices, self.recipe.batch_tokens, self.recipe.seed * 7919 + epoch)

    def _rest_of_epoch(self) -> Iterator[Batch]:
        for indices in self._batches(self.progress.epoch)[self.progress.position :]:
            yield collate([self.cache[index] for index in indices])

    def _device(self) -> torch.device:
        return self.objective.embeddings.device

    # ------------------------------------------------------------------ measuring, saving, resuming

    @torch.no_grad()
    def measure(self, indices: list[int], steps: int = 5, batch_tokens: int = 8192) -> list[float]:
        """Share of held-out rows whose draft equals the target's argmax at ALL of steps `0..i`, for each `i`.

        `1 + sum` is the chain's acceptance length at these depths, bonus included, for a target that decodes greedily.
        """
        self.objective.eval()
        counts = torch.zeros(steps, 2)
        for group in bucketed(self.cache, indices, batch_tokens, 0):
            batch = collate([self.cache[index] for index in group]).to(self._device())
            with torch.autocast(self._device().type, dtype=torch.bfloat16, enabled=self.recipe.autocast):
                counts += self.objective.prefix_hits(batch, steps)
        self.objective.train()
        rates: list[float] = (counts[:, 0] / counts[:, 1].clamp(min=1)).tolist()
        return rates

    def save(self) -> None:
        """Write the checkpoint: head, optimiser, progress, recipe."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {
            "head": self.objective.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        temporary = self.folder / ".checkpoint.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.folder / "checkpoint.pt")

    def _resume(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.objective.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def export(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Save the head as users load it: `dtype` safetensors, the feature scale folded into the fusion layer."""
        head = self.objective.head
        state = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
        state["fc.weight"] = fold_scale(state["fc.weight"], self.objective.feature_scale)
        exported = Eagle3DraftModel(head.config)
        exported.load_state_dict(state)
        exported.generation_config = head.generation_config
        replace_folder(folder, lambda place: exported.to(dtype).save_pretrained(place))


def schedule(share: float, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to `final_share`, as a factor on the learning rate."""
    if share < recipe.warmup_share:
        return (share + 1e-3) / (recipe.warmup_share + 1e-3)
    through = (share - recipe.warmup_share) / (1 - recipe.warmup_share)
    return recipe.final_share + (1 - recipe.final_share) * 0.5 * (1 + math.cos(math.pi * through))


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a fresh folder and move its files over `folder`'s one by one, each atomically."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    for file in temporary.iterdir():
        os.replace(file, folder / file.name)
    temporary.rmdir()
