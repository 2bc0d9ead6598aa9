"""`card.yaml`: what no other file of a head can tell, and the paragraphs of its card that people write.

A paragraph is a jinja template over the head's files: `{{ training.answer_tokens | count }}` stands where a number
belongs, so that what was measured comes from where it was measured. It runs in jinja's sandbox, and asking for what no
file tells is an error, not a gap.
"""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

FILE = "card.yaml"
SECTIONS = ("summary", "use", "measured", "lossless", "trees", "head", "training", "limits")
OF_A_RECORD = ("tree", "lossless", "native_products")
OF_QUESTIONS = ("name", "dataset", "config", "split")


@dataclass(frozen=True)
class Words:
    """What was written by hand.

    Args:
        base_model: Hub id of the target.
        base_model_relation: the Hub's word for what a head is to its target. A head works beside unchanged weights,
            so of the Hub's words `adapter` is nearest; without one it would be taken for a fine-tuned copy.
        license, license_name, license_link, language, datasets: as `huggingface_hub.ModelCardData` takes them.
        tags: beside those that every head has.
        repo_id: of the head, once it has one.
        questions: for a file of questions its pretty `name`, and the Hub `dataset` (with `config`, `split`) it is of.
        records: for a file in `evaluation/` what it leaves out: its `tree`, that it is a `lossless` check, or
            whether the device has `native_products` in the dtype. For
            records of early versions, which did not say.
        prose: paragraphs by section, of `SECTIONS`.
    """

    base_model: str | None = None
    base_model_relation: str = "adapter"
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: str | list[str] | None = None
    datasets: list[str] | None = None
    tags: list[str] = field(default_factory=list)
    repo_id: str | None = None
    questions: dict[str, dict[str, str]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    prose: dict[str, str] = field(default_factory=dict)

    def written(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """The paragraphs of all sections with the numbers of `facts` in their places; empty for one without words.

        Raises:
            ValueError: if a paragraph asks for what `facts` do not tell, or is no template.
        """
        from jinja2 import TemplateError

        environment, written = _environment(), dict.fromkeys(SECTIONS, "")
        for section, text in self.prose.items():
            try:
                written[section] = environment.from_string(text).render(facts).strip()
            except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
                raise ValueError(
                    f"The words on {section} in {FILE} cannot be filled in ({error}): no file of the head tells it, "
                    "so add that file, or take the words away."
                ) from error
        return written


def read_words(folder: Path) -> Words:
    """`card.yaml` of a head's folder; nothing but defaults where there is none.

    Raises:
        ValueError: if it is no YAML mapping, or holds a key that nothing knows or a value of the wrong kind.
    """
    path = folder / FILE
    values = read_yaml(path)
    hints = typing.get_type_hints(Words)
    for name, value in values.items():
        _known(name, [each.name for each in fields(Words)], f"{path} holds")
        if not _fits(value, hints[name]):
            raise ValueError(
                f"{path} has {value!r} as {name}, which does not fit: hf_eagle3/hub/words.py says what does."
            )
    words = Words(**values)
    for name, inner in (("prose", SECTIONS), ("records", OF_A_RECORD), ("questions", OF_QUESTIONS)):
        given = getattr(words, name)
        for key in given if name == "prose" else (key for part in given.values() for key in part):
            _known(key, inner, f"{path} holds under {name}")
    return words


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty where there is no file, or nothing in it.

    Raises:
        ValueError: if it is no YAML mapping, or holds a number that is not finite.
    """
    if not path.is_file():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        json.dumps(values, allow_nan=False, default=str)  # numbers that are none, and anchors that hold themselves
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be used ({problem}): write one `key: value` a line.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not a mapping: write one `key: value` a line.")
    return values


def _known(name: Any, known: typing.Iterable[str], where: str) -> None:
    known = list(known)
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose of {', '.join(known)}."
        raise ValueError(f"{where} {name!r}, which nothing knows; {hint}")


def _fits(value: Any, wanted: Any) -> bool:
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    return wanted is Any or isinstance(value, wanted)


def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False, finalize=_told
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["fixed"] = lambda number, digits=2: f"{number:.{digits}f}"
    environment.filters["percent"] = lambda number, digits=1: f"{number:.{digits}%}"
    return environment


def _told(value: Any) -> Any:
    """What a template prints; nothing is never printed as a word of Python's."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("a value in it is empty")
    return value
