"""A recipe: everything that decides what a run gives, as a flat YAML file that can be written, read and compared.

Its keys are the fields of [`Recipe`] and any field of [`Eagle3TrainingArguments`]. Knows nothing of models or data.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import types
import typing
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml

from ..configuration_eagle3 import LAST_HIDDEN_STATE, Eagle3Config
from ..native_products import usual_dtype
from ..whole_files import written_whole
from .arguments import Eagle3TrainingArguments

FILE = "recipe.yaml"
# Written into every recipe beside what was given: Trainer's own defaults that a run depends on.
_DECISIVE = (
    "seed", "max_steps", "gradient_accumulation_steps", "optim", "adam_beta1", "adam_epsilon", "weight_decay",
    "max_grad_norm",
)  # fmt: skip
# The machine's or the sitting's, not the run's.
_NOT_OF_THE_RUN = {"use_cpu", "dataloader_pin_memory", "output_dir", "max_minutes"}
# What of a fresh head can be chosen: fields that the training-time test unrolls as drafting reads them.
HEAD_FIELDS = (
    "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "attention_bias", "qkv_bias", "qk_norm", "mlp_bias", "hidden_act", "rms_norm_eps", "initializer_range",
    "rope_parameters", "norm_before_fc", "fc_norm", "norm_before_residual", "norm_output",
)  # fmt: skip
_HEAD_SIZES = ("num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
# What may change between the sittings of one run: nothing of it touches the weights.
_MAY_CHANGE = {
    "report_to", "features_dir", "disable_tqdm", "save_total_limit", "dataloader_num_workers",
    "logging_steps", "logging_strategy", "logging_dir", "log_level", "run_name", "project", "trackio_space_id",
    "trackio_bucket_id", "trackio_static_space_id", "activation_checkpointing", "activation_checkpointing_kwargs",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """What `hf-eagle3 train` is asked for.

    Args:
        data: folder or Hub id of a data set written by `hf-eagle3 data write`.
        target: Hub id or folder of the target; the embedded one if not given.
        dtype: of the target: "auto", "float32", "bfloat16" or "float16"; if not given the checkpoint's own, for the
            embedded one bfloat16 where the device multiplies in it by itself, else float32. The command writes down
            which.
        init: Hub id or folder of a head to start from; its vocabulary and boundaries are kept.
        lora_rank: train an adapter of this rank on `init` and save that.
        boundaries: what a fresh head reads of the target; the official default if not given. `[-1]` is the target's
            last hidden state, read as it is, without a fusion layer.
        draft_vocab_size: tokens that a fresh head can propose; 8192, or all of a smaller target's, if not given.
        head: fields of [`Eagle3Config`] in which a fresh head is to differ from one layer of the target's geometry, of
            those in [`HEAD_FIELDS`].
        features: "cache" (computed once, kept in `features_dir`) or "online" (the target runs along).
        features_dtype: of the states kept, "bfloat16", "float16" or "float32"; the target's own if not given.
        features_dir: `features` in the output folder if not given.
        train_share: train on this part of the training conversations, by their answer tokens, which `seed` draws (see
            [`share.nested_share`]); features and the draft vocabulary are still those of all of them.
        arguments: the given fields of [`Eagle3TrainingArguments`].

    Raises:
        ValueError: where fields contradict one another.
    """

    data: str
    target: str | None = None
    dtype: str | None = None
    init: str | None = None
    lora_rank: int | None = None
    boundaries: list[int] | None = None
    draft_vocab_size: int | None = None
    head: dict[str, Any] | None = None
    features: str = "cache"
    features_dtype: str | None = None
    features_dir: str | None = None
    train_share: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features not in ("cache", "online"):
            raise ValueError(f"features is {self.features!r}; choose cache or online.")
        if self.dtype not in (None, "auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}; choose auto, float32, bfloat16 or float16.")
        if self.features_dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"features_dtype is {self.features_dtype!r}; choose float32, bfloat16 or float16.")
        if self.lora_rank is not None and (self.init is None or self.lora_rank < 1):
            raise ValueError(
                f"lora_rank is {self.lora_rank} and init is {self.init}: an adapter needs a head to adapt and a rank "
                "of at least 1; name the head with init (--init)."
            )
        if self.init is not None and (self.boundaries or self.draft_vocab_size is not None or self.head):
            raise ValueError(
                f"init is {self.init}, whose draft vocabulary, boundaries and layers are kept: leave out "
                "draft_vocab_size, boundaries and head, or init."
            )
        if self.boundaries is not None and LAST_HIDDEN_STATE in self.boundaries and len(self.boundaries) > 1:
            raise ValueError(
                f"boundaries is {self.boundaries}: the last hidden state ({LAST_HIDDEN_STATE}) is read alone, as it "
                "is; name only that, or boundaries from 0 on."
            )
        if self.train_share is not None and not 0 < self.train_share <= 1:
            raise ValueError(f"train_share is {self.train_share}: it lies above 0 and up to 1.")
        if self.head is not None:
            _head_fields(self.head)

    def training_arguments(self, output_dir: str | Path) -> Eagle3TrainingArguments:
        """The arguments of the run, with our defaults and Trainer's for all that was not given."""
        return Eagle3TrainingArguments(**{**self.arguments, "output_dir": str(output_dir)})


def read_recipe(path: str | Path | None, given: dict[str, Any]) -> Recipe:
    """The recipe of a file, if there is one, with `given` fields in the place of the file's.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no mapping, holds an unknown key or a value of the wrong type, or names no `data`.
    """
    values = {**({} if path is None else _read_yaml(Path(path))), **given}
    own = {name: _checked(name, value) for name, value in values.items()}
    if own.get("data") is None:
        raise ValueError("No data was named: give --data with a folder or Hub id from `hf-eagle3 data write`.")
    names = set(_recipe_types())
    arguments = {name: value for name, value in own.items() if name not in names}
    return Recipe(**{name: value for name, value in own.items() if name in names}, arguments=arguments)


def complete(recipe: Recipe, args: Eagle3TrainingArguments) -> dict[str, Any]:
    """Every field that decides the outcome, by name: what `recipe.yaml` holds; `args` were made by the recipe."""
    values = {name: getattr(recipe, name) for name in _recipe_types()}
    ours = {item.name for item in fields(Eagle3TrainingArguments)} & set(Eagle3TrainingArguments.__annotations__)
    for name in sorted(ours | set(_DECISIVE) | set(recipe.arguments)):
        if name not in _NOT_OF_THE_RUN:
            # Trainer rewrites some of its fields when it is made; what was given is what makes them again.
            values[name] = _plain(recipe.arguments.get(name, getattr(args, name)))
    return values


def settled(recipe: Recipe, device: torch.device | str, folder: str | Path) -> Recipe:
    """The recipe with the dtype that the embedded target has in the run of `folder`: the one written down there, and
    of a run that begins what `device` is fastest in. So a run goes on elsewhere as it began."""
    if recipe.target is not None or recipe.dtype is not None:
        return recipe
    path = Path(folder) / FILE
    dtype = _read_yaml(path).get("dtype") if path.is_file() else None
    return replace(recipe, dtype=dtype or str(usual_dtype(device)).removeprefix("torch."))


def write_recipe(values: dict[str, Any], folder: str | Path) -> None:
    """Write `recipe.yaml`, whole or not at all."""
    with written_whole(Path(folder) / FILE) as unfinished:
        unfinished.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def differences(values: dict[str, Any], folder: str | Path) -> list[str]:
    """How `values` differ from the recipe in `folder` in what decides the outcome; nothing where there is none."""
    path = Path(folder) / FILE
    if not path.is_file():
        return []
    there = _read_yaml(path)
    names = [name for name in {**there, **values} if name not in _MAY_CHANGE]
    return [
        f"{name} was {there.get(name)} and is {values.get(name)}"
        for name in names
        if there.get(name) != values.get(name)
    ]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path} is no YAML ({problem}); write one `key: value` a line.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; a recipe is a mapping, one `key: value` a line.")
    return values


def _recipe_types() -> dict[str, Any]:
    hints = typing.get_type_hints(Recipe)
    return {item.name: hints[item.name] for item in fields(Recipe) if item.name != "arguments"}


def _argument_types() -> dict[str, Any]:
    hints = typing.get_type_hints(Eagle3TrainingArguments)
    known = {item.name: hints[item.name] for item in fields(Eagle3TrainingArguments) if item.init}
    return {name: hint for name, hint in known.items() if name != "output_dir"}


def _checked(name: str, value: Any) -> Any:
    """The value of a known field, of a type that it takes."""
    types_of = {**_argument_types(), **_recipe_types()}
    if name not in types_of:
        close = difflib.get_close_matches(str(name), types_of, n=1)
        hint = f"did you mean {close[0]}?" if close else "see `hf-eagle3 train --help`."
        raise ValueError(f"The recipe holds {name!r}, which nothing knows; {hint}")
    if value is False and name.endswith("_strategy"):
        value = "no"  # which YAML 1.1 reads as a bool
    value = _as_type(f"The recipe's {name}", value, types_of[name])
    return _head_fields(value) if name == "head" and value is not None else value


def _head_fields(given: dict[str, Any]) -> dict[str, Any]:
    """Fields of a fresh head, each of which can be chosen and is of a type that it takes."""
    other = sorted(str(name) for name in set(given) - set(HEAD_FIELDS))
    if other:
        raise ValueError(
            f"head has {', '.join(other)}, but of a head that is to be trained only {', '.join(HEAD_FIELDS)} can be "
            "chosen."
        )
    types_of = inspect.get_annotations(Eagle3Config, eval_str=True)
    values = {name: _as_type(f"The head's {name}", value, types_of[name]) for name, value in given.items()}
    for name in _HEAD_SIZES:
        if values.get(name) is not None and values[name] < 1:
            raise ValueError(f"The head's {name} is {values[name]}; it must be 1 or more.")
    return values


def _as_type(what: str, value: Any, wanted: Any) -> Any:
    if isinstance(value, str) and not _fits(value, wanted) and _fits(0.5, wanted):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 1e-3 as a text
    if not _fits(value, wanted):
        raise ValueError(f"{what} is {value!r}, a {type(value).__name__}; it must be {_told(wanted)}.")
    return value


def _fits(value: Any, wanted: Any) -> bool:
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(wanted))
    if wanted is Any:
        return True
    if wanted in (None, type(None)):
        return value is None
    if isinstance(value, bool) and wanted in (int, float):
        return False
    if wanted is float:
        return isinstance(value, (int, float))
    if origin is list or wanted is list:
        parts = typing.get_args(wanted)
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value if parts)
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        return isinstance(value, (str, wanted))
    kind = dict if typing.is_typeddict(wanted) else origin or wanted
    return isinstance(value, kind) if isinstance(kind, type) else True


def _told(wanted: Any) -> str:
    if typing.get_origin(wanted) is list:
        return f"list of {_told(typing.get_args(wanted)[0])}"
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return " or ".join(_told(part) for part in typing.get_args(wanted))
    return "absent" if wanted is type(None) else getattr(wanted, "__name__", str(wanted))


def _plain(value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


__all__ = ["FILE", "HEAD_FIELDS", "Recipe", "complete", "differences", "read_recipe", "settled", "write_recipe"]
