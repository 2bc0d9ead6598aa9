"""What a run is asked for: transformers' `TrainingArguments` with our defaults, and the few of the training-time test.

Knows nothing of heads, targets or data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from ..native_products import has_bf16
from .objective import LossSettings

STAGES = "0.3:2,0.4:4,0.3:5"


@dataclass
class Eagle3TrainingArguments(TrainingArguments):
    """Arguments of [`Eagle3Trainer`]; every field of `TrainingArguments` is there besides.

    Args:
        max_batch_tokens: padded tokens of a batch on one device; takes the place of `per_device_train_batch_size`.
        packing: one long row of several conversations to a batch, instead of padded rows of like lengths.
        ttt_stages: steps of training-time test in the course of a run, `share:steps` separated by commas; "1:7" is
            the paper's seven throughout.
        loss: "soft_ce", "kl" or "lk"; with `loss_decay`, `loss_ce`, `loss_regression` and `anchor_share` as in
            [`objective.LossSettings`].
        freeze_output: leave the head's output rows as they are; a fresh head's are the target's own.
        max_minutes: end this sitting, with a checkpoint, at the first step after so long; the same command goes on.
            Learning rate and stages depend on steps, never on time.
        eval_prompts: held-out prompts that the acceptance length is measured on.
        eval_new_tokens: how long each of their answers is.

    Raises:
        ValueError: if a field makes no sense.
    """

    learning_rate: float = field(default=1e-3)
    adam_beta2: float = field(default=0.95)
    warmup_steps: float = field(default=0.03)
    lr_scheduler_type: str = field(default="cosine_with_min_lr")
    lr_scheduler_kwargs: dict[str, Any] | str | None = field(default_factory=lambda: {"min_lr_rate": 0.05})
    num_train_epochs: float = field(default=8.0)
    bf16: bool = field(default_factory=has_bf16)
    logging_steps: float = field(default=20)
    logging_nan_inf_filter: bool = field(default=False)
    eval_strategy: str = field(default="steps")
    eval_steps: float | None = field(default=200)
    save_strategy: str = field(default="steps")
    save_steps: float = field(default=200)
    save_total_limit: int | None = field(default=2)
    load_best_model_at_end: bool = field(default=True)
    metric_for_best_model: str | None = field(default="acceptance_length")
    greater_is_better: bool | None = field(default=True)
    report_to: str | list[str] | None = field(default="none")
    use_cpu: bool = field(default_factory=lambda: not torch.cuda.is_available())
    ddp_find_unused_parameters: bool | None = field(default=False)
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)

    max_batch_tokens: int = field(default=2560)
    packing: bool = field(default=False)
    ttt_stages: str = field(default=STAGES)
    loss: str = field(default="soft_ce")
    loss_decay: float = field(default=0.8)
    loss_ce: float = field(default=1.0)
    loss_regression: float = field(default=0.0)
    anchor_share: float = field(default=0.5)
    freeze_output: bool = field(default=False)
    max_minutes: float | None = field(default=None)
    eval_prompts: int = field(default=16)
    eval_new_tokens: int = field(default=64)

    def __post_init__(self) -> None:
        self.stages()
        self.loss_settings()
        if self.max_batch_tokens < 1 or self.eval_prompts < 0 or self.eval_new_tokens < 2:
            raise ValueError(
                f"max_batch_tokens is {self.max_batch_tokens}, eval_prompts {self.eval_prompts}, eval_new_tokens "
                f"{self.eval_new_tokens}: they must be at least 1, 0 and 2."
            )
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ValueError(f"max_minutes is {self.max_minutes}: give a positive number, or leave it out.")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs}: a head that saw nothing is no head.")
        self._check_unused()
        if self.load_best_model_at_end:
            self._check_best()
        self.remove_unused_columns = False  # the columns are the training-time test's, not a model's forward's
        super().__post_init__()

    def _check_unused(self) -> None:
        """Trainer's options that would change nothing here are refused rather than passed over."""
        usual = {"per_device_train_batch_size": 8, "auto_find_batch_size": False, "label_smoothing_factor": 0.0}
        given = [name for name, value in usual.items() if getattr(self, name) != value]
        if given:
            raise ValueError(
                f"{' and '.join(given)} would change nothing: batches are cut by max_batch_tokens, and what is learnt "
                "are the target's own distributions; leave it out."
            )

    def _check_best(self) -> None:
        """The best head can be kept only if it is saved when it is measured, and measured at all."""
        if self.save_strategy == self.eval_strategy == "steps" and self.save_steps != self.eval_steps:
            raise ValueError(
                f"save_steps is {self.save_steps} and eval_steps {self.eval_steps}: the best head is saved when it is "
                "measured, so make them equal, or give load_best_model_at_end: false to end with the last one."
            )
        if self.metric_for_best_model == "acceptance_length" and not self.eval_prompts:
            raise ValueError(
                "eval_prompts is 0, and the best head is the one of the largest acceptance length on them: give "
                "some, or metric_for_best_model: loss and greater_is_better: false."
            )

    @property
    def n_gpu(self) -> int:
        """Devices of this process: one. More of them want a process each (`accelerate launch`), as in all of ours the
        batches are shared out between processes; torch's DataParallel would cut a batch's rows apart."""
        return min(super().n_gpu, 1)

    def loss_settings(self) -> LossSettings:
        return LossSettings(self.loss, self.loss_decay, self.loss_ce, self.loss_regression, self.anchor_share)

    def stages(self) -> list[tuple[float, int]]:
        """`ttt_stages` as `(share of the run, steps)`."""
        try:
            parts = [stage.split(":") for stage in self.ttt_stages.split(",")]
            stages = [(float(share), int(steps)) for share, steps in parts]
        except ValueError as error:
            raise ValueError(f"ttt_stages is {self.ttt_stages!r}: write share:steps,... as in {STAGES}.") from error
        if abs(sum(share for share, _ in stages) - 1) > 1e-6 or min(steps for _, steps in stages) < 1:
            raise ValueError(f"ttt_stages is {self.ttt_stages!r}: the shares must sum to 1 and steps be at least 1.")
        return stages

    def steps_at(self, share: float) -> int:
        """Steps of training-time test when `share` of the run's updates are done."""
        reached = 0.0
        for part, steps in self.stages():
            reached += part
            if share < reached - 1e-9:
                return steps
        return self.stages()[-1][1]
