"""`Eagle3Trainer`: transformers' Trainer over the training-time test.

Trainer's own loop, optimisers, schedules, mixed precision, accumulation, logging and process groups; ours are the
batches, the divisor of the loss, what a checkpoint holds and what "best" means: the acceptance length that our own
decoder reaches on held-out prompts.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ..data.feature_store import FeatureStore
from ..data.features import TargetStates
from . import checkpoints, measuring
from .arguments import Eagle3TrainingArguments
from .batches import Batch, Collator, Items, TokenBatches
from .objective import TrainingTimeTest
from .warm_start import save_adapter

STATE_FILE = "eagle3_trainer.safetensors"


class Eagle3Trainer(Trainer):
    """Trains a head for a target.

    Args:
        head: an `Eagle3DraftModel` with its draft vocabulary set, float32, or a `PeftModel` around one.
        target: the model it drafts for; it is neither changed nor saved.
        args: see [`Eagle3TrainingArguments`].
        train_dataset: a [`FeatureStore`] (the target's states from disk), or rows of `input_ids` and `loss_mask` such
            as a split of a data set (the target runs along, under `torch.no_grad`).
        eval_dataset: held-out ones of the same kind. The acceptance length is measured on their first prompts.
        feature_scale: see [`initialisation.feature_scale`]; ones, right for a warm start, if not given.
        states: of `target`, where they are there already.
        began: when this sitting began, by `time.monotonic()`, for `max_minutes`; now, if not given.
        kwargs: what else `Trainer` takes.

    Checkpoints hold a head that `from_pretrained` loads, in float32, beside Trainer's own files. Everything random is
    drawn from `(seed, epoch, index)`: a resumed run meets the losses that the uninterrupted one would have met.

    Raises:
        FloatingPointError: from `train()`, when a loss or a weight is no longer finite; nothing is saved then.
        OSError: from `train()`, when a checkpoint cannot be written; the ones before it stay.
    """

    loss_is_scaled_for_ga = True  # the divisor is that of the whole update, over all micro-batches and processes
    args: Eagle3TrainingArguments
    control: Any

    def __init__(
        self,
        head: Any,
        target: Any,
        args: Eagle3TrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        feature_scale: torch.Tensor | None = None,
        states: TargetStates | None = None,
        began: float | None = None,
        **kwargs: Any,
    ) -> None:
        core = head.get_base_model() if hasattr(head, "get_base_model") else head
        layers = target.config.get_text_config(decoder=True).num_hidden_layers
        if core.embed_tokens is not None:
            core.embed_tokens.requires_grad_(False)  # embeddings that a head brings stay as they are
        if args.freeze_output:
            core.lm_head.requires_grad_(False)
        self.target = target
        self.states = states or TargetStates(target, core.config.boundaries_for(layers))
        self.objective = TrainingTimeTest(
            head, core.input_embeddings_for(target), self.states.logit_rule, feature_scale, args.loss_settings()
        )
        super().__init__(
            model=self.objective, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs
        )
        if self.is_fsdp_enabled:
            raise ValueError(
                "FSDP was asked for, but Eagle3Trainer saves and measures whole heads, which are small enough to be "
                "on every device: launch it with plain data parallelism (accelerate launch without --use_fsdp)."
            )
        self.batches = self._batches_of(train_dataset, args.world_size, args.process_index)
        self.unlogged = torch.zeros(2, dtype=torch.float64)
        self.add_callback(_Epochs(self.batches))
        self.add_callback(_LossWindow(self))
        if args.max_minutes is not None:
            self.add_callback(_Sitting(args.max_minutes, time.monotonic() if began is None else began))

    # ------------------------------------------------------------------ batches

    def get_train_dataloader(self) -> DataLoader:
        """Batches of `max_batch_tokens`, shared between processes by the sampler itself."""
        return self._loader(self.train_dataset, self.batches)

    def _batches_of(self, dataset: Any, processes: int = 1, rank: int = 0) -> TokenBatches:
        if isinstance(dataset, FeatureStore):
            lengths = [dataset.length(index) for index in range(len(dataset))]
        else:
            lengths = [len(row["input_ids"]) for row in dataset]
        if not lengths:
            raise ValueError("The training data holds no conversation: write some first (`hf-eagle3 data write`).")
        return TokenBatches(lengths, self.args.max_batch_tokens, self.args.packing, self.args.seed, rank, processes)

    def _loader(self, dataset: Any, batches: TokenBatches) -> DataLoader:
        online = not isinstance(dataset, FeatureStore)
        return DataLoader(
            Items(dataset),
            batch_sampler=batches,
            collate_fn=Collator(self.args.packing, self.states if online else None),
            num_workers=0 if online else self.args.dataloader_num_workers,  # a target cannot run in a worker
            pin_memory=self.args.dataloader_pin_memory and not online,
        )

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        """Supervised rows of each step in the whole update, float32 `[steps]`, over all processes."""
        steps = self.steps_now()
        counts = torch.zeros(steps, device=device)
        for batch in batch_samples:
            counts += self.objective.counts(batch, steps).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts[None]).sum(0)
        return counts

    def _track_num_input_tokens(self, inputs: Batch) -> None:
        """Tokens trained on, in all processes, padding left out."""
        seen = (inputs["documents"] >= 0).sum().to(self.args.device)
        if self.args.world_size > 1:
            seen = self.accelerator.gather(seen[None]).sum()
        self.state.num_input_tokens_seen += int(seen)

    # ------------------------------------------------------------------ steps

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """Trainer's `train`, which with True goes on from the newest whole checkpoint; from a checkpoint of the last
        step no further one is taken: the best head is loaded, as at the end of the run.

        Raises:
            OSError: if there is no checkpoint to go on from.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoints.newest(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise OSError(f"{self.args.output_dir} holds no whole checkpoint: leave resume_from_checkpoint out.")
        if resume_from_checkpoint:
            resume_from_checkpoint = str(resume_from_checkpoint)
            state = TrainerState.load_from_json(os.path.join(resume_from_checkpoint, TRAINER_STATE_NAME))
            if state.global_step >= state.max_steps:
                self.state = state
                self._find_best()
                self._load_from_checkpoint(resume_from_checkpoint)
                if self.args.load_best_model_at_end:
                    self._load_best_model()
                return TrainOutput(state.global_step, 0.0, {})
        return super().train(resume_from_checkpoint or None, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._init_training_state(*args, **kwargs)
        self._find_best()
        return found

    def _find_best(self) -> None:
        """The best checkpoint lies where the run is now, wherever that was when it was saved."""
        if self.state.best_global_step:
            best = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def steps_now(self) -> int:
        """Steps of training-time test at this point of the run."""
        return self.args.steps_at(self.state.global_step / max(self.state.max_steps, 1))

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The part of this micro-batch in the loss of the update. DDP averages over processes: hence the factor."""
        out = model(steps=self.steps_now(), num_items=num_items_in_batch, **inputs)
        loss = out["loss"] * self.args.world_size
        return (loss, out) if return_outputs else loss

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            step = self.state.global_step + 1
            raise FloatingPointError(f"The loss is {loss.item()} at step {step}; {self._way_out()}")
        return loss

    def _way_out(self) -> str:
        last = checkpoints.newest(self.args.output_dir) if self.args.should_save else None
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint was written yet"
        return f"{kept}: start again with a lower learning rate, or without bf16."

    def _unlogged(self) -> torch.Tensor:
        """Summed loss of the updates that no line of the log tells of yet, and their number, float64 `[2]`."""
        loss = self._tr_loss.detach().clone()
        if self.args.world_size > 1:
            loss = self.accelerator.gather(loss[None]).mean()
        return torch.tensor([loss.item(), self.state.global_step - self._globalstep_last_logged], dtype=torch.float64)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "num_input_tokens_seen": self.state.num_input_tokens_seen}, start_time)

    # ------------------------------------------------------------------ measuring

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """On held-out conversations the loss and the chain's prefix hits; on their prompts the acceptance length."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("There are no held-out conversations to measure on: give eval_dataset.")
        batches = self._batches_of(dataset, self.args.world_size, self.args.process_index)
        figures = measuring.on_text(self, self._loader(dataset, batches), self.args.steps_at(1.0))
        if self.args.eval_prompts:
            prompts = measuring.prompts_of(dataset, self.args.eval_prompts)
            figures |= measuring.on_prompts(self, prompts, self.args.eval_new_tokens)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ------------------------------------------------------------------ files

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; but where a sitting ends before the run, its newest checkpoint, from which the next sitting goes
        on, stays whatever `save_total_limit` is."""
        limit = self.args.save_total_limit
        if self.state.global_step < self.state.max_steps:
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in self.objective.parameters()):
            raise FloatingPointError(
                f"The head's weights are not finite after step {self.state.global_step}; {self._way_out()}"
            )
        self.unlogged = self._unlogged()
        with checkpoints.intact(self.args.output_dir, self.state.global_step, self.args.should_save):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if self._adapted:
            save_adapter(self.objective.head, folder)
        else:
            self.objective.exported().save_pretrained(folder)
        own = {"feature_scale": self.objective.feature_scale.cpu(), "unlogged": self.unlogged.cpu()}
        save_file(own, folder / STATE_FILE)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        own = load_file(folder / STATE_FILE)
        self.objective.feature_scale.copy_(own["feature_scale"])
        self.unlogged = own["unlogged"]
        if self._adapted:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(self.objective.head, load_file(folder / "adapter_model.safetensors"))
        else:
            self.objective.load_exported(load_file(folder / "model.safetensors"))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None and os.path.isdir(self.state.best_model_checkpoint):
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    @property
    def _adapted(self) -> bool:
        return hasattr(self.objective.head, "get_base_model")


class _Epochs(TrainerCallback):
    """Tells the sampler which epoch it is, in a run that was resumed too."""

    def __init__(self, batches: TokenBatches) -> None:
        self.batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.batches.set_epoch(int((state.epoch or 0) + 1e-6))


class _LossWindow(TrainerCallback):
    """Hands on the losses that the last sitting had not logged yet: the log is that of a run without a cut."""

    def __init__(self, trainer: Eagle3Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        loss, updates = self.trainer.unlogged.tolist()
        self.trainer._tr_loss += loss
        self.trainer._globalstep_last_logged -= int(updates)
        self.trainer.unlogged = torch.zeros(2, dtype=torch.float64)


class _Sitting(TrainerCallback):
    """Ends a sitting at the first step after its time, with a checkpoint to go on from."""

    def __init__(self, minutes: float, began: float) -> None:
        self.seconds, self.began = 60 * minutes, began

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        over = torch.tensor(float(time.monotonic() - self.began > self.seconds))
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(over := over.to(args.device), src=0)  # clocks differ, checkpoints must not
        if over.item():
            control.should_save = control.should_training_stop = True


__all__ = ["Eagle3Trainer"]
