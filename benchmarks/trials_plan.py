"""What is to be tried: the YAML file of trials, made into recipes of equal length."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from training_runs import length_fields, sizes, steps_for

from hf_eagle3.data.store import load_dataset
from hf_eagle3.training.recipe import Recipe, read_recipe

_FIELDS = {"name", "tokens", "evaluations", "seeds", "base", "trials"}
# The length of a run is ours to give: so many tokens for each.
_LENGTH = ("max_steps", "num_train_epochs", "eval_steps", "save_steps")
# What the target's states depend on.
_OF_FEATURES = ("data", "target", "dtype", "init", "boundaries", "features_dtype")


@dataclass(frozen=True)
class Run:
    """One training: a trial with a seed."""

    trial: str
    overrides: dict[str, Any]
    seed: int
    recipe: Recipe

    @property
    def folder(self) -> str:
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', self.trial).strip('-.') or 'trial'}-seed-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """All trainings, seed by seed, so that a first answer of every trial is there early.

    Args:
        name: of the block in a Markdown file.
        tokens: that each is trained on.
        base: the fields that all share.
    """

    name: str
    tokens: int
    base: dict[str, Any]
    runs: list[Run]


def read_plan(path: Path, work: Path) -> Plan:
    """The plan of a YAML file, whose features are to lie in `work` unless the base names a folder for its own.

    Raises:
        OSError: if the file, a recipe or the data cannot be read.
        ValueError: if something is missing, unknown or contradictory; a trial's own fault is told with its name.
    """
    values = _read(path)
    evaluations, seeds, tokens = values.get("evaluations", 4), values.get("seeds", [0]), values["tokens"]
    for name, number in (("tokens", tokens), ("evaluations", evaluations)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{path} has {name} {number!r}: give a number from 1 on.")
    base = _base(values["base"], path)
    turns: list[tuple[int, Run]] = []
    for trial, overrides in values["trials"].items():
        try:
            own = dict(overrides or {})
            own_seeds = _seeds(own.pop("seeds", seeds))
            made = [_run(str(trial), own, seed, base, tokens, evaluations, work) for seed in own_seeds]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, trial {str(trial)!r}: {error}") from error
        turns += enumerate(made)
    folders = [run.folder for _, run in turns]
    twice = sorted({folder for folder in folders if folders.count(folder) > 1})
    if twice:
        raise ValueError(f"{path} has several trials that would lie in {', '.join(twice)}: give them other names.")
    return Plan(str(values["name"]), tokens, base, [run for _, run in sorted(turns, key=lambda each: each[0])])


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML ({' '.join(str(error).split())}).") from error


def _read(path: Path) -> dict[str, Any]:
    values = _read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no mapping: give name, tokens, base and trials.")
    missing, unknown = {"name", "tokens", "base", "trials"} - set(values), set(values) - _FIELDS
    if missing or unknown:
        told = [f"lacks {', '.join(sorted(missing))}"] if missing else []
        told += [f"has {', '.join(sorted(map(str, unknown)))}, which nothing knows"] if unknown else []
        raise ValueError(f"{path} {' and '.join(told)}; it may have {', '.join(sorted(_FIELDS))}.")
    if not isinstance(values["trials"], dict) or not values["trials"]:
        raise ValueError(f"{path} has no trials: name each and give the fields that it changes.")
    return values


def _base(given: Any, path: Path) -> dict[str, Any]:
    """The fields of the base recipe, from the mapping or from the file that it names, beside the trials' own."""
    if isinstance(given, str):
        given = _read_yaml(path.parent / given)
    if not isinstance(given, dict):
        raise ValueError(f"{path} has the base {given!r}: give a recipe's fields, or the file of a recipe.")
    return {name: value for name, value in given.items() if name not in _LENGTH}


def _run(
    trial: str, own: dict[str, Any], seed: int, base: Mapping[str, Any], tokens: int, evaluations: int, work: Path
) -> Run:
    given = [name for name in (*_LENGTH, "features_dir", "seed") if name in own]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be tried: every run has so many tokens, and seeds of its own.")
    fields = {**base, **own, "seed": seed, "features_dir": _features(base, own, work)}
    recipe = read_recipe(None, fields)
    steps = steps_for(tokens, recipe, *_sizes(recipe.data))
    return Run(trial, own, seed, read_recipe(None, fields | length_fields(steps, evaluations)))


@cache
def _sizes(data: str) -> tuple[list[int], list[int]]:
    return sizes(load_dataset(data)["train"])


def _features(base: Mapping[str, Any], own: Mapping[str, Any], work: Path) -> str:
    """A folder of features for each kind of them; what the base names is for trials that read what it reads."""
    kind = [{**base, **own}.get(name) for name in _OF_FEATURES]
    if base.get("features_dir") is not None and kind == [base.get(name) for name in _OF_FEATURES]:
        return str(base["features_dir"])
    boundaries = own.get("boundaries", base.get("boundaries"))
    name = "default" if boundaries is None else "-".join(map(str, boundaries)).replace("--", "-")
    return str(work / "features" / f"{name}-{hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:8]}")


def _seeds(given: Any) -> list[int]:
    if not isinstance(given, list) or not given or not all(type(seed) is int for seed in given):
        raise ValueError(f"seeds is {given!r}: give a list of whole numbers, such as [0, 1].")
    if len(set(given)) < len(given):
        raise ValueError(f"seeds is {given!r}: each would be trained once only; leave repeats out.")
    return given
