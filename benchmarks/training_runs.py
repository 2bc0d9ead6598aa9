"""What scaling.py and trials.py share: the length of runs that are to be compared, and what is told of one.

Both train by recipes (`hf_eagle3.training.recipe`) with `hf_eagle3.training.run.train_head`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_eagle3.embedded import public_name
from hf_eagle3.training.batches import TokenBatches
from hf_eagle3.training.recipe import Recipe
from hf_eagle3.training.run import RECORD
from hf_eagle3.training.share import nested_share


def length_fields(steps: int, evaluations: int) -> dict[str, int]:
    """Recipe fields of a run of about `steps` updates that is measured `evaluations` times, the last time at its very
    end: so that its last head can be the best one too."""
    every = math.ceil(steps / evaluations)
    return {"max_steps": every * evaluations, "eval_steps": every, "save_steps": every}


def sizes(rows: Any) -> tuple[list[int], list[int]]:
    """Tokens and answer tokens of each conversation of a split."""
    return [len(ids) for ids in rows["input_ids"]], [sum(mask) for mask in rows["loss_mask"]]


def steps_for(tokens: int, recipe: Recipe, lengths: Sequence[int], answers: Sequence[int]) -> int:
    """Updates in which a run by `recipe` sees `tokens` tokens, padding left out, of conversations of such sizes."""
    args = recipe.training_arguments("unused")
    if recipe.train_share is not None:
        lengths = [lengths[index] for index in nested_share(answers, recipe.train_share, args.seed)]
    batches = len(TokenBatches(lengths, args.max_batch_tokens, args.packing))
    updates = math.ceil(batches / args.gradient_accumulation_steps)
    return max(1, round(tokens * updates / sum(lengths)))


def training_record(folder: Path) -> dict[str, Any]:
    """`training.json` of a finished run."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record


def measurements(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured in the course of a run, in order."""
    names = {"eval_loss": "loss", "eval_chain_acceptance": "chain_acceptance"}
    names |= {"eval_acceptance_length": "acceptance_length", "num_input_tokens_seen": "tokens_seen", "step": "step"}
    return [
        {name: entry[key] for key, name in names.items() if key in entry}
        for entry in record["history"]
        if "eval_loss" in entry
    ]


def of_the_head(record: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of the head that a run ended with: the best one's, or else the last one's figures.

    Raises:
        ValueError: if the run was never measured.
    """
    measured = measurements(record)
    if not measured:
        raise ValueError("The run was never measured, so it tells nothing: leave eval_strategy out of its recipe.")
    return next((entry for entry in measured if entry["step"] == record["best_step"]), measured[-1])


def public(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe as a record shows them: data, features and models without where this machine keeps them."""
    shown = {name: value for name, value in values.items() if name != "features_dir"}
    for name in ("data", "init"):
        if shown.get(name) is not None:
            shown[name] = Path(shown[name]).name
    if shown.get("target") is not None:
        target = public_name(str(shown["target"]))
        shown["target"] = Path(target).name if Path(target).is_absolute() else target
    return shown


def given_fields(pairs: Sequence[str]) -> dict[str, Any]:
    """Recipe fields from `name=value` texts, the values read as YAML.

    Raises:
        ValueError: if one is no such text.
    """
    import yaml

    fields = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise ValueError(f"{pair!r} was given; write a field of a recipe and its value, as in learning_rate=5e-4.")
        try:
            fields[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{pair!r} was given, whose value is no YAML: write it as in a recipe.") from error
    return fields
