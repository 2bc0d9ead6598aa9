"""A head's folder for tests of cards, and the tracing of a card's numbers back to its files.

The tracing is written without a look at how cards are made: it reads the same files, and knows only how numbers are
rounded.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

_CODE = re.compile(r"```.*?```|`[^`\n]*`|<[^>]*>", re.DOTALL)
_NAMES = re.compile(r"EAGLE-3|SmolLM2-135M\S*|float(?:32|64|16)|bfloat16|avx512_bf16")
_NUMBER = re.compile(r"(?<![A-Za-z_.\d])\d[\d,]*(?:\.\d+)*%?(?![A-Za-z_\d])")

CARD_YAML = """\
base_model: some/target
license: apache-2.0
language: [en, de]
questions:
  easy: {name: Easy ones, dataset: some/easy, config: main, split: test}
prose:
  limits: |
    Seen were {{ training.conversations.train | count }} conversations.
"""
TRAINING = {
    "acceptance_length": 2.71828, "best_step": 300, "draft_vocabulary_coverage": 0.97531, "draft_vocab_size": 64,
    "boundaries": [2, 4, 5], "seed": 7, "steps": 1234, "tokens_seen": 987654,
    "conversations": {"train": 2345, "validation": 67}, "processes": 1, "device": "cpu",
    "versions": {"hf-eagle3": "0.1.0", "torch": "2.13.0", "accelerate": None},
    "recipe": {"data": "/home/somebody/my-data", "target": "some/other", "init": None, "learning_rate": 0.0009,
               "ttt_stages": "1:7", "features_dir": "/home/somebody/features", "packing": True},
    "history": [],
}  # fmt: skip
SWEEP = {
    "provenance": {
        "machine": {"cpu": "A CPU", "cores": 2, "threads": 1, "gpu": None},
        "settings": {"dtype": "torch.bfloat16", "device": "cpu", "native_products": False},
    },
    "cost": {
        "context": 321,
        "repeats": 3,
        "verification": [{"size": 1, "cost": 1.02, "low": 0.9, "high": 1.1}, {"size": 16, "cost": 12.34}],
        "first": [{"size": 1, "cost": 0.23}, {"size": 10, "cost": 0.34}],
        "level": [{"size": 1, "cost": 0.12}, {"size": 10, "cost": 0.15}],
    },
    "trees": [
        {
            "shape": [9, 3, 4],
            "acceptance_length": 2.1,
            "mean": 1.4,
            "ratio": 1.3,
            "low": 1.2,
            "high": 1.6,
            "predicted": 1.77,
        },
        {"shape": [7, 2, 4], "acceptance_length": 2.0, "mean": 1.41, "ratio": 1.35, "low": 1.2, "high": 1.5},
        {"shape": [59, 8, 10], "acceptance_length": 2.9, "mean": 0.91, "ratio": 0.89, "low": 0.7, "high": 1.0},
    ],
}


def make_head_folder(folder: Path, head: Path, records: dict[str, Any]) -> Path:
    """A folder with everything that a head can have; `records` are what lies in its `evaluation/`, by name."""
    shutil.copytree(head, folder)
    (folder / "training.json").write_text(json.dumps(TRAINING))
    (folder / "card.yaml").write_text(CARD_YAML)
    (folder / "evaluation").mkdir()
    for name, record in records.items():
        (folder / "evaluation" / name).write_text(json.dumps(record))
    return folder


def untraced_numbers(card: str, folder: Path) -> list[str]:
    """The numbers in a card's prose and tables (code and links left out) that no file of `folder` backs."""
    backing = sorted(set(_numbers_of(folder)))
    texts = " ".join(_texts_of(folder))
    body = _NAMES.sub("", _CODE.sub("", card.split("\n---\n", 1)[1]))
    return [told for told in _told(body) if not _backed(told, backing) and told.rstrip("%") not in texts]


def _told(body: str) -> Iterator[str]:
    """Of a table without its head, of other lines all of them."""
    lines = body.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not following.startswith(("| ---", "|---")):
            yield from _NUMBER.findall(line)


def _backed(told: str, backing: list[float]) -> bool:
    plain = told.rstrip("%").replace(",", "")
    if plain.count(".") > 1:
        return False  # a version; it stands in a text or nowhere
    scale, digits = (100 if told.endswith("%") else 1), len(plain.partition(".")[2])
    return any(f"{number * scale:.{digits}f}" == plain for number in backing)


def _numbers_of(folder: Path) -> Iterator[float]:
    for value in _values(folder):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield value
    for path in folder.glob("*.safetensors"):
        if path.name != "training_ids.safetensors":
            tensors = load_file(path)
            yield sum(t.numel() for name, t in tensors.items() if name not in ("d2t", "t2d")) / 1e6
            yield path.stat().st_size / 1e6


def _texts_of(folder: Path) -> Iterator[str]:
    return (value for value in _values(folder) if isinstance(value, str) and "\n" not in value)


def _values(folder: Path) -> Iterator[Any]:
    """Of every JSON file, and of the recipe; of what was written by hand only what was said of records."""
    for path in sorted([*folder.glob("*.json"), *folder.glob("evaluation/*.json")]):
        yield from _leaves(json.loads(path.read_text()))
    for name in ("recipe.yaml", "card.yaml"):
        if (folder / name).is_file():
            read = yaml.safe_load((folder / name).read_text())
            yield from _leaves(read.get("records", {}) if name == "card.yaml" else read)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        yield len(value)
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value
