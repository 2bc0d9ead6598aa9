"""A dataset of conversations on disk: Arrow files in two splits, and the card that says how it came about.

The form is that of `datasets.DatasetDict.save_to_disk`. Knows nothing of targets, templates or filters.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .card import Sizes, card, target_of
from .conversations import Conversation
from .tally import Tally

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

NEEDED = ("input_ids", "loss_mask")
_AT_ONCE = 1000  # conversations that are Python lists at the same time
_SHARE, _MOST = 0.05, 96  # of the conversations, held out unless a number is given


def save_dataset(
    conversations: Iterable[Conversation],
    folder: str | Path,
    tally: Tally,
    facts: dict[str, Any],
    held_out: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write conversations to `folder`, whole or not at all, in the order of their `about["conversation"]`.

    Columns: `input_ids` list of int32, `loss_mask` list of bool (the target generated the token), `messages` list of
    role and content, `source` string, `turns` int32, `temperature` float32, `finished` bool; what is not known of a
    conversation is null.

    Args:
        tally: what every step kept and dropped, for the card.
        facts: target, template, sampling settings and the like, for the card; JSON values.
        held_out: conversations drawn by `seed` for the split "validation"; 5 % of them if None, at least 1 and at
            most 96. The examples of one conversation stay together.
        overwrite: replace a dataset that is there.

    Raises:
        ValueError: there are too few conversations for two splits, or none.
        OSError: `folder` holds something, and is not to be replaced or is no such dataset; or it cannot be written.
    """
    from datasets import DatasetDict

    folder = Path(folder)
    check_free(folder, overwrite)
    rows, keys = _table(conversations)
    validation = _held_out(keys, held_out, seed)
    order = sorted(range(len(keys)), key=lambda row: (keys[row], row))
    splits = DatasetDict({
        "train": rows.select([row for row in order if keys[row] not in validation]),
        "validation": rows.select([row for row in order if keys[row] in validation]),
    })  # fmt: skip
    sizes = {name: measured(split) for name, split in splits.items()}
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _quiet():
            splits.save_to_disk(temporary)
        (temporary / "README.md").write_text(card(facts, tally, sizes), encoding="utf-8")
        _put(temporary, folder)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written ({error}): make room there, or give another --out; what was there is kept."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_dataset(id_or_path: str | Path) -> DatasetDict:
    """The dataset in a folder that `hf-eagle3 data write` made, or one of the same columns on the Hub.

    Raises:
        ValueError: there are no `input_ids` and `loss_mask` in it, or it was given no name.
        OSError: there is no such dataset, or it cannot be read.
    """
    path = Path(id_or_path)
    if not path.parts:  # "", which would be the folder one happens to be in
        raise ValueError("An empty name was given as a dataset: name a folder that `hf-eagle3 data write` made.")
    if path.is_dir() and not any(path.iterdir()):
        raise OSError(f"{path} is empty: name a folder that `hf-eagle3 data write` made.")
    loaded = _loaded(id_or_path)
    for name, split in loaded.items():
        missing = [column for column in NEEDED if column not in split.column_names]
        if missing:
            raise ValueError(
                f"{id_or_path} has no {' and '.join(missing)} in its split {name!r}, only "
                f"{', '.join(split.column_names)}: make them with `hf-eagle3 data write --prompts`."
            )
    return loaded


def _loaded(id_or_path: str | Path) -> Any:
    import datasets

    try:
        if (Path(id_or_path) / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(id_or_path))
        return datasets.load_dataset(str(id_or_path))
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, datasets.exceptions.DatasetsError) as error:
        why = str(error).strip().partition("\n")[0]
        raise OSError(
            f"{id_or_path} is no dataset that can be read ({why}): name a folder that `hf-eagle3 data write` made, or "
            "a dataset of the same columns on the Hub."
        ) from error


def recorded_target(id_or_path: str | Path) -> str | None:
    """The target whose tokens a dataset holds, as its card says; None if that says nothing of it."""
    import yaml
    from huggingface_hub import DatasetCard

    path = Path(id_or_path)
    try:
        loaded = DatasetCard.load(path / "README.md" if path.is_dir() else str(id_or_path))
    except (OSError, ValueError, yaml.YAMLError):  # there is no card, or none that can be read
        return None
    return target_of(loaded.data.to_dict())


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise `OSError` if a dataset may not be written to `folder`: it would destroy something."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "dataset_dict.json").exists():
        raise OSError(f"{folder} is no dataset, and is not replaced: give another --out.")
    if not overwrite:
        raise OSError(f"{folder} holds a finished dataset: give --overwrite to replace it, or another --out.")


def _put(temporary: Path, folder: Path) -> None:
    """Rename a finished folder into its place; what was there goes once the new one is."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _table(conversations: Iterable[Conversation]) -> tuple[Dataset, list[int]]:
    """All conversations as one table, and for each row the number of the conversation that it comes from."""
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    features = Features({
        "input_ids": List(Value("int32")),
        "loss_mask": List(Value("bool")),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "source": Value("string"),
        "turns": Value("int32"),
        "temperature": Value("float32"),
        "finished": Value("bool"),
    })  # fmt: skip
    parts: list[Dataset] = []
    keys: list[int] = []
    rest = iter(conversations)
    while chunk := list(islice(rest, _AT_ONCE)):
        keys += [int(row.about.get("conversation", len(keys) + n)) for n, row in enumerate(chunk)]
        columns = [_row(conversation) for conversation in chunk]
        parts.append(Dataset.from_dict({name: [row[name] for row in columns] for name in features}, features=features))
    if not parts:
        raise ValueError(
            "No conversation was kept, so there is nothing to write: see what the steps dropped, and give other "
            "prompts or other limits."
        )
    return concatenate_datasets(parts), keys


def _row(conversation: Conversation) -> dict[str, Any]:
    about = conversation.about
    kind, greedy = about.get("kind"), about.get("greedy")  # what shards of the first release tell
    return {
        "input_ids": conversation.ids,
        "loss_mask": conversation.mask,
        "messages": conversation.messages,
        "source": about.get("source", f"self-prompting/{kind}" if kind else None),
        "turns": about.get("turns"),
        "temperature": about.get("temperature", 0.0 if greedy else None),
        "finished": about.get("finished"),
    }


def _held_out(keys: list[int], wanted: int | None, seed: int) -> set[int]:
    """The conversations of the validation split."""
    conversations = sorted(set(keys))
    count = max(1, min(_MOST, round(_SHARE * len(conversations)))) if wanted is None else wanted
    if not 1 <= count < len(conversations):
        raise ValueError(
            f"{count} of {len(conversations)} conversations were to be held out, and both splits need at least one: "
            "write more conversations, or give another number (--held-out)."
        )
    return set(random.Random(f"{seed}/held out").sample(conversations, count))


def measured(split: Dataset) -> Sizes:
    """What the card tells of the sizes of a split."""
    sizes = Sizes()
    for batch in split.select_columns(["loss_mask", "turns", "temperature", "finished"]).iter(_AT_ONCE):
        columns = zip(batch["loss_mask"], batch["turns"], batch["temperature"], batch["finished"], strict=True)
        for mask, turns, temperature, finished in columns:
            sizes.add(len(mask), sum(mask), turns, temperature, finished)
    return sizes


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of `datasets`: ours have been there all along."""
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown:
            datasets.enable_progress_bars()
