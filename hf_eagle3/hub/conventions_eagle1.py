"""What each layout can say of a head of EAGLE-1, EAGLE-2 or HASS.

The cells follow `llama_eagle.py` and `llama.py` of SGLang and of vLLM, and `cnets1.py` of the official program. The
speculators library has given up these heads, so there is no column for it (see `export_layouts`).
"""

from __future__ import annotations

import torch

from ..configuration_eagle import EagleConfig
from .conventions import (
    LAYOUTS,
    ROPE,
    YES,
    Case,
    Cell,
    Convention,
    Table,
    brings_targets_embeddings,
    flag,
    has_own_head_dim,
    no,
    only,
)

# ---------------------------------------------------------------------------------------------- conditions


def _brings_targets_output_embeddings(case: Case) -> bool:
    own = case.tensors["lm_head.weight"]
    if case.target is None or case.config.draft_vocab_size < case.config.vocab_size:
        return False
    return torch.equal(own.cpu(), case.target.output_embeddings().to("cpu", own.dtype))


def _reads_scaled_embeddings(case: Case) -> bool:
    return not case.config.own_embeddings and case.target is not None and case.target.scales_embeddings()


# ---------------------------------------------------------------------------------------------- the table

_SCALED = "reads them without the factor"
_TARGETS = only(
    "the target's",
    brings_targets_embeddings,
    "drafts with the target's in their place; pass the `target` if they are the same",
)
_TARGETS_OUTPUT = only(
    "the target's",
    _brings_targets_output_embeddings,
    "predicts with the target's in their place; pass the `target` if they are the same",
)
_ONE_LAYER = "is given heads of one layer only, which tells them from plain models"
_CONVENTIONS = (
    Convention(
        ("own_embeddings",),
        "drafts with the target's token embeddings",
        lambda case: not case.config.own_embeddings,
        (
            only(
                "with `target`",
                lambda case: case.target is not None,
                "reads them from the head's own file, for which they are taken from the `target`; pass it",
            ),
            YES,
            YES,
        ),
    ),
    Convention(
        ("own_embeddings",),
        "drafts with token embeddings that the target multiplies by a factor",
        _reads_scaled_embeddings,
        (no(_SCALED), no(_SCALED), no(_SCALED)),
    ),
    flag("own_embeddings", "brings token embeddings of its own", YES, _TARGETS, _TARGETS),
    flag("own_lm_head", "brings output embeddings of its own", _TARGETS_OUTPUT, _TARGETS_OUTPUT, _TARGETS_OUTPUT),
    Convention(
        ("draft_vocab_size",),
        "proposes some of the target's tokens only",
        lambda case: case.config.draft_vocab_size < case.config.vocab_size,
        (
            no("proposes all"),
            no("takes such tokens from `--speculative-token-map` only, with the target's output embeddings"),
            no("proposes all"),
        ),
    ),
    flag(
        "fc_bias",
        "has a bias in the layer that joins embedding and state",
        YES,
        YES,
        only("zeros", lambda case: not case.tensors["fc.bias"].any(), "has none there"),
    ),
    Convention(
        ("fc_bias",),
        "has no bias in the layer that joins embedding and state",
        lambda case: not case.config.fc_bias,
        (YES, Cell("yes, with zeros"), YES),
    ),
    flag("layernorms", "has norms around its layer", *(no("leaves those norms out"),) * 3),
    Convention(
        ("head_dim",),
        "has attention heads of another width than hidden_size / num_attention_heads",
        has_own_head_dim,
        (no("derives that width"), YES, YES),
    ),
    flag(
        "attention_bias",
        "has biases in all of its attention",
        no("leaves the output's out"),
        YES,
        YES,
    ),
    flag(
        "qkv_bias",
        "has biases of queries, keys and values",
        YES,
        Cell("yes, with zeros as the output's"),
        Cell("yes, with zeros as the output's"),
    ),
    flag("mlp_bias", "has biases in its MLP", no("leaves biases out"), no("leaves biases out"), YES),
    Convention(
        ("num_hidden_layers",),
        "has {layers} layers",
        lambda case: case.config.num_hidden_layers > 1,
        (no(_ONE_LAYER), YES, no(_ONE_LAYER)),
    ),
    Convention(
        ("hidden_act",),
        "has the activation {activation}",
        lambda case: case.config.hidden_act != "silu",
        (YES, no("knows silu only"), no("knows silu only")),
    ),
    *ROPE,
)
_TENSORS = (
    r"(embed_tokens|embed_norm|norm|lm_head)\.weight|fc\.(weight|bias)|d2t|t2d"
    r"|layers\.\d+\.((input_layernorm|post_attention_layernorm)\.weight"
    r"|(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.(weight|bias))"
)

EAGLE1 = Table(EagleConfig, LAYOUTS[:3], _CONVENTIONS, _TENSORS)
