"""A head read whole, from files of any known layout to one of our configs and canonical tensors; and their checks.

Knows nothing of modules.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig

from . import head_files, layouts_eagle1, layouts_eagle3
from .configuration_eagle import EagleConfig
from .configuration_eagle3 import Eagle3Config
from .head_files import Tensors
from .layout_fields import lacks
from .layouts import Layout, only_tensors_tell, recognise

HeadConfig = Eagle3Config | EagleConfig
# From the `model_type` of our config to what makes it of a released config's fields and tensors.
MAKERS: dict[str, Callable[..., HeadConfig]] = {
    Eagle3Config.model_type: layouts_eagle3.config_from,
    EagleConfig.model_type: layouts_eagle1.config_from,
}
FIELDS = {kind: frozenset(kind.__annotations__) | {"rope_theta"} for kind in (Eagle3Config, EagleConfig)}
CONFIG_FIELDS = frozenset().union(*FIELDS.values())
# What a head's config may say of itself, and is worth telling where it does.
TOLD = (
    *layouts_eagle3.KNOWN_FLAGS,
    *("qk_norm", "qkv_bias", "fc_bias", "layernorms", "own_embeddings", "own_lm_head", "parallel_drafting"),
)
# Layer ids that engines read differently: ModelOpt writes the layers whose outputs it captures, and these are its
# default for a target of 36 layers; SGLang takes them for boundaries (trap 2, sglang#32334).
CONTESTED_IDS = ([1, 17, 32],)

WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What a field of a wrong type comes to, wherever it is first used.
UNUSABLE = (TypeError, KeyError, AttributeError, ZeroDivisionError, StrictDataclassError)
MAPS = ("d2t", "t2d")  # between the vocabularies: no weights

logger = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """A head as read from disk: canonical tensors (names of our models' `state_dict()`) and its config."""

    config: HeadConfig
    tensors: Tensors
    dtype: torch.dtype
    generation_config: GenerationConfig | None
    source: str
    layout: str

    def described(self) -> str:
        """The layout and every convention that was taken, in a line for the log."""
        config: Any = self.config
        said = ["the target's last hidden state"]
        if not config.reads_last_hidden_state:
            said = [f"boundaries {config.target_boundaries}" if config.target_boundaries else "default boundaries"]
        said += [name for name in TOLD if getattr(config, name, False)]
        if getattr(config, "parallel_drafting", False):
            said.append(f"mask token {config.mask_token_id}")
        if getattr(config, "kv_lora_rank", None) is not None:
            said.append(f"attention over a latent of {config.kv_lora_rank}")
        said += [f"window {config.sliding_window}"] if config.sliding_window else []
        rope: Any = config.rope_parameters or {}
        said.append(f"rope {rope.get('rope_type')} of base {rope.get('rope_theta')}")
        return f"{self.source}: layout {self.layout}; {', '.join(said)}"


def read_checkpoint(source: str | os.PathLike, kwargs: dict[str, Any]) -> Checkpoint:
    """Read and convert a head.

    Takes out of `kwargs` what it serves: the Hub's arguments, `config` (one of ours is taken as it is, a path is read
    instead of the head's own), and fields of our configs, which win.

    Raises:
        OSError: if files are missing or unreadable.
        ValueError: if the layout is not a head's that we know, or its tensors make no head.
    """
    given = kwargs.pop("config", None)
    hub = head_files.hub_arguments(source, kwargs)
    files = head_files.weight_files(kwargs)
    overrides = {name: kwargs.pop(name) for name in CONFIG_FIELDS & kwargs.keys()}
    fields = head_files.read_config(given if isinstance(given, (str, os.PathLike)) else source, hub)
    raw = head_files.read_tensors(str(source), hub, files) if only_tensors_tell(fields) else {}
    layout = recognise(fields, raw)
    if layout is None:
        raise ValueError(
            f"{source} holds a config with model_type {fields.get('model_type')!r} and architectures "
            f"{fields.get('architectures')}, which is no EAGLE-3 head (`draft_vocab_size` tells one) and no EAGLE-1 "
            "head (a tensor `fc.weight` does); pass a head saved by hf-eagle3 or released in a layout that is known."
        )
    if layout.refused:
        raise ValueError(f"{source} {layout.refused}; pass an EAGLE-3 head.")
    tensors = canonical(raw or head_files.read_tensors(str(source), hub, files), layout)
    dtype = next((tensors[name].dtype for name in ("lm_head.weight", "fc.weight") if name in tensors), None)
    dtype = dtype or torch.get_default_dtype()
    ours = isinstance(given, HeadConfig)
    try:
        config = copy.deepcopy(given) if ours else MAKERS[layout.heads](fields, tensors, layout, str(source))
        config = _overridden(config, overrides)
    except UNUSABLE as error:
        told = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{source} has a config that makes no head ({type(error).__name__}: {told}); mend its config.json."
        ) from error
    except ValueError as error:
        raise ValueError(str(error) if str(source) in str(error) else f"{source}: {error}") from error
    config.__dict__.pop("auto_map", None)  # that code does not go where the head is saved next
    _warn_of_contested_ids(config, str(source))
    _warn_of_contested_feedback(config, layout, str(source))
    _fill_vocabulary_maps(tensors, config, str(source))
    return Checkpoint(config, tensors, dtype, head_files.read_generation_config(source, hub), str(source), layout.name)


def _overridden(config: HeadConfig, fields: dict[str, Any]) -> HeadConfig:
    """The config with fields that the caller chose."""
    strangers = sorted(fields.keys() - FIELDS[type(config)])
    if strangers:
        raise ValueError(f"Got {', '.join(strangers)}, which {type(config).__name__} does not have; leave it out.")
    if "rope_theta" in fields:  # a released config's word for what now is part of `rope_parameters`
        theta = fields.pop("rope_theta")
        fields["rope_parameters"] = {**(config.rope_parameters or {}), "rope_theta": theta}
    if "target_boundaries" in fields:
        fields.setdefault("boundaries_from_outputs", False)
    return type(config).from_dict({**config.to_dict(), **fields}) if fields else config


def _warn_of_contested_feedback(config: Any, layout: Layout, source: str) -> None:
    """SpecForge's flag of this name says what is scored, and its trainer feeds back the state before the norm; engines
    feed back the one after it (trap 11)."""
    if layout.name == "eagle3" and getattr(config, "norm_output", False):
        logger.warning(
            "%s sets `norm_output`, taken as engines do: the normed state is fed back; SpecForge trains on the state "
            "before the norm, so if few drafts are accepted, try `hf-eagle3 doctor`, or load it with "
            "`norm_output=False`.",
            source,
        )


def _warn_of_contested_ids(config: Any, source: str) -> None:
    if not getattr(config, "boundaries_from_outputs", False):
        return
    ids = [boundary - 1 for boundary in config.target_boundaries]
    if ids in CONTESTED_IDS:
        logger.warning(
            "%s names the layers %s, taken for those whose outputs it reads, as its exporter writes them; SGLang "
            "takes boundaries, so if few drafts are accepted, load it with `target_boundaries=%s`.",
            source,
            ids,
            ids,
        )


def canonical(tensors: Tensors, layout: Layout) -> Tensors:
    """The tensors of a layout under the names of our heads' `state_dict()`, unchecked."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        for pattern, replacement in layout.rename:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _fill_vocabulary_maps(tensors: Tensors, config: HeadConfig, source: str) -> None:
    """Complete `d2t` (offsets) and `t2d` (mask): a full vocabulary may ship neither, `t2d` may follow from `d2t`."""
    own = torch.arange(int(config.draft_vocab_size or 0))
    if isinstance(config, EagleConfig) and config.draft_vocab_size == config.vocab_size:
        return  # such heads have no maps
    if config.draft_vocab_size == config.vocab_size:
        # Absent, or never filled in, when both vocabularies are one (trap 7).
        tensors["d2t"], tensors["t2d"] = torch.zeros_like(own), torch.ones_like(own, dtype=torch.bool)
    if "d2t" not in tensors:
        return  # a reduced vocabulary without its map is reported as a missing tensor
    d2t = tensors["d2t"] = tensors["d2t"].to(torch.long)
    if d2t.shape != own.shape:
        return  # reported as a misshapen tensor
    ids = own + d2t
    check_draft_vocabulary(ids, config)
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool).index_fill_(0, ids, True)
    if "t2d" in tensors and not torch.equal(tensors["t2d"].bool(), t2d):
        raise ValueError(
            f"{source}: `d2t` names {len(ids)} target tokens but `t2d` marks {int(tensors['t2d'].sum())}, and not the "
            "same ones; the draft vocabulary was never filled in, or is damaged."
        )
    tensors["t2d"] = t2d


def check_draft_vocabulary(target_ids: torch.Tensor, config: HeadConfig) -> None:
    """Refuse a draft vocabulary that is not `draft_vocab_size` ascending ids of the target's vocabulary.

    Raises:
        ValueError: naming the first id that is wrong.
    """
    if target_ids.shape != (config.draft_vocab_size,):
        raise ValueError(
            f"Got a draft vocabulary of shape {list(target_ids.shape)}; this head needs [{config.draft_vocab_size}]."
        )
    outside = (target_ids < 0) | (target_ids >= config.vocab_size)
    if outside.any():
        where = int(outside.nonzero()[0])
        raise ValueError(
            f"`d2t` maps draft token {where} to target token {int(target_ids[where])}, but the target has "
            f"{config.vocab_size} tokens; the file is damaged, or was written with ids instead of offsets."
        )
    if (target_ids.diff() <= 0).any():
        where = int((target_ids.diff() <= 0).nonzero()[0])
        raise ValueError(
            f"`d2t` maps draft tokens {where} and {where + 1} to target tokens {int(target_ids[where])} and "
            f"{int(target_ids[where + 1])}; the ids must ascend, so the file is damaged."
        )


def check_tensors(tensors: Tensors, expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Refuse a state dict that is not exactly the expected tensors, finite throughout.

    Raises:
        ValueError: naming the tensors that are missing, unknown, misshapen or hold NaN or infinity.
    """
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise lacks(missing, source)
    unknown = sorted(tensors.keys() - expected.keys())
    if unknown:
        raise ValueError(
            f"{source} holds tensors that no layout known here has: {', '.join(unknown)}; running it without them "
            "would draft badly in silence, so it is refused."
        )
    odd = sorted(name for name in expected if name not in MAPS and tensors[name].dtype not in WEIGHT_DTYPES)
    if odd:
        raise ValueError(
            f"{source}: `{odd[0]}` is stored as {str(tensors[odd[0]].dtype).removeprefix('torch.')}, but weights need "
            "float16, bfloat16, float32 or float64; take a head that is not quantised."
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{source}: `{name}` is {list(tensors[name].shape)} but the config and the other tensors need "
                f"{list(shape)}; the files do not belong together."
            )
        if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{source}: `{name}` holds NaN or infinite values; save or download the head again.")
