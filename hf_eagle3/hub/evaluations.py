"""One evaluation of a head, read from its JSON: what was measured, on what, and how.

A field that is missing stays missing: it is None here, and the card leaves its place out. A field that is there and
is not what it should be is refused. Knows nothing of how a card looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TREE = ("num_assistant_tokens", "tree_depth", "tree_top_k")
THRESHOLD = "assistant_confidence_threshold"
# Nodes, levels, top-k, and below which probability levels end where they do.
Sizes = tuple[int, int, int] | tuple[int, int, int, float]
_TOGETHER = "all"  # the row of all files


@dataclass(frozen=True)
class Row:
    """What one file of questions came to at one temperature; see `hf_eagle3.evaluation.speed.Speed`."""

    name: str
    temperature: float
    questions: int | None
    acceptance_length: float | None
    ratio: float | None
    low: float | None
    high: float | None
    lookup_ratio: float | None
    identical: int | None
    near_ties: int | None
    mismatches: int | None
    rates: tuple[float, ...]
    asked: tuple[int, ...]  # how many verifications each rate tells of; empty where that was not counted

    @property
    def together(self) -> bool:
        return self.name == _TOGETHER


@dataclass(frozen=True)
class Shape:
    """What one tree of a sweep came to; see `hf_eagle3.evaluation.sweep.Entry`."""

    sizes: Sizes
    acceptance_length: float | None
    mean: float | None
    ratio: float | None
    low: float | None
    high: float | None
    predicted: float | None

    @property
    def nodes(self) -> int:
        return self.sizes[0]


@dataclass(frozen=True)
class Costs:
    """The cost curve of a sweep, in plain steps of one token; see `hf_eagle3.evaluation.cost_curve.CostCurve`. A size
    whose cost is not told is left out."""

    context: int | None
    verification: Mapping[int, float]
    first: Mapping[int, float]
    level: Mapping[int, float]


@dataclass(frozen=True)
class Conditions:
    """On what, and how, it was measured; None and empty where the record does not say.

    Args:
        device: "cpu", "cuda:0", ...
        dtype: "bfloat16", ...
        native: whether the device multiplies in it by itself.
        tree: draft nodes, levels, top-k.
        new_tokens: the longest answer.
        packages: versions by name.
    """

    cpu: str | None
    cores: int | None
    threads: int | None
    gpu: str | None
    device: str | None
    dtype: str | None
    native: bool | None
    tree: Sizes | None
    new_tokens: int | None
    python: str | None
    packages: Mapping[str, str]
    commit: str | None

    @property
    def on_gpu(self) -> bool:
        return self.device is not None and self.device != "cpu"


@dataclass(frozen=True)
class Evaluation:
    """One record: `rows` of an evaluation, or `shapes` of a sweep.

    Args:
        file: where it lies in the head's folder.
        costs: of a sweep, if they were measured.
        lossless: whether it compared tokens, and its times mean nothing.
        record: the JSON as it is.
    """

    file: str
    lossless: bool
    rows: tuple[Row, ...]
    shapes: tuple[Shape, ...]
    costs: Costs | None
    conditions: Conditions
    record: Mapping[str, Any]

    @property
    def temperatures(self) -> list[float]:
        return sorted({row.temperature for row in self.rows})

    def rows_at(self, temperature: float) -> list[Row]:
        """The files at one temperature, and all of them together where there is more than one."""
        rows = [row for row in self.rows if row.temperature == temperature]
        return [row for row in rows if not row.together] if len(rows) == 2 else rows

    def together_at(self, temperature: float) -> Row | None:
        """All questions at one temperature; None where no row tells of all of them."""
        rows = [row for row in self.rows if row.temperature == temperature]
        together = [row for row in rows if row.together]
        return together[0] if together else rows[0] if len(rows) == 1 else None


class _Reader:
    """Takes fields out of an object of one file; what is missing or null is None."""

    def __init__(self, file: str, given: Any, what: str = "the record") -> None:
        if not isinstance(given, Mapping):
            raise ValueError(f"{file} has no object as {what}: give what `hf-eagle3 eval --json` wrote.")
        self.file, self.given = file, given

    def _take(self, name: str, kinds: type | tuple[type, ...], wanted: str) -> Any:
        value = self.given.get(name)
        if value is None or (isinstance(value, kinds) and not isinstance(value, bool)):
            return value
        raise ValueError(f"{self.file} has {value!r} as {name}, and {wanted} is needed: measure again.")

    def text(self, name: str) -> str | None:
        return self._take(name, str, "a text")

    def count(self, name: str) -> int | None:
        return self._take(name, int, "a whole number")

    def number(self, name: str) -> float | None:
        return self._take(name, (int, float), "a number")

    def flag(self, name: str) -> bool | None:
        value = self.given.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise ValueError(f"{self.file} has {value!r} as {name}, and true or false is needed: measure again.")

    def items(self, name: str) -> Sequence[Any]:
        return self._take(name, list, "a list") or ()

    def part(self, name: str) -> _Reader:
        return _Reader(self.file, self.given.get(name) or {}, name)


def read_evaluation(file: str, record: Mapping[str, Any], added: Mapping[str, Any]) -> Evaluation:
    """The evaluation in `record`.

    Args:
        file: its path in the head's folder, for errors and for the card.
        added: what `card.yaml` tells of it.

    Raises:
        ValueError: if it is neither an evaluation nor a sweep, or a field is not what it should be, or `added` says
            other than the record.
    """
    reader = _Reader(file, record)
    settings = reader.part("provenance").part("settings")
    conditions = _conditions(reader.part("provenance"), settings, added)
    rows = tuple(_row(_Reader(file, each, "a row of files"), settings) for each in reader.items("files"))
    shapes = tuple(_shape(_Reader(file, each, "a tree")) for each in reader.items("trees"))
    if not rows and not shapes:
        raise ValueError(f"{file} is no evaluation: give what `hf-eagle3 eval --json` or `sweep --json` wrote.")
    lossless = record.get("lossless", added.get("lossless", False))
    _agree(file, "lossless", added, lossless)
    costs = _costs(reader.part("cost")) if reader.given.get("cost") else None
    return Evaluation(file, bool(lossless), rows, shapes, costs, conditions, record)


def _agree(file: str, name: str, added: Mapping[str, Any], told: Any) -> None:
    if name in added and added[name] != told:
        raise ValueError(f"card.yaml says of {file} that its {name} is {added[name]}, but it is {told}: correct it.")


def _row(row: _Reader, settings: _Reader) -> Row:
    temperature = row.number("temperature")
    if temperature is None:  # early records have one for all rows
        temperature = settings.number("temperature")
    name = row.text("name")
    if name is None or temperature is None:
        raise ValueError(f"{row.file} has a row without name or temperature: measure again with `hf-eagle3 eval`.")
    rates = row.items("acceptance_rates")
    asked = [pair[1] for pair in row.items("acceptance_counts") if isinstance(pair, list) and len(pair) == 2]
    if not all(isinstance(rate, (int, float)) for rate in rates) or (rates and asked and len(asked) != len(rates)):
        raise ValueError(f"{row.file} has acceptance rates and counts that do not go together: measure again.")
    return Row(
        name=name,
        temperature=float(temperature),
        questions=row.count("questions"),
        acceptance_length=row.number("acceptance_length"),
        ratio=row.number("ratio"),
        low=row.number("low"),
        high=row.number("high"),
        lookup_ratio=row.number("lookup_ratio"),
        identical=row.count("identical"),
        near_ties=row.count("near_ties"),
        mismatches=row.count("mismatches"),
        rates=tuple(rates),
        asked=tuple(asked),
    )


def _shape(entry: _Reader) -> Shape:
    numbers = ("acceptance_length", "mean", "ratio", "low", "high", "predicted")
    return Shape(_sizes(entry.file, entry.items("shape")), **{field: entry.number(field) for field in numbers})


def _costs(cost: _Reader) -> Costs:
    def column(name: str) -> dict[int, float]:
        points = [_Reader(cost.file, point, f"a point of {name}") for point in cost.items(name)]
        told = [(point.count("size"), point.number("cost")) for point in points]
        return {size: value for size, value in told if size is not None and value is not None}

    return Costs(cost.count("context"), column("verification"), column("first"), column("level"))


def _sizes(file: str, sizes: Sequence[Any]) -> Sizes:
    whole, threshold = sizes[:3], sizes[3:]
    fits = len(whole) == 3 and len(threshold) < 2 and all(isinstance(size, int) for size in whole)
    if not fits or not all(isinstance(value, (int, float)) for value in threshold):
        raise ValueError(
            f"{file} has {list(sizes)} as a tree, and nodes, depth, top-k and perhaps a threshold are needed: measure "
            "again."
        )
    nodes, depth, top_k = whole
    return (nodes, depth, top_k, *map(float, threshold)) if any(threshold) else (nodes, depth, top_k)


def _conditions(provenance: _Reader, settings: _Reader, added: Mapping[str, Any]) -> Conditions:
    machine, packages = provenance.part("machine"), provenance.part("packages")
    dtype, file = settings.text("dtype"), provenance.file
    tree = settings.part("tree").given or added.get("tree") or {}
    _agree(file, "tree", added, tree)
    native = settings.flag("native_products")
    native = _Reader(file, added, "what card.yaml tells").flag("native_products") if native is None else native
    _agree(file, "native_products", added, native)
    return Conditions(
        cpu=machine.text("cpu"),
        cores=machine.count("cores"),
        threads=machine.count("threads"),
        gpu=machine.text("gpu"),
        device=settings.text("device"),
        dtype=None if dtype is None else dtype.removeprefix("torch."),
        native=native,
        tree=_sizes(file, [*(tree.get(name) for name in TREE), tree.get(THRESHOLD) or 0.0]) if tree else None,
        new_tokens=settings.count("max_new_tokens"),
        python=provenance.text("python"),
        packages={name: version for name in packages.given if (version := packages.text(name)) is not None},
        commit=provenance.text("commit"),
    )
