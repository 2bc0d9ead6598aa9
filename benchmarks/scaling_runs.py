"""One head of the scaling figure: what it is trained on and with, and what it reaches on held-out prompts.

A finished head leaves its record in its folder; a run that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from training_runs import measurements, of_the_head, public, sizes, training_record

from hf_eagle3 import load_head
from hf_eagle3.data.feature_store import rows_fingerprint
from hf_eagle3.evaluation.acceptance_length import acceptance_on
from hf_eagle3.evaluation.report import write_json
from hf_eagle3.evaluation.timing import Settings
from hf_eagle3.pairing import tree_shape
from hf_eagle3.training.measuring import prompts_of
from hf_eagle3.training.recipe import Recipe, complete, read_recipe
from hf_eagle3.training.run import train_head
from hf_eagle3.training.share import nested_share

EAGLE3, EAGLE1 = "EAGLE-3", "EAGLE-1"
# The tree that the device has by default, and the paper's.
TREES: dict[str, dict[str, int]] = {
    "device": {},
    "paper": {"num_assistant_tokens": 59, "tree_depth": 8, "tree_top_k": 10},
}
RECORD = "scaling.json"


@dataclass(frozen=True)
class Asked:
    """A head that is to be trained."""

    objective: str
    share: float
    seed: int
    recipe: Recipe

    @property
    def folder(self) -> str:
        return f"{self.objective.lower()}-share-{self.share:g}-seed-{self.seed}"


class HeldOut:
    """The prompts that all heads are measured on: validation conversations on which no checkpoint was chosen.

    Args:
        rows: the data set.
        chosen_on: so many first ones choose checkpoints.
        prompts: so many of the following ones are measured on; all of them if there are fewer.
        new_tokens: length of the answers.

    Raises:
        ValueError: if none are left to measure on.
    """

    def __init__(self, rows: Mapping[str, Any], chosen_on: int, prompts: int, new_tokens: int) -> None:
        there = len(rows["validation"])
        self.first, self.new_tokens = chosen_on, new_tokens
        self.last = min(chosen_on + prompts, there)
        self.fingerprints = {split: rows_fingerprint(rows[split]) for split in ("train", "validation")}
        if self.last <= self.first:
            raise ValueError(
                f"The validation split has {there} conversations and checkpoints are chosen on {chosen_on} "
                "(eval_prompts): none are left to measure on; hold out more, or choose on fewer."
            )
        self.prompts = prompts_of(rows["validation"].select(range(self.first, self.last)), prompts)

    def facts(self) -> dict[str, Any]:
        """What the figures depend on, the text included."""
        numbers = {"first_conversation": self.first, "prompts": len(self.prompts), "new_tokens": self.new_tokens}
        return {**numbers, "trees": TREES, "data": self.fingerprints}

    def measure(self, target: Any, folder: Path) -> dict[str, dict[str, Any]]:
        """What the head of `folder` reaches with each tree, greedy."""
        head = load_head(str(folder), dtype=target.dtype).to(target.device).eval()
        inputs = [{"input_ids": ids.to(target.device)} for ids in self.prompts]
        inputs = [{**given, "attention_mask": torch.ones_like(given["input_ids"])} for given in inputs]
        found = {}
        for name, tree in TREES.items():
            shape: Any = tree_shape(target, head, dict(tree), None)
            figures = acceptance_on(target, head, inputs, Settings(self.new_tokens, tree=tree))
            found[name] = {
                "tree": list(vars(shape).values()),
                "acceptance_length": figures.acceptance_length,
                "verifications": figures.rounds,
                "acceptance_rates": figures.acceptance_rates,
            }
        return found


def recipe_for(objective: str, path: Path | None, given: Mapping[str, Any], own: Mapping[str, Any]) -> Recipe:
    """The recipe of a head: the file's, as it stands for EAGLE-3, and with EAGLE-1's inputs and objective for EAGLE-1.

    EAGLE-1 (arXiv 2401.15077): one step, from the target's last hidden state, whose next value is regressed (smooth
    L1, factor 1) beside a soft cross-entropy (factor 0.1), with the target's output matrix left as it is. The head has
    no fusion layer and feeds back its normed state: what it reads of the target, what it feeds back, what is regressed
    and what the output matrix reads are then states of one space, as EAGLE-1 drafts. With a fusion layer, or feeding
    back what it has before its norm, it would draft from states that its one step never taught it to read.

    Args:
        path: a recipe file, or None.
        given: fields that win over the file's.
        own: further fields of EAGLE-1's alone, such as a learning rate.
    """
    if objective == EAGLE3:
        return read_recipe(path, dict(given))
    of_the_file = read_recipe(path, dict(given)).head or {}
    # Norms of what the target gives would set its states apart from those that are fed back.
    kept = {name: value for name, value in of_the_file.items() if name not in ("fc_norm", "norm_before_fc")}
    fields = {
        "boundaries": [-1], "head": {**kept, "norm_output": True}, "freeze_output": True, "loss": "soft_ce",
        "loss_ce": 0.1, "loss_regression": 1.0, "ttt_stages": "1:1",
    }  # fmt: skip
    return read_recipe(path, {**given, **fields, **own})


def trained_and_measured(asked: Asked, target: Any, rows: Any, held_out: HeldOut, work: Path) -> dict[str, Any] | None:
    """The record of a head, from its folder if it is finished; None where the sitting ended before it was.

    Raises:
        ValueError: if the folder holds a head of other settings or other text.
    """
    folder = work / asked.folder
    args = asked.recipe.training_arguments(folder)
    wanted = {"recipe": public(complete(asked.recipe, args)), "measured": held_out.facts()}
    there = _finished(folder, wanted)
    if there is not None:
        return there
    if not train_head(asked.recipe, target, args).finished:
        return None
    record = _record(asked, training_record(folder), rows) | {"acceptance": held_out.measure(target, folder)}
    write_json(folder / RECORD, {"asked": wanted, "run": record})
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # the head lies beside them, and ten runs of checkpoints fill a disk
    return record


def _finished(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    path = folder / RECORD
    if not path.is_file():
        return None
    there = json.loads(path.read_text(encoding="utf-8"))
    parts = [part for part in wanted if there["asked"].get(part) != json.loads(json.dumps(wanted[part]))]
    if parts:
        was, now = there["asked"].get(parts[0], {}), json.loads(json.dumps(wanted[parts[0]]))
        changed = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        told = "; ".join(f"{name} was {was.get(name)} and is {now.get(name)}" for name in changed)
        raise ValueError(f"{folder} holds a head of other settings ({told}): give another --out, or those settings.")
    record: dict[str, Any] = there["run"]
    return record


def _record(asked: Asked, training: Mapping[str, Any], rows: Any) -> dict[str, Any]:
    lengths, answers = sizes(rows["train"])
    kept = nested_share(answers, asked.share, asked.seed)
    return {
        "objective": asked.objective,
        "share": asked.share,
        "seed": asked.seed,
        "conversations": training["conversations"]["train"],
        "answer_tokens": sum(answers[index] for index in kept),
        "steps": training["steps"],
        "tokens_seen": training["tokens_seen"],
        "epochs": training["tokens_seen"] / sum(lengths[index] for index in kept),
        "best_step": training["best_step"],
        "draft_vocabulary_coverage": training["draft_vocabulary_coverage"],
        "when_chosen": of_the_head(training),
        "on_the_way": measurements(training),
        "recipe": public(training["recipe"]),
    }


def plan(
    shares: Sequence[float], seeds: Sequence[int], path: Path | None, given: Mapping[str, Any], own: Mapping[str, Any]
) -> list[Asked]:
    """All heads, in the order in which they are trained: a seed's whole curve first, and of each share EAGLE-3's head
    before EAGLE-1's, which reads the features that were kept for it."""
    return [
        Asked(objective, share, seed, recipe_for(objective, path, {**given, "train_share": share, "seed": seed}, own))
        for seed in seeds
        for share in sorted(shares)
        for objective in (EAGLE3, EAGLE1)
    ]
