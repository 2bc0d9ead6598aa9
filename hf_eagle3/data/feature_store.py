"""The target's states over a data set, kept on disk, so that training reads them instead of running the target.

A folder of safetensors shards and an `index.json` that names each with its checksum. Shards and index are written
whole or not at all, so that a run that was killed goes on after the last shard that the index knows.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from ..configuration_eagle3 import LAST_HIDDEN_STATE
from ..fingerprint import model_fingerprint
from ..whole_files import written_whole
from .features import Example, Row, TargetStates

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FORMAT = 1
_LAST = [LAST_HIDDEN_STATE]  # the boundaries of a head whose features are the last hidden states themselves
_SPARE_BYTES = 256 << 20  # what a disk is left with at least
logger = logging.getLogger(__name__)


def write_features(
    states: TargetStates,
    rows: Any,
    folder: str | Path,
    *,
    dtype: str | None = None,
    shard_tokens: int = 65_536,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fill `folder` with the states over `rows`, going on where an earlier run of the same kind stopped.

    Last hidden states are always kept. So states at `[LAST_HIDDEN_STATE]` need no tensor of their own, and a folder
    that was begun for other boundaries has them: it is gone on with as it was begun.

    Args:
        rows: a sequence of `{"input_ids", "loss_mask"}`, such as a split of a data set.
        dtype: of the states on disk, "float32", "bfloat16" or "float16"; the target's own if not given.
        shard_tokens: about so many tokens to a file; a conversation is never split.
        progress: called with the shards done and their number. Several processes may call this for one folder: one
            writes, the others wait for it.

    Raises:
        ValueError: if the folder holds the states of another target, other rows, boundaries or another dtype.
        OSError: if the disk is too small, which is found out before anything is written, or fills up on the way.
    """
    folder = Path(folder)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"Features were asked for in {dtype!r}; they are kept in one of {', '.join(DTYPES)}.")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        _Writer(states, rows, folder, dtype, shard_tokens).write(progress)


class _Writer:
    """One filling of a folder, with its lock held."""

    def __init__(self, states: TargetStates, rows: Any, folder: Path, dtype: str | None, shard_tokens: int) -> None:
        self.states, self.rows, self.folder = _as_begun(states, folder), rows, folder
        name = dtype or str(states.model.dtype).removeprefix("torch.")
        self.dtype = DTYPES[name]
        self.lengths = [len(ids) for ids in _column(rows, "input_ids")]
        self.plan = _plan(self.lengths, shard_tokens)
        self.made_of: dict[str, Any] = {
            "format": _FORMAT,
            "boundaries": self.states.boundaries,
            "dtype": name,
            "shard_tokens": shard_tokens,
            "vocab_size": len(states.logit_rule.weight),
            "target": model_fingerprint(states.model),
            "rows": rows_fingerprint(rows),
        }

    def write(self, progress: Callable[[int, int], None] | None) -> None:
        there = self._there()
        self._check_disk(sum(shard["tokens"] for shard in there.values()))
        for number in range(len(self.plan)):
            if progress is not None:
                progress(number, len(self.plan))
            name = f"features-{number:05d}.safetensors"
            if name not in there:
                there[name] = self._write_shard(name, *self.plan[number])
                self._write_index(there, finished=False)
        self._write_index(there, finished=True)
        if progress is not None:
            progress(len(self.plan), len(self.plan))

    def _there(self) -> dict[str, dict[str, Any]]:
        """The shards that the index knows and that are whole; everything else is swept away."""
        shards: list[dict[str, Any]] = []
        if (self.folder / "index.json").is_file():
            index = _read_index(self.folder)
            for name, wanted in self.made_of.items():
                if index.get(name) != wanted:
                    raise ValueError(
                        f"{self.folder} holds features made with {name} {index.get(name)} and {name} {wanted} is "
                        "wanted: give another folder, or delete this one."
                    )
            shards = index["shards"]
        there = {shard["file"]: shard for shard in shards if _intact(self.folder, shard)}
        for file in [*self.folder.glob("features-*.safetensors"), *self.folder.glob(".features-*")]:
            if file.name not in there:
                file.unlink()
        return there

    def _write_index(self, there: dict[str, dict[str, Any]], finished: bool) -> None:
        shards = [there[name] for name in sorted(there)]
        _write_json(self.folder / "index.json", {**self.made_of, "finished": finished, "shards": shards})

    def _check_disk(self, tokens_there: int) -> None:
        tokens = sum(self.lengths) - tokens_there
        hidden = self.states.logit_rule.weight.shape[1]
        width = (len(self.states.boundaries) + (self.states.boundaries != _LAST)) * hidden
        states, rest = tokens * width * self.dtype.itemsize, tokens * 9  # int32 ids and best, one byte of mask
        needed = states + rest + 4 * self.made_of["vocab_size"] * len(self.plan)
        free = shutil.disk_usage(self.folder).free
        logger.info("features of %d tokens take %.2f GB, %.1f GB are free", tokens, needed / 1e9, free / 1e9)
        if needed + _SPARE_BYTES > free:
            raise OSError(
                f"The features of {tokens} tokens take {needed / 1e9:.2f} GB and {self.folder} has "
                f"{free / 1e9:.2f} GB free: name a folder on a larger disk, keep them in bfloat16, or compute them "
                "while training (features: online)."
            )

    def _write_shard(self, name: str, first: int, last: int) -> dict[str, Any]:
        rows: list[Row] = [(self.rows[i]["input_ids"], self.rows[i]["loss_mask"]) for i in range(first, last)]
        examples = self.states.examples(rows)
        tensors = {
            "ids": torch.cat([example.ids for example in examples]).int().cpu(),
            "answers": torch.cat([example.answers for example in examples]).cpu(),
            "last_hidden": torch.cat([example.last_hidden for example in examples]).to(self.dtype).cpu(),
            "best": torch.cat([example.best for example in examples]).int().cpu(),
            "lengths": torch.tensor(self.lengths[first:last]),
            "mass": torch.stack([self.states.mass_of(example) for example in examples]).sum(0),
        }
        if self.states.boundaries != _LAST:
            tensors["features"] = torch.cat([example.features for example in examples]).to(self.dtype).cpu()
        try:
            with written_whole(self.folder / name) as unfinished:
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, unfinished)
                checksum = _sha256(unfinished)
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk by an error class of its own
            raise OSError(
                f"{self.folder / name} could not be written ({error}): the shards before it are whole; free some "
                "space, or name another folder, and run the same command again."
            ) from error
        return {"file": name, "sha256": checksum, "rows": last - first, "tokens": sum(self.lengths[first:last])}


class FeatureStore(Dataset):
    """The examples of a folder that [`write_features`] has filled, read lazily: the files are mapped, not loaded.

    Args:
        boundaries: what the states must have been captured at; every folder has those at `[LAST_HIDDEN_STATE]`.
        verify: compare every shard with its checksum first.

    Attributes:
        mass: float32 `[vocab]`, the target's summed probability of each token over all answers of the folder.
        index: the facts of `index.json`.

    Raises:
        OSError: if the folder is not a finished one, or a shard is missing or damaged.
        ValueError: if it was made for other boundaries.
    """

    def __init__(self, folder: str | Path, boundaries: Sequence[int], verify: bool = True) -> None:
        self.folder = Path(folder)
        self.index, self.boundaries = _read_index(self.folder), list(boundaries)
        if not self.index.get("finished"):
            raise OSError(f"The features in {self.folder} are not complete: run the command that writes them again.")
        if self.boundaries not in (self.index["boundaries"], _LAST):
            raise ValueError(
                f"{self.folder} holds states at boundaries {self.index['boundaries']} and {self.boundaries} are "
                "wanted: name another folder for them."
            )
        for shard in self.index["shards"]:
            if not _intact(self.folder, shard, contents=verify):
                raise OSError(
                    f"{self.folder / shard['file']} is missing, cut short or damaged: delete it and run the command "
                    "that writes the features again; only what is missing is computed."
                )
        self._open: dict[int, Any] = {}
        self.where: list[tuple[int, int, int]] = []
        self.mass = torch.zeros(self.index["vocab_size"])
        for number in range(len(self.index["shards"])):
            shard = self._shard(number)
            self.mass = self.mass + shard.get_tensor("mass")
            start = 0
            for length in shard.get_tensor("lengths").tolist():
                self.where.append((number, start, length))
                start += length

    def __len__(self) -> int:
        return len(self.where)

    def length(self, index: int) -> int:
        """Tokens of example `index`."""
        return self.where[index][2]

    def __getitem__(self, index: int) -> Example:
        number, start, length = self.where[index]
        shard, rows = self._shard(number), slice(start, start + length)
        ids, answers, last, best = (shard.get_slice(name)[rows] for name in ("ids", "answers", "last_hidden", "best"))
        features = last if self.boundaries == _LAST else shard.get_slice("features")[rows]
        return Example(ids.long(), answers, features, last, best.long())

    def subset(self, indices: Sequence[int]) -> FeatureStore:
        """The examples of these indices, in the order given, out of the same files: nothing is copied. Its `mass` is
        still the whole folder's."""
        part = copy.copy(self)
        part.where = [self.where[index] for index in indices]
        return part

    def _shard(self, number: int) -> Any:
        """The mapped file, opened once in each process."""
        if number not in self._open:
            self._open[number] = safe_open(self.folder / self.index["shards"][number]["file"], framework="pt")
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


def _as_begun(states: TargetStates, folder: Path) -> TargetStates:
    """`states`, at the boundaries that `folder` was begun with where only last hidden states are wanted."""
    if states.boundaries != _LAST or not (folder / "index.json").is_file():
        return states
    begun = copy.copy(states)
    begun.boundaries = _read_index(folder).get("boundaries", states.boundaries)
    return begun


def rows_fingerprint(rows: Any) -> str:
    """A short hash of all token ids and masks of a data set."""
    whole = hashlib.sha256()
    for ids, mask in zip(_column(rows, "input_ids"), _column(rows, "loss_mask"), strict=True):
        whole.update(torch.tensor(ids, dtype=torch.int32).numpy().tobytes())
        whole.update(torch.tensor(mask, dtype=torch.uint8).numpy().tobytes() + b"|")
    return whole.hexdigest()[:16]


def _column(rows: Any, name: str) -> Iterator[Any]:
    return (rows[index][name] for index in range(len(rows)))


def _plan(lengths: list[int], shard_tokens: int) -> list[tuple[int, int]]:
    """Ranges of rows, each of `shard_tokens` tokens at most or of one row."""
    plan: list[tuple[int, int]] = []
    first = tokens = 0
    for number, length in enumerate(lengths):
        if number > first and tokens + length > shard_tokens:
            plan.append((first, number))
            first, tokens = number, 0
        tokens += length
    return [*plan, (first, len(lengths))] if lengths else []


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(index, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise OSError(f"{path} cannot be read ({error}): name a folder of features, or write them first.") from error
    return index


def _intact(folder: Path, shard: dict[str, Any], contents: bool = True) -> bool:
    path = folder / shard["file"]
    return path.is_file() and (not contents or _sha256(path) == shard["sha256"])


def _sha256(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            whole.update(piece)
    return whole.hexdigest()


def _write_json(path: Path, record: dict[str, Any]) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
