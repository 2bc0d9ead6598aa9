"""One batch through the training-time test: the teacher, the weighted loss, and the held-out measure.

Knows a head, frozen embeddings and the rows of the target's output matrix that the draft vocabulary keeps; knows
nothing of files, optimisers or schedules.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..data.features import predicting
from ..modeling_eagle3 import Eagle3DraftModel
from .dataset import Batch
from .losses import soft_cross_entropy, step_weights
from .rollout import pack_rows, rollout, supervision, take


@dataclass
class Teacher:
    """The target's distributions on the draft vocabulary at every answer-predicting position, and where they stand.

    `probs [positions, draft_vocab]`; `place [batch, tokens]` int64 index into it; `inside [batch, tokens]` bool: the
    full argmax is a draft token.
    """

    probs: torch.Tensor
    place: torch.Tensor
    inside: torch.Tensor


class Objective(nn.Module):
    """Loss of a head on a batch; the target's `embeddings [vocab, hidden]` and `output [draft_vocab, hidden]` stay.

    `feature_scale` multiplies the features (see [`fold_scale`]); the head's draft vocabulary must be set before.
    """

    embeddings: torch.Tensor
    output: torch.Tensor
    feature_scale: torch.Tensor

    def __init__(
        self, head: Eagle3DraftModel, embeddings: torch.Tensor, output: torch.Tensor, feature_scale: torch.Tensor
    ) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("embeddings", embeddings.detach(), persistent=False)
        self.register_buffer("output", output.detach(), persistent=False)
        self.register_buffer("feature_scale", feature_scale.detach(), persistent=False)

    @torch.no_grad()
    def teach(self, batch: Batch) -> Teacher:
        where = predicting(batch.answers) & batch.answers
        place = torch.zeros_like(batch.ids)
        place[where] = torch.arange(int(where.sum()), device=where.device)
        logits = batch.last_hidden[where].to(self.output.dtype) @ self.output.T
        return Teacher(logits.softmax(-1), place, self.head.t2d[batch.argmax.clamp(min=0)] & (batch.argmax >= 0))

    def _start(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = nn.functional.embedding(batch.ids, self.embeddings)
        fused = self.head.fuse(batch.features * self.feature_scale.to(batch.features.dtype))
        return fused, embedded.to(fused.dtype)

    def forward(
        self, batch: Batch, steps: int, anchor_share: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loss (a scalar: per-token mean of each step, weighted `0.8 ** i`, normalised) and each step's own mean.

        After step 0 only a random `anchor_share` of the supervised rows goes on: they are what the loss is on, and no
        other row needs them.
        """
        teacher, valid = self.teach(batch), supervision(batch.answers, steps)
        rows, real = pack_rows(valid[0])
        drawn = torch.rand(rows.shape, generator=generator).to(rows.device) < anchor_share
        anchors, going_on = pack_rows(drawn & real)
        losses = []
        fused, embedded = self._start(batch)
        for step, hidden in enumerate(rollout(self.head, fused, embedded, rows, steps, anchors)):
            if step == 1:
                rows, real = rows.gather(1, anchors), going_on
            at = (rows + 1 + step).clamp(max=batch.ids.shape[1] - 1)
            kept = real & valid[step].gather(1, rows) & teacher.inside.gather(1, at)
            logits = self.head.lm_head(self.head.norm(hidden[kept]))
            losses.append(soft_cross_entropy(logits, teacher.probs[teacher.place.gather(1, at)[kept]]))
        weights = step_weights(steps)
        return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum(), losses

    @torch.no_grad()
    def prefix_hits(self, batch: Batch, steps: int) -> torch.Tensor:
        """`[steps, 2]`: how many rows had steps `0..i` all equal to the target's argmax, and how many could have.

        An argmax outside the draft vocabulary is a miss. A row counts while the data follows the target's argmax too,
        so that what the chain was fed is what it would have drafted.
        """
        valid = supervision(batch.answers, steps)
        rows, alive = pack_rows(valid[0])
        fused, embedded = self._start(batch)
        counts = torch.zeros(steps, 2)
        on_path = alive.clone()
        for step, hidden in enumerate(rollout(self.head, fused, embedded, rows, steps)):
            at = (rows + 1 + step).clamp(max=batch.ids.shape[1] - 1)
            best = take(batch.argmax[..., None], at)[..., 0]
            on_path &= valid[step].gather(1, rows)
            drafted = self.head.to_target_ids(self.head.lm_head(self.head.norm(hidden)).argmax(-1))
            alive &= drafted == best
            counts[step] += torch.stack([(alive & on_path).sum(), on_path.sum()]).cpu()
            follows = take(batch.ids[..., None], at + 1)[..., 0] == best
            on_path &= follows
            alive &= follows
        return counts


def fold_scale(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The fusion weight for raw features from one trained on scaled features: columns times `scale`."""
    return weight * scale
