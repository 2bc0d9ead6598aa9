"""What the folder of a head tells about it: the only source of its card.

A head's folder is laid out as its Hub repository, one folder a head:

    config.json  model.safetensors         the head (or adapter_config.json, adapter_model.safetensors)
    training.json  recipe.yaml             how it was trained, as `hf-eagle3 train` leaves it
    evaluation/*.json                      what `hf-eagle3 eval --json` and `sweep --json` measured
    card.yaml                              what no file can tell: target, licence, languages, prose
    README.md                              the card, rendered from all of them

Every file but the first may be missing. Knows nothing of how a card looks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from .. import layouts
from ..evaluation.records import head_name
from .evaluations import Evaluation, read_evaluation
from .words import FILE as WORDS_FILE
from .words import Words, read_words, read_yaml

EVALUATIONS = "evaluation"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TRAINING, RECIPE = "training.json", "recipe.yaml"
_INDEX_TABLES = ("d2t", "t2d")  # which tokens the draft vocabulary holds: counted apart from what was learnt


@dataclass(frozen=True)
class Weights:
    """What the headers of the weight files say.

    Args:
        parameters: numbers in all tensors but the tables of the draft vocabulary.
        size: of the files, in bytes.
        dtypes: of those tensors, as torch calls them.
    """

    parameters: int
    size: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """All that the folder of a head tells; mappings are empty where their file is missing.

    Args:
        name: what the head is called: the last part of its Hub id, else its folder's name.
        repo_id: its Hub id, once it has one.
        config: `config.json`, or `adapter_config.json` of an adapter.
        adapter: whether it is one.
        training, recipe: `training.json`, and `recipe.yaml` or what `training.json` holds of it.
        evaluations: the records in `evaluation/`, by file name.
        words: what was written by hand.
    """

    name: str
    repo_id: str | None
    config: Mapping[str, Any]
    adapter: bool
    weights: Weights | None
    training: Mapping[str, Any]
    recipe: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    words: Words


def read_facts(folder: str | Path, repo_id: str | None = None) -> Facts:
    """Reads the folder of a head.

    Args:
        repo_id: of the head on the Hub, if it goes there; else what `card.yaml` says.

    Raises:
        ValueError: if it holds no head, or a file is not what its name says (a number that is none, say).
        OSError: if a file cannot be read.
    """
    folder = Path(folder)
    words = read_words(folder)
    config, adapted = read_json(folder / CONFIG_NAME), read_json(folder / ADAPTER_CONFIG)
    if not config and not adapted:
        raise ValueError(f"{folder} holds no {CONFIG_NAME} that says anything: give the folder of a head.")
    if config and layouts.recognise(config) is None and not layouts.only_tensors_tell(config):
        raise ValueError(
            f"{folder} holds a {config.get('model_type')!r} model and no draft head: give the folder of a head."
        )
    training = read_json(folder / TRAINING)
    return Facts(
        name=(repo_id or words.repo_id or head_name(folder)).rsplit("/", 1)[-1],
        repo_id=repo_id or words.repo_id,
        config=config or adapted,
        adapter=not config,
        weights=_weights(folder),
        training=training,
        recipe=_recipe(folder, training),
        evaluations=_evaluations(folder, words),
        words=words,
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file. A number that is not finite is refused.

    Raises:
        ValueError: if it is no JSON object of finite numbers.
    """
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be used ({error}): write it again, or take it away.") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} holds a {type(read).__name__}, not an object: write it again, or take it away.")
    return read


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text}, which is no finite number")
    return number


def _recipe(folder: Path, training: Mapping[str, Any]) -> Mapping[str, Any]:
    if (folder / RECIPE).is_file():
        return read_yaml(folder / RECIPE)
    recipe = training.get("recipe") or {}
    if not isinstance(recipe, dict):
        raise ValueError(f"{folder / TRAINING} has a {type(recipe).__name__} as recipe, not an object: train again.")
    return recipe


def _evaluations(folder: Path, words: Words) -> tuple[Evaluation, ...]:
    paths = sorted((folder / EVALUATIONS).glob("*.json"))
    strangers = sorted(set(words.records) - {path.name for path in paths})
    if strangers:
        raise ValueError(
            f"{folder / WORDS_FILE} speaks of the record {strangers[0]}, which is not in {folder / EVALUATIONS}: put "
            "it there, or take its words away."
        )
    return tuple(
        read_evaluation(f"{EVALUATIONS}/{path.name}", read_json(path), words.records.get(path.name, {}))
        for path in paths
    )


def _weights(folder: Path) -> Weights | None:
    """Of safetensors in one file or several; None for other forms, whose headers cannot be read without them."""
    paths = [path for name in (SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS) if (path := folder / name).is_file()]
    paths = paths[:1] or sorted(folder.glob("model-*-of-*.safetensors"))
    if not paths:
        return None
    parameters, dtypes = 0, set()
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 -- no mapping, for all that it has keys
                    if name.rsplit(".", 1)[-1] not in _INDEX_TABLES:
                        part = file.get_slice(name)
                        parameters += math.prod(part.get_shape())
                        dtypes.add(_DTYPES.get(part.get_dtype(), part.get_dtype()))
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file ({error}): save or download it again.") from error
    return Weights(parameters, sum(path.stat().st_size for path in paths), tuple(sorted(dtypes)))


_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
