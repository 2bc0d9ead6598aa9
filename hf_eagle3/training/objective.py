"""One batch through the training-time test: the teacher, the weighted loss, and the held-out measure.

Knows a head, the target's embeddings and the rule that makes its logits; knows nothing of files, optimisers or
schedules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..data.features import LogitRule, predicting
from ..modeling_eagle3 import Eagle3DraftModel
from . import losses
from .batches import Batch
from .rollout import Sequences, pack_rows, rollout, supervision, take

LOSSES = ("soft_ce", "kl", "lk")


@dataclass(frozen=True)
class LossSettings:
    """What is minimised.

    Args:
        kind: "soft_ce" (EAGLE-3), "kl" (the same gradient, zero at a perfect draft), "lk" (aimed at the acceptance).
        decay: the weight of step `i` is `decay ** i`, normalised to sum 1.
        ce: factor of that loss; EAGLE-1 takes 0.1 beside its regression.
        regression: factor of the smooth L1 distance between the head's normed state and the target's last hidden
            state (EAGLE-1's objective takes 1.0); 0 leaves it out, as EAGLE-3 does.
        anchor_share: the share of supervised rows that goes on after step 0, drawn anew in every epoch.
    """

    kind: str = "soft_ce"
    decay: float = 0.8
    ce: float = 1.0
    regression: float = 0.0
    anchor_share: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise ValueError(f"The loss is {self.kind!r}; choose one of {', '.join(LOSSES)}.")
        if not 0 < self.anchor_share <= 1 or not 0 < self.decay <= 1 or min(self.ce, self.regression) < 0:
            raise ValueError(
                f"anchor_share is {self.anchor_share}, decay {self.decay}, ce {self.ce}, regression {self.regression}"
                ": the first two lie above 0 and up to 1, the others at 0 or above."
            )


@dataclass
class Teacher:
    """The target's distributions at every supervised position, and where they stand.

    `probs [positions, draft_vocab]` sum to 1 over the draft vocabulary; `share [positions]` is what the whole of it
    has (only for the `lk` loss); `place [batch, tokens]` int64 indexes both; `inside [batch, tokens]` bool: the
    target's best token is a draft token.
    """

    probs: torch.Tensor
    share: torch.Tensor | None
    place: torch.Tensor
    inside: torch.Tensor


class TrainingTimeTest(nn.Module):
    """The loss of a head on a batch; what Trainer trains.

    Args:
        head: the head, or a `PeftModel` around one; its draft vocabulary must be set.
        embeddings: the module that embeds target ids as drafting does (`head.input_embeddings_for(target)`); frozen,
            not part of this module's parameters.
        rule: how the target makes logits of its last hidden state, over its whole vocabulary.
        feature_scale: float32 `[boundaries * hidden]`, powers of two that multiply the features; ones if not given.
            They are folded into the fusion layer when the head is exported, exactly and so reversibly; a head without
            one reads the target's last hidden state as it is, and can have none.
        settings: what is minimised.
    """

    feature_scale: torch.Tensor

    def __init__(
        self,
        head: Any,
        embeddings: nn.Module,
        rule: LogitRule,
        feature_scale: torch.Tensor | None = None,
        settings: LossSettings | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.settings = settings or LossSettings()
        # In a tuple, and so out of sight of nn.Module: they are the target's, not to be trained, moved or saved.
        self._target = (embeddings, rule)
        self._rows: LogitRule | None = None
        _check_trainable(self.core)
        sizes: Any = self.core.config
        ones = torch.ones(sizes.num_target_boundaries * sizes.target_hidden_size)
        scale = ones if feature_scale is None else feature_scale.detach().float()
        if (self.core.input_norm or self.core.fc_norm) and not torch.equal(scale, ones):
            raise ValueError("The head norms its features itself, so a feature scale cannot be folded: leave it out.")
        if self.core.fc is None and not torch.equal(scale, ones):
            raise ValueError("The head has no fusion layer to fold a feature scale into: leave it out.")
        if not torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5)):
            raise ValueError("The feature scale holds numbers that are no powers of two; take `feature_scale()`'s.")
        self.register_buffer("feature_scale", scale, persistent=False)
        self.checkpointing = False

    @property
    def core(self) -> Eagle3DraftModel:
        """The head itself, without the adapter that may be around it."""
        core: Eagle3DraftModel = self.head.get_base_model() if hasattr(self.head, "get_base_model") else self.head
        return core

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """Keep no activations of a step: they are computed again in the backward pass (Trainer's name for it)."""
        self.checkpointing = True

    # ------------------------------------------------------------------ the loss

    def forward(
        self, steps: int, num_items: torch.Tensor | None = None, **batch: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The loss of a batch (see [`batches.Collator`] for its tensors) over `steps` steps of training-time test.

        Args:
            num_items: float32 `[steps]`, the divisor of each step, where a batch is only a part of what one update
                sees; its own [`counts`] if not given.

        Returns:
            `loss`, a scalar: each step's sum over its supervised rows, by its divisor, weighted; a row whose best
            token the head cannot propose costs nothing, and counts. `step_losses [steps]`, without gradient.
        """
        divisors = self.counts(batch, steps) if num_items is None else num_items
        cost: Callable[..., torch.Tensor] = self._cost
        if self.checkpointing and self.training:
            cost = partial(checkpoint, self._cost, use_reentrant=False)  # logits are wider than all states together
        sums = torch.stack([cost(hidden, rows) for hidden, rows in self._unroll(batch, steps)])
        each = sums / divisors.to(sums.device).clamp(min=1)
        weights = torch.tensor(losses.step_weights(steps, self.settings.decay), device=each.device, dtype=each.dtype)
        return {"loss": (each * weights).sum(), "step_losses": each.detach()}

    def counts(self, batch: Batch, steps: int) -> torch.Tensor:
        """Supervised rows of each step, float32 `[steps]`: every state that inference visits, anchors heeded."""
        valid = supervision(batch["answers"], batch["documents"], steps)
        valid[1:] &= batch["anchors"] < self.settings.anchor_share
        return valid.sum((1, 2)).float()

    def _unroll(self, batch: Batch, steps: int) -> Iterator[tuple[torch.Tensor, _Rows]]:
        """Of each step the supervised rows' states `[rows, hidden]` and what they are to be compared with."""
        teacher, valid = self._teach(batch), supervision(batch["answers"], batch["documents"], steps)
        rows, real = pack_rows(valid[0])
        drawn = (batch["anchors"] < self.settings.anchor_share).gather(1, rows)
        anchors, going_on = pack_rows(drawn & real)
        sequences = self._sequences(batch)
        unrolled = rollout(self.core, sequences, rows, steps, anchors, self.checkpointing and self.training)
        for step, hidden in enumerate(unrolled):
            if step == 1:
                rows, real = rows.gather(1, anchors), going_on
            at = (rows + 1 + step).clamp(max=batch["ids"].shape[1] - 1)
            kept = real & valid[step].gather(1, rows)
            wanted = take(batch["last_hidden"], at)[kept] if self.settings.regression else None
            places, inside = teacher.place.gather(1, at)[kept], teacher.inside.gather(1, at)[kept]
            yield hidden[kept], _Rows(teacher, places, inside, wanted)

    def _cost(self, hidden: torch.Tensor, rows: _Rows) -> torch.Tensor:
        """The summed loss of rows of one step."""
        normed = self.core.norm(hidden)
        logits = self.core.lm_head(normed[rows.inside])
        places = rows.places[rows.inside]
        probs = rows.teacher.probs[places]
        if self.settings.kind == "lk":
            assert rows.teacher.share is not None
            cost = losses.lk_loss(logits, probs, rows.teacher.share[places])
        elif self.settings.kind == "kl":
            cost = losses.kl_divergence(logits, probs)
        else:
            cost = losses.soft_cross_entropy(logits, probs)
        cost = self.settings.ce * cost
        if rows.wanted is not None:
            cost = cost + self.settings.regression * losses.regression(normed, rows.wanted)
        return cost

    @torch.no_grad()
    def _teach(self, batch: Batch) -> Teacher:
        """The target's distributions where the next token is an answer token: rows target no other positions."""
        where = predicting(batch["answers"]) & batch["answers"]
        place = torch.zeros_like(batch["ids"])
        place[where] = torch.arange(int(where.sum()), device=where.device)
        hidden = batch["last_hidden"][where]
        rule = self._draft_rule()
        logits = rule.logits(hidden.to(rule.weight.dtype))
        share = None
        if self.settings.kind == "lk":
            whole = self._target[1].logits(hidden.to(rule.weight.dtype)).float().logsumexp(-1)
            share = (logits.float().logsumexp(-1) - whole).exp()
        best = batch["best"]
        inside = self.core.t2d[best.clamp(min=0)] & (best >= 0)
        return Teacher(logits.softmax(-1), share, place, inside)

    def _draft_rule(self) -> LogitRule:
        """The target's rule on the rows of the draft vocabulary, cut out once."""
        if self._rows is None:
            rule = self._target[1]
            if len(rule.weight) != len(self.core.t2d):
                raise ValueError(
                    f"The rule makes logits of {len(rule.weight)} tokens, but the head's target has "
                    f"{len(self.core.t2d)}: give the rule of the whole vocabulary."
                )
            self._rows = rule.rows(self.core.t2d.nonzero()[:, 0].to(rule.weight.device))
        device = self.core.t2d.device
        if self._rows.weight.device != device:
            self._rows = replace(self._rows, weight=self._rows.weight.to(device))
        return self._rows

    def _sequences(self, batch: Batch) -> Sequences:
        scaled = batch["features"] * self.feature_scale.to(batch["features"].dtype)
        fused = self.core.fuse(scaled.to(self.core.lm_head.weight.dtype))
        with torch.no_grad():
            embedded = self._target[0](batch["ids"])
        return Sequences(fused, embedded.to(fused.dtype), batch["positions"], batch["documents"])

    # ------------------------------------------------------------------ measuring, and the way in and out

    @torch.no_grad()
    def prefix_hits(self, batch: Batch, steps: int) -> torch.Tensor:
        """`[steps, 2]`: how many rows had steps `0..i` all equal to the target's argmax, and how many could have.

        An argmax outside the draft vocabulary is a miss. A row counts while the data follows the target's argmax too,
        so that what the chain was fed is what it would have drafted.
        """
        valid = supervision(batch["answers"], batch["documents"], steps)
        rows, alive = pack_rows(valid[0])
        counts = torch.zeros(steps, 2)
        on_path = alive.clone()
        for step, hidden in enumerate(rollout(self.core, self._sequences(batch), rows, steps)):
            at = (rows + 1 + step).clamp(max=batch["ids"].shape[1] - 1)
            best = batch["best"].gather(1, at)
            on_path &= valid[step].gather(1, rows)
            drafted = self.core.to_target_ids(self.core.lm_head(self.core.norm(hidden)).argmax(-1))
            alive &= drafted == best
            counts[step] += torch.stack([(alive & on_path).sum(), on_path.sum()]).cpu()
            follows = take(batch["ids"][..., None], at + 1)[..., 0] == best
            on_path &= follows
            alive &= follows
        return counts

    def exported(self, dtype: torch.dtype | None = None) -> Eagle3DraftModel:
        """A copy of the head as users load it: adapters merged, the feature scale folded into the fusion layer."""
        head = copy.deepcopy(self.head)
        if hasattr(head, "merge_and_unload"):
            head = head.merge_and_unload()
        if head.fc is not None:
            with torch.no_grad():
                head.fc.weight.mul_(self.feature_scale.to(head.fc.weight.device))
        result: Eagle3DraftModel = head.requires_grad_(False).eval()
        return result if dtype is None else result.to(dtype)

    @torch.no_grad()
    def load_exported(self, state: dict[str, torch.Tensor]) -> None:
        """Take over the tensors of an exported head without an adapter: the reverse of [`exported`], exactly."""
        state = dict(state)
        if self.core.fc is not None:
            weight = state["fc.weight"]
            state["fc.weight"] = weight / self.feature_scale.to(weight.device)
        self.core.load_state_dict(state)


def _check_trainable(core: Eagle3DraftModel) -> None:
    """Refuse a head that the training-time test cannot unroll."""
    config = core.config
    kinds = {
        "has a sliding window": config.sliding_window is not None,
        "attends over a latent": config.kv_lora_rank is not None,
        "drafts in parallel": config.parallel_drafting,
    }
    other = [what for what, holds in kinds.items() if holds]
    if other:
        raise ValueError(
            f"The head {' and '.join(other)}, which can be drafted with but not trained here: start from one that "
            "attends to all positions level by level, or from a fresh one."
        )


@dataclass
class _Rows:
    """The supervised rows of one step: where their teacher stands, whether their best token can be drafted at all,
    and the target's last hidden states `[rows, hidden]` where the loss has a regression."""

    teacher: Teacher
    places: torch.Tensor
    inside: torch.Tensor
    wanted: torch.Tensor | None
