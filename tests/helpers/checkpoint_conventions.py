"""What each catalogued draft head means, written by hand, one entry per variant of `data/checkpoint-formats.json`.

This is the oracle's own opinion. Nothing here is computed from a config file, so a loader that misreads a field cannot
agree with this table by sharing a mistake with it. Knows neither torch nor the files; see `checkpoint_catalogue.py`
for the files and `reference_heads.py` for the arithmetic.

A boundary b is the residual stream that enters target layer b; b = `TARGET_LAYERS` is what leaves the last layer,
before the final norm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "ENTRIES",
    "LAYERNORMS",
    "MASK_TOKEN",
    "ORIGINAL_POSITIONS",
    "PLACEHOLDER_THETA",
    "TARGET_LAYERS",
    "WINDOW",
    "Conventions",
    "Entry",
    "Rope",
]

TARGET_LAYERS = 10
"""Layers of the imagined target: enough that 2, L//2 and L-3 are three different boundaries."""

WINDOW = 4
"""Stands for a released window of 2048, so that a test of ten tokens feels it."""

ORIGINAL_POSITIONS = 256
"""Stands for every `original_max_position_embeddings`: puts one llama3 frequency into the smoothed band."""

PLACEHOLDER_THETA = 50000.0
"""Written where the catalogue has only a placeholder for `rope_theta`; equal to no library default."""

MASK_TOKEN = 5
"""Token id of the masked slots of parallel drafting."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of a head: positions from 0, never the target's base.

    `mscale` and `mscale_all_dim` are DeepSeek's words in a YaRN config; None where there are none.
    """

    base: float = 10000.0
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None


@dataclass(frozen=True)
class Conventions:
    """How a head computes, apart from its sizes.

    Attributes:
        kind: "eagle1" fuses [embedding ; state] to H and runs a plain layer; "eagle3" gives layer 0 both, 2H wide;
            "peagle" is "eagle3" with masked slots.
        boundaries: the target boundaries to concatenate, ascending; empty where the head reads the post-norm state.
        projection: "fused" (EAGLE-1), "states" (N states to H) or "none" (the state is already H wide).
        state_norm: norm before the projection: one per captured state ("chunk") or one on their concat ("concat").
        residual: layer 0 of EAGLE-3 adds to the projected state ("raw") or to its norm ("normed").
        feedback: the next step receives the output before or after the final norm.
        layers: layers on disk, whatever `num_hidden_layers` says.
        root: prefix of every key but `lm_head`.
        layer_prefix: prefix of layer i's keys.
        fuse: name of the projection.
        deep_norm: name of the pre-attention norm of layers i >= 1.
        final_norm: name of the norm before the output head, None where there is none.
        embedding_norm: name of an EAGLE-1 norm on the embedding, None where there is none.
        first_norm: whether EAGLE-1's layer 0 has an `input_layernorm`.
        embeddings, lm_head: whether the head brings its own.
        mapping: "d2t" (offsets) or "identity" (draft ids are target ids, any map on disk is ignored).
        window: a query at q sees keys k with q - window < k <= q; None is full attention.
        latent: attention over a latent, with rotated neighbouring pairs (DeepSeek), instead of heads and halves.
        low_rank_queries: whether the queries of latent attention come from a latent of their own.
        mask_token: embedding of masked slots; None where the head says no such token.
        unsettled: what the format notes leave open, empty where they are clear.
    """

    kind: Literal["eagle1", "eagle3", "peagle"]
    boundaries: tuple[int, ...] = (2, 5, 7)
    projection: Literal["fused", "states", "none"] = "states"
    state_norm: Literal["chunk", "concat"] | None = None
    residual: Literal["raw", "normed"] = "raw"
    feedback: Literal["pre_norm", "post_norm"] = "pre_norm"
    layers: int = 1
    root: str = ""
    layer_prefix: str = "layers.{i}."
    fuse: str = "fc"
    deep_norm: str = "input_layernorm"
    final_norm: str | None = "norm"
    embedding_norm: str | None = None
    first_norm: bool = False
    fc_bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    embeddings: Literal["own", "target"] = "target"
    lm_head: Literal["own", "target"] = "own"
    mapping: Literal["d2t", "identity"] = "d2t"
    rope: Rope = Rope()
    window: int | None = None
    latent: bool = False
    low_rank_queries: bool = True
    mask_token: int | None = None
    unsettled: str = ""


@dataclass(frozen=True)
class Entry:
    """One variant: a short handle, how its `repo_example` starts, its conventions and what a test may ask of it.

    Attributes:
        aux_ids: the ids to write where the config names any, made to fit `TARGET_LAYERS`; None where it names none.
        options: names from `checkpoint_options.py` that this variant accepts.
        inexpressible: why no reference arithmetic exists, empty where it does.
    """

    handle: str
    repo: str
    conventions: Conventions
    aux_ids: tuple[int, ...] | None = None
    options: tuple[str, ...] = ()
    inexpressible: str = ""


EAGLE1 = Conventions(
    kind="eagle1",
    boundaries=(),
    projection="fused",
    final_norm=None,
    fc_bias=True,
    embeddings="own",
    lm_head="target",
    mapping="identity",
)
OFFICIAL3 = Conventions(kind="eagle3", layer_prefix="midlayer.")
QWEN3_TEMPLATE = replace(OFFICIAL3, rope=Rope(base=1e6))
LLAMA3_ROPE = Rope(base=500000.0, kind="llama3", factor=8.0)
# ModelOpt writes the layer whose OUTPUT it captures, so [1, 4, 6] are the boundaries [2, 5, 7].
OUTPUT_IDS = (1, 4, 6)
MODELOPT = replace(OFFICIAL3, rope=LLAMA3_ROPE)
CONVERTED = Conventions(kind="eagle3")
TRAINED = replace(CONVERTED, residual="normed", embeddings="own")
PLACEHOLDER_ROPE = Rope(base=PLACEHOLDER_THETA)
PEAGLE = Conventions(kind="peagle", embeddings="own", rope=Rope(base=1e6))

SPECFORGE_FEEDBACK = (
    "trained by SpecForge the fed-back state is the one before the final norm; speculators and vLLM read the same flag"
    " as feeding back the one after it"
)
ANGELSLIM_BASE = "trained with rotary base 10000 although the config says 1000000; this entry follows the config"
LAYERNORMS = (
    "which of the renamed norms acts where, and whether the fed-back state is the one before or after"
    " `pre_lm_head_layernorm`, is not written down; this entry normalises the embedding, then the fused input of"
    " attention, then the output, and feeds back the output before its norm"
)

ENTRIES: dict[str, tuple[Entry, ...]] = {
    "eagle1_2_official": (
        Entry("llama2", "yuhuili/EAGLE-llama2-chat-7B", EAGLE1, options=("unknown_field",)),
        Entry("vicuna_7b", "yuhuili/EAGLE-Vicuna-7B-v1.3", EAGLE1),
        Entry("vicuna_33b", "yuhuili/EAGLE-Vicuna-33B-v1.3", EAGLE1),
        Entry("mixtral", "yuhuili/EAGLE-mixtral-instruct-8x7B", EAGLE1),
        Entry(
            "llama3",
            "yuhuili/EAGLE-LLaMA3-Instruct-8B",
            replace(EAGLE1, fc_bias=False, rope=Rope(base=500000.0)),
            options=("both_formats", "unknown_field", "sglang_eagle1_architecture"),
        ),
        Entry(
            "qwen2",
            "yuhuili/EAGLE-Qwen2-7B-Instruct",
            replace(EAGLE1, qkv_bias=True, rope=PLACEHOLDER_ROPE),
            options=("without_qkv_bias_field",),
        ),
        Entry(
            "vllm_wrapper",
            "abhigoyal/EAGLE-LLaMA3-Instruct-8B-vllm",
            replace(EAGLE1, lm_head="own", unsettled="its `lm_head` is a copy of the target's; either may serve"),
            options=("fc_bias_at_top",),
        ),
    ),
    "hass": (
        Entry(
            "llama3",
            "HArmonizedSS/HASS-LLaMA3",
            replace(EAGLE1, fc_bias=False, rope=Rope(base=500000.0)),
            options=("other_format",),
        ),
        Entry(
            "layernorms",
            "nm-testing/hass-llama3.1-8b-layernorms",
            replace(
                EAGLE1,
                fc_bias=False,
                fuse="fusion_fc",
                layer_prefix="transformer.",
                embeddings="target",
                embedding_norm="embedding_layernorm",
                first_norm=True,
                final_norm="pre_lm_head_layernorm",
                unsettled=LAYERNORMS,
            ),
        ),
    ),
    "eagle3_official": (
        Entry(
            "llama31_8b",
            "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B",
            OFFICIAL3,
            options=("sglang_eagle3_architecture", "without_t2d", "without_d2t", "unknown_field"),
        ),
        Entry("llama33_70b", "yuhuili/EAGLE3-LLaMA3.3-Instruct-70B", replace(OFFICIAL3, embeddings="own")),
        Entry(
            "vicuna_13b",
            "yuhuili/EAGLE3-Vicuna1.3-13B",
            replace(OFFICIAL3, mapping="identity"),
            options=("zero_maps", "full_maps"),
        ),
    ),
    "specforge": (
        Entry(
            "llama31_8b",
            "lmsys/SGLang-EAGLE3-Llama-3.1-8B",
            OFFICIAL3,
            options=("with_embed_tokens", "linear_rope", "without_t2d"),
        ),
        Entry("qwen3_8b", "Qwen3-8B (config template)", QWEN3_TEMPLATE, options=("mrope", "rope_parameters")),
        Entry("qwen3_235b", "lmsys/Qwen3-235B-A22B-EAGLE3", QWEN3_TEMPLATE, aux_ids=OUTPUT_IDS),
        Entry(
            "gpt_oss_120b",
            "lmsys/EAGLE3-gpt-oss-120b-bf16",
            replace(
                OFFICIAL3,
                boundaries=(2, 5, 8),
                unsettled="SGLang reads gpt-oss ids as boundaries since sglang#32334; SpecForge wrote layer outputs",
            ),
            aux_ids=(1, 4, 7),
        ),
        Entry("llama4_scout", "lmsys/sglang-EAGLE3-Llama-4-Scout", OFFICIAL3),
        Entry("kimi_k2", "AQ-MedAI/Kimi-K2-Instruct-eagle3", QWEN3_TEMPLATE, aux_ids=(2, 5, 7)),
        Entry(
            "gpt_oss_20b_nebius",
            "nebius/EAGLE3-gpt-oss-20b",
            replace(OFFICIAL3, rope=Rope(base=150000.0, kind="yarn", factor=32.0, truncate=False)),
        ),
    ),
    "eagle3_1": (
        Entry(
            "qwen3_30b",
            "SpecForge qwen3-30B-A3B-eagle3.1.json",
            replace(QWEN3_TEMPLATE, state_norm="chunk", feedback="post_norm", unsettled=SPECFORGE_FEEDBACK),
        ),
        Entry(
            "gpt_oss_120b",
            "Dogacel/specdrift-gpt-oss-120b-eagle3",
            replace(
                OFFICIAL3,
                boundaries=(2, 5, 8),
                state_norm="chunk",
                feedback="post_norm",
                unsettled=SPECFORGE_FEEDBACK,
            ),
            aux_ids=(1, 4, 7),
        ),
        Entry(
            "speculators",
            "speculators fc_norm/norm_output",
            replace(TRAINED, state_norm="chunk", feedback="post_norm", rope=Rope(base=1e6)),
            aux_ids=(2, 5, 7),
        ),
    ),
    "angelslim": (
        Entry(
            "qwen3_8b",
            "AngelSlim/Qwen3-8B_eagle3",
            replace(QWEN3_TEMPLATE, unsettled=ANGELSLIM_BASE),
            options=("other_format", "with_embed_tokens", "mrope_interleaved", "sglang_eagle3_architecture"),
        ),
        Entry(
            "qwen3_4b_tied",
            "AngelSlim/Qwen3-1.7B_eagle3",
            replace(QWEN3_TEMPLATE, unsettled=ANGELSLIM_BASE),
            options=("other_format", "with_embed_tokens"),
        ),
    ),
    "modelopt": (
        Entry(
            "maverick",
            "nvidia/Llama-4-Maverick-17B-128E-Eagle3",
            replace(
                MODELOPT,
                mapping="identity",
                unsettled="TensorRT-LLM#19036 says interleaved rotation for Llama-4 targets; vLLM rotates halves",
            ),
            aux_ids=OUTPUT_IDS,
        ),
        Entry(
            "hf_2025",
            "modelopt<=2025-12 HF export",
            MODELOPT,
            aux_ids=OUTPUT_IDS,
            options=("unsorted_ids", "without_d2t"),
        ),
        Entry(
            "hf_2026",
            "modelopt 2026 HF export",
            replace(MODELOPT, layer_prefix="layers.{i}."),
            aux_ids=OUTPUT_IDS,
            options=("unsorted_ids", "without_d2t", "quantised", "eh_proj"),
        ),
        Entry(
            "hf_2026_deep",
            "modelopt 2026 multi-layer",
            replace(MODELOPT, layers=2, layer_prefix="layers.{i}."),
            aux_ids=OUTPUT_IDS,
        ),
        Entry(
            "megatron_deep",
            "Megatron deep",
            replace(MODELOPT, layers=2, layer_prefix="midlayer.{i}.", deep_norm="hidden_norm"),
            aux_ids=OUTPUT_IDS,
            options=("without_d2t",),
        ),
        Entry(
            "gpt_oss_last_state",
            "nvidia/gpt-oss-120b-Eagle3-v2",
            replace(
                OFFICIAL3,
                boundaries=(),
                projection="none",
                rope=PLACEHOLDER_ROPE,
                unsettled="whether the released files keep `hidden_norm` is unverified; the catalogue lists it",
            ),
            aux_ids=(),
            options=("with_unused_fc",),
        ),
        Entry(
            "gpt_oss_v3",
            "nvidia/gpt-oss-120b-Eagle3-v3",
            replace(
                CONVERTED,
                boundaries=(7, 8, 10),
                state_norm="concat",
                rope=PLACEHOLDER_ROPE,
                unsettled="the key prefix of the layer is unverified",
            ),
            aux_ids=(7, 8, 10),
        ),
        Entry(
            "kimi_k2_mla",
            "Kimi-K2 MLA heads",
            replace(
                CONVERTED,
                latent=True,
                rope=PLACEHOLDER_ROPE,
                unsettled=(
                    "the catalogue writes the shapes down but neither rotation, scale nor epsilon; this entry follows"
                    " the serving engines, see `reference_latent.py`"
                ),
            ),
            options=("incomplete", "deepseek_yarn", "direct_queries", "fc_norm_and_norm_output"),
        ),
    ),
    "speculators_eagle3": (
        Entry(
            "converted",
            "nm-testing/EAGLE3-LLaMA3.1-Instruct-8B-converted",
            CONVERTED,
            options=("with_embed_tokens", "without_t2d"),
        ),
        Entry(
            "llama31_8b",
            "RedHatAI/Llama-3.1-8B-Instruct-speculator.eagle3",
            TRAINED,
            options=("without_embed_tokens", "without_t2d"),
        ),
        Entry("qwen3_8b_thinking", "RedHatAI/Qwen3-8B-Thinking-speculator.eagle3", TRAINED),
        Entry(
            "gpt_oss_20b",
            "RedHatAI/gpt-oss-20b-speculator.eagle3",
            replace(TRAINED, boundaries=(2, 5, 8), state_norm="concat", rope=PLACEHOLDER_ROPE),
            aux_ids=(2, 5, 8),
            options=("null_ids",),
        ),
        Entry(
            "maverick",
            "RedHatAI/Llama-4-Maverick-17B-128E-Instruct-speculator.eagle3",
            replace(
                CONVERTED,
                boundaries=OUTPUT_IDS,
                mapping="identity",
                rope=PLACEHOLDER_ROPE,
                unsettled="speculators ids are boundaries, but ModelOpt trained this head on layer outputs",
            ),
            aux_ids=OUTPUT_IDS,
        ),
        Entry(
            "qwen3_layer",
            "speculators >=0.5, transformers 5, qwen3 layer",
            replace(TRAINED, boundaries=(3, 5, 8), qk_norm=True, rope=Rope(base=1e6)),
            aux_ids=(3, 5, 8),
            options=("null_ids",),
        ),
        Entry(
            "two_layers",
            "nm-testing/random-weights-llama3.1.8b-2layer-eagle3",
            replace(CONVERTED, layers=2, embeddings="own"),
        ),
        Entry(
            "trainer_2026",
            "(no repo named) speculators trainer defaults since 2026-07",
            replace(
                TRAINED,
                boundaries=(2, 6, 8),
                state_norm="concat",
                feedback="post_norm",
                rope=PLACEHOLDER_ROPE,
                window=WINDOW,
            ),
            aux_ids=(2, 6, 8),
            options=("null_ids", "full_window", "nested_rope_parameters"),
        ),
    ),
    "speculators_eagle1_hass": (
        Entry(
            "eagle",
            "nm-testing/eagle-llama3.1-8b-instruct",
            replace(
                EAGLE1,
                fc_bias=False,
                fuse="fusion_fc",
                layer_prefix="transformer.",
                embeddings="target",
                rope=Rope(base=10000.0),
            ),
            options=("fusion_bias", "layernorms"),
        ),
    ),
    "peagle": (
        Entry(
            "qwen3_8b",
            "RedHatAI/Qwen3-8B-speculator.peagle",
            replace(PEAGLE, boundaries=(2, 4, 5, 7, 9), layers=2, mask_token=MASK_TOKEN),
            aux_ids=(2, 4, 5, 7, 9),
        ),
        Entry(
            "specforge_qwen3_8b",
            "thyways/qwen3_8b_peagle_demo",
            replace(PEAGLE, layers=4, unsettled="the config names no mask token, so the masked slots are undefined"),
            options=("mask_token_id",),
        ),
        Entry(
            "gpt_oss_20b",
            "amazon/GPT-OSS-20B-P-EAGLE",
            replace(
                PEAGLE,
                layers=4,
                qkv_bias=True,
                mask_token=MASK_TOKEN,
                unsettled="nothing of its config was seen; written as the SpecForge form with q, k and v biases",
            ),
        ),
    ),
    "nemo_automodel": (
        Entry(
            "llama",
            "(NeMo AutoModel exports)",
            replace(
                CONVERTED,
                root="model.",
                embeddings="own",
                rope=PLACEHOLDER_ROPE,
                unsettled="whether d2t and t2d carry the `model.` prefix is unverified",
            ),
            options=("incomplete", "unprefixed_maps", "fc_norm"),
        ),
    ),
}
