"""The layouts in which heads are released: a table of families, how each is told, and how its tensors are renamed.

What the fields and tensors of each mean is in `layouts_eagle1.py` and `layouts_eagle3.py`. Knows nothing of files or
modules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .configuration_eagle import EagleConfig
from .configuration_eagle3 import Eagle3Config
from .layout_fields import Fields

NATIVE = "hf-eagle3"  # the layout that we save in


@dataclass(frozen=True)
class Layout:
    """One family of checkpoints: how its config is told from others, what its words mean, how tensors are renamed.

    Args:
        recognise: whether a config.json is of this family, or may be where `marks` must tell.
        heads: the `model_type` of our config for its heads.
        marks: tensors that tell its checkpoints from those of models whose config says the same.
        strangers: tensors that its checkpoints never have, and that tell those of another family.
        flatten: its config as one level of Llama's fields and our flags.
        rename: patterns of tensor names, and what to put in their place; applied in order.
        ids_are_boundaries: whether layer ids name what enters a layer. If not, a first id of 1 says that they name
            layers' outputs, as the trainers that write such files do by default (trap 1).
        refused: why heads of this family cannot be loaded; nothing else of it is looked at then.
    """

    name: str
    recognise: Callable[[Fields], bool]
    heads: str = Eagle3Config.model_type
    marks: frozenset[str] = frozenset()
    strangers: frozenset[str] = frozenset()
    flatten: Callable[[Fields], Fields] = dict
    rename: tuple[tuple[str, str], ...] = ()
    ids_are_boundaries: bool = False
    refused: str = ""


def _named(*names: str) -> Callable[[Fields], bool]:
    """Configs whose first architecture is one of `names`."""
    return lambda fields: (fields.get("architectures") or [""])[0] in names


def _speculators(*kinds: str) -> Callable[[Fields], bool]:
    """Configs of the speculators library, whose architecture has the name of our own class."""
    return lambda fields: fields.get("speculators_model_type") in kinds


def _is_native(model_type: str) -> Callable[[Fields], bool]:
    return lambda fields: fields.get("model_type") == model_type and "speculators_model_type" not in fields


def _is_released_eagle3(fields: Fields) -> bool:
    """yuhuili's heads call themselves Llama; a draft vocabulary tells them from EAGLE-1's (trap 30)."""
    reduced = fields.get("draft_vocab_size") or fields.get("truncated_vocab_size")
    return _named("LlamaForCausalLM")(fields) and reduced is not None


def _with_eagle_config(fields: Fields) -> Fields:
    """What ModelOpt and SpecForge keep in `eagle_config` beside Llama's fields (trap 9)."""
    return {
        **fields,
        **{name: value for name, value in (fields.get("eagle_config") or {}).items() if value is not None},
    }


def _with_layer_config(fields: Fields) -> Fields:
    """speculators nests the layer's fields; its own are beside them."""
    return {**fields.get("transformer_layer_config", {}), **fields}


def _with_wrapped_model(fields: Fields) -> Fields:
    """vLLM's wrapper nests the draft's config under `model`; its own fields may be on either level."""
    own = {name: value for name, value in fields.items() if name not in ("model", "model_type")}
    return {**fields["model"], **{name: value for name, value in own.items() if value is not None}}


_MIDLAYER = ((r"^midlayer\.(?=\d)", "layers."), (r"^midlayer\.", "layers.0."))
# Megatron's deep heads call the norm before attention `hidden_norm` in every layer (trap 24).
_DEEP_NORM = ((r"^layers\.([1-9]\d*)\.hidden_norm\.", r"layers.\1.input_layernorm."),)

_SPECULATORS_EAGLE1 = (
    (r"^fusion_fc\.", "fc."),
    (r"^transformer\.", "layers.0."),
    (r"^embedding_layernorm\.", "embed_norm."),
    (r"^pre_lm_head_layernorm\.", "norm."),
)

LAYOUTS = (
    Layout(NATIVE, _is_native(Eagle3Config.model_type)),
    Layout(NATIVE, _is_native(EagleConfig.model_type), heads=EagleConfig.model_type),
    Layout(
        "dflash",
        lambda fields: _named("DFlashDraftModel")(fields) or _speculators("dflash")(fields),
        refused="is a DFlash drafter, which writes whole blocks at once from keys and values of the target",
    ),
    Layout(
        "mtp",
        lambda fields: _named("MTPDraftModel")(fields) or _speculators("mtp")(fields),
        refused="is a multi-token-prediction layer, which transformers runs by itself (`use_mtp=True`)",
    ),
    Layout(
        "medusa",
        lambda fields: _named("MedusaModel")(fields) or fields.get("model_type") == "medusa",
        refused="holds Medusa heads, which guess without reading the tokens in between",
    ),
    Layout(
        "speculators",
        _speculators("eagle3", "peagle"),
        flatten=_with_layer_config,
        ids_are_boundaries=True,
    ),
    Layout("p-eagle", _named("PEagleDraftModel", "PeagleLlamaForCausalLM"), flatten=_with_eagle_config),
    Layout(
        "eagle3-latent",
        _named(
            "Eagle3DeepseekV2ForCausalLM",
            "Eagle3DeepseekV3ForCausalLM",
            "Eagle3DeepSeekV3ForCausalLM",
            "DeepseekV3ForCausalLMEagle3",
        ),
        flatten=_with_eagle_config,
        rename=_MIDLAYER,
    ),
    Layout(
        "speculators-eagle1",
        _speculators("eagle"),
        heads=EagleConfig.model_type,
        flatten=_with_layer_config,
        rename=_SPECULATORS_EAGLE1,
    ),
    Layout(
        "vllm-eagle1",
        lambda fields: fields.get("model_type") == "eagle" and isinstance(fields.get("model"), dict),
        heads=EagleConfig.model_type,
        flatten=_with_wrapped_model,
        rename=((r"^(model\.)+", ""),),
    ),
    Layout("nemo", _named("LlamaEagle3DraftModel"), flatten=_with_eagle_config, rename=((r"^model\.", ""),)),
    Layout(
        "eagle3",
        lambda fields: (
            _is_released_eagle3(fields)
            or _named("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "LlamaForCausalLMEagle3Deep")(fields)
        ),
        flatten=_with_eagle_config,
        rename=_MIDLAYER + _DEEP_NORM,
    ),
    Layout("eagle1", _named("LlamaForCausalLMEagle"), heads=EagleConfig.model_type),
    # Official EAGLE-1 and HASS heads have the config of a plain one-layer Llama, Mixtral or Qwen2.
    Layout(
        "eagle1",
        lambda fields: fields.get("num_hidden_layers") == 1,
        heads=EagleConfig.model_type,
        marks=frozenset({"fc.weight"}),
        strangers=frozenset({"d2t", "midlayer.hidden_norm.weight", "layers.0.hidden_norm.weight"}),
    ),
)


def recognise(config: Mapping[str, Any], tensors: Collection[str] = ()) -> Layout | None:
    """The layout that a config.json announces, or `None` if it is no draft head that we know.

    Args:
        config: the fields of the config.json.
        tensors: names of the checkpoint's tensors, without which a layout with `marks` is never found.
    """
    names = set(tensors)
    fitting = (one for one in LAYOUTS if one.marks <= names and not one.strangers & names)
    return next((one for one in fitting if one.recognise(config)), None)


def only_tensors_tell(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a plain model, or else of a head that only its tensors can tell from one."""
    return recognise(config) is None and any(layout.recognise(config) for layout in LAYOUTS)
