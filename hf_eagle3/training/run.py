"""One run of `hf-eagle3 train`: from a recipe and a loaded target to a trained head in the output folder.

What is on disk decides what is still to do: features, checkpoints and the finished head are each made once, whole or
not at all. The same call goes on after any interruption.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..configuration_eagle3 import default_boundaries
from ..data.feature_store import FeatureStore, rows_fingerprint, write_features
from ..data.features import Example, TargetStates, token_mass
from ..evaluation.report import package_versions, write_json
from ..whole_files import written_whole
from . import checkpoints, initialisation, recipe, vocabulary
from .arguments import Eagle3TrainingArguments
from .recipe import Recipe, complete, differences, write_recipe
from .share import nested_share
from .trainer import Eagle3Trainer
from .warm_start import adapted, save_adapter, warm_head

DRAFT_VOCAB_SIZE = 8192
RECORD, TIMING, MASS = "training.json", "timing.json", "token_mass.safetensors"
_HEAD_FILES = (SAFE_WEIGHTS_NAME, CONFIG_NAME, "adapter_model.safetensors", "adapter_config.json")
_MASS_TOKENS = 500_000  # of the text that ranks the vocabulary where no features are kept
_SCALE_EXAMPLES = 64
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass(frozen=True)
class Outcome:
    """Where a run stands at the end of a sitting.

    Args:
        step, of: updates made and asked for; equal when the head is finished and saved.
        coverage: the share of the target's probability on held-out answers that the draft vocabulary holds.
        acceptance_length: the best one measured so far on held-out prompts, bonus included; None before the first,
            and where the best checkpoint is chosen by another measure.
    """

    step: int
    of: int
    coverage: float
    acceptance_length: float | None

    @property
    def finished(self) -> bool:
        return self.step >= self.of


class Material:
    """What a run learns from: conversations, and the target's states over them as `recipe.features` says.

    `train` is the part of them that `recipe.train_share` wants and `seed` draws; `mass` is that of all of them, so
    that heads of different shares have one draft vocabulary.

    Raises:
        ValueError: if a split is missing or empty.
    """

    def __init__(
        self, wanted: Recipe, states: TargetStates, folder: Path, progress: Progress | None = None, seed: int = 0
    ) -> None:
        from ..data.store import load_dataset

        self.recipe, self.states, self.rows = wanted, states, load_dataset(wanted.data)
        for split in ("train", "validation"):
            if split not in self.rows or not len(self.rows[split]):
                raise ValueError(
                    f"{wanted.data} has no conversations in its split {split!r}: write it again with more of them, "
                    "some of which are held out."
                )
        self.run, self.folder = folder, Path(wanted.features_dir or folder / "features")
        if wanted.features == "cache":
            for split in ("train", "validation"):
                told = None if progress is None else lambda done, of, s=split: progress(f"features, {s}", done, of)
                where = self.folder / split
                write_features(states, self.rows[split], where, dtype=wanted.features_dtype, progress=told)
        self.train, self.held_out = self._source("train"), self._source("validation")
        self.whole = self.train
        if wanted.train_share is not None:
            answers = [sum(mask) for mask in self.rows["train"]["loss_mask"]]
            kept = nested_share(answers, wanted.train_share, seed)
            self.train = self.whole.select(kept) if wanted.features == "online" else self.whole.subset(kept)

    def _source(self, split: str) -> Any:
        if self.recipe.features == "online":
            return self.rows[split].select_columns(["input_ids", "loss_mask"])  # texts take longer to read than ids
        return FeatureStore(self.folder / split, self.states.boundaries, verify=False)  # that has just been done

    @property
    def mass(self) -> torch.Tensor:
        """Summed probability of each token over the training answers, float32 `[vocab]`."""
        return self._masses["train"]

    @property
    def held_out_mass(self) -> torch.Tensor:
        """The same over the held-out answers."""
        return self._masses["validation"]

    @cached_property
    def _masses(self) -> dict[str, torch.Tensor]:
        """Both; where no features are kept they are summed once, and lie in the run's folder for later sittings."""
        if self.recipe.features == "cache":
            return {"train": self.whole.mass, "validation": self.held_out.mass}
        path = self.run / MASS
        data = {split: rows_fingerprint(self.rows[split]) for split in ("train", "validation")}
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                if file.metadata() != data:
                    raise ValueError(
                        f"{self.recipe.data} is not what it was when the run in {self.run} began: give that data "
                        "again, another --output-dir, or --overwrite-output-dir."
                    )
                return {split: file.get_tensor(split) for split in data}
        masses = {}
        for split in data:
            rows = ((row["input_ids"], row["loss_mask"]) for row in self.rows[split])
            masses[split] = token_mass(self.states, rows, _MASS_TOKENS)
        with written_whole(path) as unfinished:  # by every process that meets none: they write the same
            save_file({split: mass.contiguous().cpu() for split, mass in masses.items()}, unfinished, metadata=data)
        return masses

    def some_examples(self) -> list[Example]:
        """A few training examples, for the level of the features."""
        some = [self.train[index] for index in range(min(_SCALE_EXAMPLES, len(self.train)))]
        if self.recipe.features == "cache":
            return some
        return self.states.examples([(row["input_ids"], row["loss_mask"]) for row in some])


def train_head(
    wanted: Recipe, model: PreTrainedModel, args: Eagle3TrainingArguments, progress: Progress | None = None
) -> Outcome:
    """Train as `wanted` says into `args.output_dir` (made by `wanted.training_arguments`), or go on with it.

    Raises:
        ValueError: if the folder holds a run of another recipe, or anything in the recipe does not fit together.
        OSError: if something cannot be read or written.
        FloatingPointError: if the loss is no longer finite.
    """
    began, folder = time.monotonic(), Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with args.main_process_first(local=False):  # the others find broken checkpoints gone and the recipe there
        resumed = _standing(folder, complete(wanted, args), writing=args.process_index == 0)
    head = None if wanted.init is None else warm_head(wanted.init, model)
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    boundaries = head.config.boundaries_for(layers) if head else wanted.boundaries or default_boundaries(layers)
    material = Material(wanted, TargetStates(model, boundaries), folder, progress, args.seed)
    scale = None
    if head is None:
        head, scale = _fresh(wanted, model, material, args.seed)
    kept = vocabulary.coverage(material.held_out_mass, head.t2d.nonzero()[:, 0])
    learner = head if wanted.lora_rank is None else adapted(head, wanted.lora_rank, args.seed)
    trainer = Eagle3Trainer(
        learner, model, args, material.train, material.held_out,
        feature_scale=scale, states=material.states, began=began,
    )  # fmt: skip
    first = checkpoints.step_of(resumed) if resumed else 0
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    # Where checkpoints are chosen by something else, such as the loss, that is no acceptance length.
    best = trainer.state.best_metric if args.metric_for_best_model == "acceptance_length" else None
    outcome = Outcome(trainer.state.global_step, trainer.state.max_steps, kept, best)
    if args.should_save:
        _note_time(folder, first, outcome.step, time.monotonic() - began)
        if outcome.finished:
            _publish(trainer, folder, _record(trainer, wanted, material, outcome))
    return outcome


def clear(folder: str | Path) -> None:
    """Take away what an earlier run left (checkpoints, recipe, records, its head), so that another can begin; features
    stay."""
    for path in Path(folder).glob("checkpoint-*"):
        shutil.rmtree(path)
    for name in (RECORD, TIMING, *_HEAD_FILES, MASS, recipe.FILE):
        Path(folder, name).unlink(missing_ok=True)


def _standing(folder: Path, values: dict[str, Any], writing: bool) -> Path | None:
    """The checkpoint to go on from, after a look at whose run it is; the recipe is written down."""
    last = checkpoints.newest(folder)
    if last is not None or (folder / RECORD).is_file():
        if not (folder / recipe.FILE).is_file():
            raise ValueError(
                f"{folder} holds checkpoints but no {recipe.FILE} to tell which run they are of: give another "
                "--output-dir, or --overwrite-output-dir."
            )
        changed = differences(values, folder)
        if changed:
            raise ValueError(
                f"{folder} holds a run of another recipe ({'; '.join(changed)}): give its options again to go on "
                "with it, another --output-dir, or --overwrite-output-dir."
            )
    if writing:
        write_recipe(values, folder)
    return last


def _fresh(wanted: Recipe, model: Any, material: Material, seed: int) -> tuple[Any, torch.Tensor | None]:
    """A fresh head and the scale of its features, if they are to be scaled."""
    mass, rule = material.mass, material.states.logit_rule
    size = wanted.draft_vocab_size or min(DRAFT_VOCAB_SIZE, len(mass))
    chosen = vocabulary.choose_vocabulary(mass, size, _stop_ids(model))
    rows = rule.rows(chosen.to(rule.weight.device)).weight.float().cpu()
    boundaries = material.states.boundaries
    head = initialisation.fresh_head(model, chosen, rows, seed, boundaries, **(wanted.head or {}))
    if head.input_norm is not None or head.fc_norm is not None or head.fc is None:
        return head, None  # such a head levels its features itself, or reads what is level already
    return head, initialisation.feature_scale(material.some_examples(), len(boundaries))


def _stop_ids(model: Any) -> list[int]:
    """Every token that ends a turn, by the target's generation config or its own."""
    found: set[int] = set()
    for config in (model.generation_config, model.config.get_text_config(decoder=True)):
        eos = getattr(config, "eos_token_id", None)
        found.update([] if eos is None else eos if isinstance(eos, list) else [eos])
    return sorted(found)


def _record(trainer: Eagle3Trainer, wanted: Recipe, material: Material, outcome: Outcome) -> dict[str, Any]:
    """What `training.json` says: all of it the same whenever and however often the run was cut."""
    state, core = trainer.state, trainer.objective.core
    return {
        "acceptance_length": outcome.acceptance_length,
        "best_step": state.best_global_step,
        "draft_vocabulary_coverage": outcome.coverage,
        "draft_vocab_size": core.config.draft_vocab_size,
        "boundaries": material.states.boundaries,
        "seed": trainer.args.seed,
        "steps": state.global_step,
        "tokens_seen": state.num_input_tokens_seen,
        "conversations": {"train": len(material.train), "validation": len(material.held_out)},
        "processes": trainer.args.world_size,
        "device": trainer.args.device.type,
        "versions": package_versions(),
        "recipe": complete(wanted, trainer.args),
        "history": [dict(sorted(entry.items())) for entry in state.log_history if "train_runtime" not in entry],
    }


def _publish(trainer: Eagle3Trainer, folder: Path, record: dict[str, Any]) -> None:
    """Put the head (or the adapter) into the output folder, in bfloat16 a whole one; the record comes last.

    Raises:
        OSError: if the disk is full, say; the checkpoints stay, and the same call tries again.
    """
    unfinished = folder / ".head.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        if hasattr(trainer.objective.head, "peft_config"):
            save_adapter(trainer.objective.head, unfinished)
        else:
            trainer.objective.exported(torch.bfloat16).save_pretrained(unfinished)
        for path in sorted(unfinished.iterdir()):
            path.replace(folder / path.name)
    except (OSError, SafetensorError) as error:  # safetensors has a class of its own for a full disk
        raise OSError(
            f"The head could not be written to {folder} ({error}); its checkpoints are there: free some space and run "
            "the same command again."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    write_json(folder / RECORD, record)


def _note_time(folder: Path, first: int, last: int, seconds: float) -> None:
    """Add a sitting to `timing.json`, which alone holds seconds. Sittings that were killed are not in it."""
    if first == last:
        return
    path = folder / TIMING
    sittings = json.loads(path.read_text(encoding="utf-8"))["sittings"] if path.is_file() else []
    sittings.append({"from_step": first, "to_step": last, "seconds": round(seconds, 1)})
    write_json(path, {"sittings": sittings})


__all__ = ["Material", "Outcome", "clear", "train_head"]
