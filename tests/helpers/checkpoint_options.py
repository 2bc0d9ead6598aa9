"""Named departures from a catalogued checkpoint: optional tensors, other spellings of a field, and broken files.

Each option is one function on a `Draft`, the not yet written checkpoint, and changes the files and the expectation
together. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .checkpoint_conventions import (
    LAYERNORMS,
    MASK_TOKEN,
    ORIGINAL_POSITIONS,
    PLACEHOLDER_THETA,
    Conventions,
    Rope,
)

__all__ = ["OPTIONS", "Draft", "Sizes", "Spec", "layer_fields"]


class Spec(NamedTuple):
    """One tensor to be: its shape in symbols such as "[A*D, 2*H]" and its dtype's torch name."""

    shape: str
    dtype: str


@dataclass(frozen=True)
class Sizes:
    """Tiny sizes; the one-letter names are the catalogue's, see `symbols` in the JSON file."""

    H: int = 24
    Ht: int = 24
    A: int = 4
    K: int = 2
    D: int = 6
    I: int = 40  # noqa: E741 - the catalogue's name
    Vt: int = 64
    Vd: int = 22
    N: int = 3
    q_lora: int = 12
    kv_lora: int = 8
    nope: int = 6
    rope: int = 4
    v: int = 5


@dataclass
class Draft:
    """A checkpoint about to be written, and what is expected of it.

    Attributes:
        maps: "real" writes offsets and mask of the drawn vocabulary, "zero" writes zeros into both, "full" zeros into
            `d2t` and ones into `t2d`.
        formats: file formats to write, of "bin" and "safetensors".
        completed: dotted names of config fields that the catalogue does not show but no loader can do without.
        refuse: why a loader has to refuse this folder, empty where it has to load it.
    """

    config: dict[str, Any]
    specs: dict[str, Spec]
    sizes: Sizes
    conventions: Conventions | None
    formats: tuple[str, ...]
    maps: str = "real"
    completed: tuple[str, ...] = ()
    refuse: str = ""
    extra_files: dict[str, Any] = field(default_factory=dict)

    def adopt(self, **changes: Any) -> None:
        """Change the expected conventions, where there are any."""
        if self.conventions is not None:
            self.conventions = replace(self.conventions, **changes)


def layer_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the layer: all of it, or the nested part of the wrapped forms."""
    for name in ("transformer_layer_config", "model"):
        nested = config.get(name)
        if isinstance(nested, dict):
            return nested
    return config


def unknown_field(draft: Draft) -> None:
    """Released configs carry fields nobody has documented; they must not matter."""
    draft.config["some_future_field"] = {"nested": [1, 2]}


def other_format(draft: Draft) -> None:
    draft.formats = ("safetensors",) if draft.formats == ("bin",) else ("bin",)


def both_formats(draft: Draft) -> None:
    """One released repository holds both; the tensors are the same, so either choice is right."""
    draft.formats = ("bin", "safetensors")


def sglang_eagle1_architecture(draft: Draft) -> None:
    draft.config["architectures"] = ["LlamaForCausalLMEagle"]


def sglang_eagle3_architecture(draft: Draft) -> None:
    draft.config["architectures"] = ["LlamaForCausalLMEagle3"]


def without_qkv_bias_field(draft: Draft) -> None:
    """Only the tensors tell that the projections have biases."""
    del draft.config["qkv_bias"]


def fc_bias_at_top(draft: Draft) -> None:
    draft.config["eagle_fc_bias"] = draft.config["model"].pop("eagle_fc_bias")


def with_embed_tokens(draft: Draft) -> None:
    draft.specs["embed_tokens.weight"] = Spec("[Vt, H]", draft.specs["norm.weight"].dtype)
    draft.adopt(embeddings="own")


def without_embed_tokens(draft: Draft) -> None:
    del draft.specs["embed_tokens.weight"]
    draft.adopt(embeddings="target")


def without_t2d(draft: Draft) -> None:
    """The mask serves training only."""
    del draft.specs["t2d"]


def without_d2t(draft: Draft) -> None:
    """Without offsets a reduced vocabulary means nothing, so silence would be wrong (NeMo Automodel#2447).

    The mask goes too, for the sorted kept ids could be read off it.
    """
    del draft.specs["d2t"]
    draft.specs.pop("t2d", None)
    draft.refuse = "the draft vocabulary is smaller than the target's and there is no d2t"


def zero_maps(draft: Draft) -> None:
    draft.specs |= {"d2t": Spec("[Vt]", "int64"), "t2d": Spec("[Vt]", "bool")}
    draft.maps = "zero"


def full_maps(draft: Draft) -> None:
    draft.specs |= {"d2t": Spec("[Vt]", "int64"), "t2d": Spec("[Vt]", "bool")}
    draft.maps = "full"


def unprefixed_maps(draft: Draft) -> None:
    for name in ("d2t", "t2d"):
        draft.specs[name] = draft.specs.pop(f"model.{name}")


def fc_norm(draft: Draft) -> None:
    draft.config["fc_norm"] = True
    for index in range(draft.sizes.N):
        draft.specs[f"model.fc_norm.{index}.weight"] = Spec("[Ht]", "bfloat16")
    draft.adopt(state_norm="chunk")


def linear_rope(draft: Draft) -> None:
    draft.config["rope_scaling"] = {"type": "linear", "factor": 4.0}
    draft.adopt(rope=Rope(base=10000.0, kind="linear", factor=4.0))


def mrope(draft: Draft) -> None:
    """Three position axes that are equal on text: plain rotation."""
    draft.config["rope_scaling"] = {"type": "mrope", "mrope_section": _sections(draft.sizes.D)}


def mrope_interleaved(draft: Draft) -> None:
    """As `mrope`; the interleaving is of the axes and vanishes with them."""
    draft.config["rope_scaling"] = {
        "type": "default",
        "mrope_interleaved": True,
        "mrope_section": _sections(draft.sizes.D),
    }


def rope_parameters(draft: Draft) -> None:
    """What an export under transformers 5 looks like: the new field beside the mirrored old ones."""
    draft.config["rope_parameters"] = {"rope_theta": draft.config["rope_theta"], "rope_type": "default"}


def nested_rope_parameters(draft: Draft) -> None:
    """Per layer type; a head whose layers slide uses the sliding entry."""
    layer = layer_fields(draft.config)
    del layer["rope_scaling"], layer["rope_theta"]
    layer["rope_parameters"] = {
        "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": PLACEHOLDER_THETA, "rope_type": "default"},
    }


def full_window(draft: Draft) -> None:
    """The window as released, wider than any test's sequence."""
    layer_fields(draft.config)["sliding_window"] = 2048
    draft.adopt(window=2048)


def null_ids(draft: Draft) -> None:
    draft.config["eagle_aux_hidden_state_layer_ids"] = None
    draft.adopt(boundaries=(2, 5, 7))


def unsorted_ids(draft: Draft) -> None:
    """An exporter wrote `list(set(ids))`; the states are concatenated in layer order all the same.

    Whether ids are layer outputs is told by the smallest being 1, not by the first as written.
    """
    ids = draft.config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]
    draft.config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = [ids[-1], *ids[:-1]]


def with_unused_fc(draft: Draft) -> None:
    """A projection nobody applies: the head reads the post-norm state, already H wide."""
    draft.specs["fc.weight"] = Spec("[H, 3*Ht]", "bfloat16")


def mask_token_id(draft: Draft) -> None:
    draft.config["mask_token_id"] = MASK_TOKEN
    draft.adopt(mask_token=MASK_TOKEN, unsettled="")


def fusion_bias(draft: Draft) -> None:
    draft.config["fusion_bias"] = True
    draft.specs["fusion_fc.bias"] = Spec("[H]", "bfloat16")
    draft.adopt(fc_bias=True)


def layernorms(draft: Draft) -> None:
    draft.config["layernorms"] = True
    for name in ("transformer.input_layernorm", "embedding_layernorm", "pre_lm_head_layernorm"):
        draft.specs[f"{name}.weight"] = Spec("[H]", "bfloat16")
    draft.adopt(
        embedding_norm="embedding_layernorm",
        first_norm=True,
        final_norm="pre_lm_head_layernorm",
        unsettled=LAYERNORMS,
    )


def deepseek_yarn(draft: Draft) -> None:
    """The scaling of Kimi-K2's heads in ModelOpt's default, with factors that tell the two `mscale`s apart."""
    draft.config["rope_scaling"] = {
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "factor": 64.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "original_max_position_embeddings": ORIGINAL_POSITIONS,
        "type": "yarn",
    }
    rope = Rope(base=PLACEHOLDER_THETA, kind="yarn", factor=64.0, beta_fast=1.0, mscale=1.0, mscale_all_dim=0.7)
    draft.adopt(rope=rope)


def direct_queries(draft: Draft) -> None:
    """Without `q_lora_rank` one matrix makes the queries (DeepSeek-V2-Lite)."""
    draft.config["q_lora_rank"] = None
    for name in ("q_a_proj", "q_a_layernorm", "q_b_proj"):
        del draft.specs[f"layers.0.self_attn.{name}.weight"]
    draft.specs["layers.0.self_attn.q_proj.weight"] = Spec("[A*nope+A*rope, 2*H]", "bfloat16")
    draft.adopt(low_rank_queries=False)


def fc_norm_and_norm_output(draft: Draft) -> None:
    """EAGLE-3.1 with latent attention (lightseekorg/kimi-k2.6-eagle3.1-mla)."""
    draft.config |= {"fc_norm": True, "norm_output": True}
    for index in range(draft.sizes.N):
        draft.specs[f"fc_norm.{index}.weight"] = Spec("[Ht]", "bfloat16")
    draft.adopt(state_norm="chunk", feedback="post_norm")


def incomplete(draft: Draft) -> None:
    """The config with the catalogued fields only, which do not tell the number of heads."""
    for name in draft.completed:
        del draft.config[name]
    draft.completed = ()
    draft.refuse = "the config names neither hidden_size nor num_attention_heads"


def quantised(draft: Draft) -> None:
    draft.specs["layers.0.self_attn.q_proj.weight"] = Spec("[A*D, 2*H]", "float8_e4m3fn")
    draft.specs["layers.0.self_attn.q_proj.weight_scale"] = Spec("[]", "float32")
    draft.extra_files["hf_quant_config.json"] = {"quantization": {"quant_algo": "FP8"}}
    draft.refuse = "the weights are quantised"


def eh_proj(draft: Draft) -> None:
    """A projection of [embedding ; hidden] before attention: another architecture under the same name."""
    draft.config["eagle_config"]["eh_proj_before_attn"] = True
    draft.specs["layers.0.enorm.weight"] = Spec("[H]", "bfloat16")
    draft.specs["layers.0.eh_proj.weight"] = Spec("[H, 2*H]", "bfloat16")
    draft.refuse = "enorm and eh_proj are no part of an EAGLE-3 head"


def _sections(head_dim: int) -> list[int]:
    """Three sections of the head_dim/2 frequencies."""
    half = head_dim // 2
    return [half - 2 * (half // 3), half // 3, half // 3]


OPTIONS: dict[str, Callable[[Draft], None]] = {
    option.__name__: option
    for option in (
        both_formats,
        deepseek_yarn,
        direct_queries,
        eh_proj,
        fc_bias_at_top,
        fc_norm,
        fc_norm_and_norm_output,
        full_maps,
        full_window,
        fusion_bias,
        incomplete,
        layernorms,
        linear_rope,
        mask_token_id,
        mrope,
        mrope_interleaved,
        nested_rope_parameters,
        null_ids,
        other_format,
        quantised,
        rope_parameters,
        sglang_eagle1_architecture,
        sglang_eagle3_architecture,
        unknown_field,
        unprefixed_maps,
        unsorted_ids,
        with_embed_tokens,
        with_unused_fc,
        without_d2t,
        without_embed_tokens,
        without_qkv_bias_field,
        without_t2d,
        zero_maps,
    )
}
