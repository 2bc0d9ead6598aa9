"""The repository of an adapter (LoRA, by peft) of a head: its weights, and the Hub id of the head under it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from ..head_files import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS, BASE
from .cards import CARD
from .repository import copy_records, write_card

_FORM = "[More Information Needed]"


def is_adapter(head: Any) -> bool:
    """Whether `head` is a `PeftModel`, the folder of a saved one, or a head that an adapter was put on."""
    if isinstance(head, (str, os.PathLike)):
        whole = os.path.isfile(os.path.join(head, CONFIG_NAME))  # which is what everybody would load
        return os.path.isfile(os.path.join(head, ADAPTER_CONFIG_NAME)) and not whole
    return _is_peft_model(head) or getattr(head, "_hf_peft_config_loaded", False)


def _is_peft_model(head: Any) -> bool:
    return hasattr(head, "peft_config") and hasattr(head, "get_base_model")


def lay_out(
    adapter: Any,
    folder: str | os.PathLike,
    *,
    base: str | None = None,
    records: str | os.PathLike | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write the repository of `adapter` (see `is_adapter`) into `folder`; of a head with one, the adapter alone.

    Args:
        base: Hub id of its head; what the adapter says if None.
        records: the folder with its records; the adapter's own, where it is a folder, if None.
        repo_id: where it goes, which is what the card calls it.

    Raises:
        ValueError: if it does not say which head on the Hub it belongs to.
        OSError: if its files are missing or damaged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(adapter, (str, os.PathLike)):
        _copy(Path(adapter), folder)
        records = adapter if records is None else records
    else:
        _save(adapter, folder)
    _check(folder / ADAPTER_WEIGHTS)
    _name_base(folder / ADAPTER_CONFIG_NAME, base)
    if records is not None:
        copy_records(records, folder, asked=True)
    _drop_empty_form(folder / CARD)
    write_card(folder, repo_id)
    return folder


def _copy(source: Path, folder: Path) -> None:
    for name in (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS):
        if not (source / name).is_file():
            raise OSError(f"{source} has no {name}, which an adapter needs; save it again.")
        shutil.copyfile(source / name, folder / name)


def _save(adapter: Any, folder: Path) -> None:
    """The adapter alone: not the head's config, and not the output matrix that peft would put beside it, as if it had
    grown."""
    adapter.save_pretrained(folder, **({"save_embedding_layers": False} if _is_peft_model(adapter) else {}))
    for name in (CARD, CONFIG_NAME, GENERATION_CONFIG_NAME):
        (folder / name).unlink(missing_ok=True)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError("The head has no adapter named `default`, which is the one that is pushed; name it so.")


def _check(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            empty = not list(file.keys())
    except SafetensorError as error:
        raise OSError(f"{path.name} of the adapter cannot be read ({error}); save it again.") from error
    if empty:
        raise OSError(f"{path.name} of the adapter holds no tensors; train it, or save it again.")


def _name_base(path: Path, base: str | None) -> None:
    """Write into the adapter's config which head it belongs to, by the Hub id that others have it by."""
    config = json.loads(path.read_text(encoding="utf-8"))
    named = base if base is not None else config.get(BASE)
    if not _is_repository(named):
        raise ValueError(
            f"The adapter belongs to the head {named!r}, which is no repository on the Hub: push that head first, and "
            "give its id as the adapter's base."
        )
    config[BASE] = named
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _is_repository(name: Any) -> bool:
    if not isinstance(name, str) or os.path.exists(name) or "/" not in name:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _drop_empty_form(card: Path) -> None:
    """The form that peft saves as a card, where nobody has filled it in."""
    if card.is_file() and _FORM in card.read_text(encoding="utf-8"):
        card.unlink()


__all__ = ["is_adapter", "lay_out"]
