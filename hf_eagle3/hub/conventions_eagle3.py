"""What each layout can say of a head of EAGLE-3.

The cells follow the loaders of SGLang 0.5.6 and 0.5.23, vLLM 0.33.0, speculators 0.5.0 to 0.9.0 and the official
program of SafeAILab/EAGLE (cb7e084).
"""

from __future__ import annotations

from ..configuration_eagle3 import Eagle3Config
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
    since,
)


def _official_boundaries(case: Case) -> bool:
    """Whether they are the official program's own: `[2, L // 2, L - 3]` of the target, or of some target at least."""
    found = case.boundaries
    if found is None:
        return case.config.num_target_boundaries == 3
    layers = case.target.num_layers if case.target is not None else found[-1] + 3
    return layers >= 7 and found == [2, layers // 2, layers - 3]


def _first_boundary(case: Case) -> int | None:
    return case.boundaries[0] if case.boundaries else None


# ---------------------------------------------------------------------------------------------- the table

_WHICH = "has no default for that many (load it with `target_boundaries=[...]`)"
_CONVENTIONS = (
    Convention(
        ("target_boundaries",),
        "does not say which boundaries it reads, which are {count}",
        lambda case: (
            case.boundaries is None
            and not case.config.reads_last_hidden_state
            and case.config.num_target_boundaries != 3
        ),
        (no(_WHICH), no(_WHICH), no(_WHICH), no(_WHICH)),
    ),
    Convention(
        ("target_boundaries", "boundaries_from_outputs"),
        "reads the target's boundaries {boundaries}",
        lambda case: not case.config.reads_last_hidden_state,
        (
            only("[2, L//2, L-3]", _official_boundaries, "always reads [2, L//2, L-3] of the target's L layers"),
            # Most targets of SGLang take ids as layers' outputs, some only if the first is 1 (sglang#25454).
            only(
                "the first is 2",
                lambda case: _first_boundary(case) in (None, 2),
                "reads such ids in two ways, depending on the target, unless the first boundary is 2",
            ),
            only(
                "the first is not 1",
                lambda case: _first_boundary(case) != 1,
                "takes ids as boundaries where all others take ids that begin with 1 as outputs of layers",
            ),
            YES,
        ),
    ),
    Convention(
        ("target_boundaries",),
        "reads what leaves the target's last layer, before its final norm",
        lambda case: case.target is not None and case.target.num_layers in (case.boundaries or ()),
        (
            no("always reads [2, L//2, L-3] of the target's L layers"),
            no("does so for some targets only"),
            no("is not known to capture that state"),
            no("is not known to capture that state"),
        ),
    ),
    Convention(
        ("num_target_boundaries",),
        "reads {count} boundaries",
        lambda case: not case.config.reads_last_hidden_state and case.config.num_target_boundaries != 3,
        (no("always reads three"), YES, YES, YES),
    ),
    Convention(
        ("target_hidden_size",),
        "is not as wide as its target",
        lambda case: case.config.target_hidden_size != case.config.hidden_size,
        (YES, YES, YES, no("builds its fusion layer for a target as wide as the head")),
    ),
    Convention(
        ("head_dim",),
        "has attention heads of another width than hidden_size / num_attention_heads",
        has_own_head_dim,
        (no("derives that width"), YES, YES, YES),
    ),
    flag(
        "own_embeddings",
        "brings token embeddings of its own",
        YES,
        only(
            "the target's, or of another width",
            brings_targets_embeddings,
            "drafts with the target's in their place; pass the `target` if they are the same",
        ),
        YES,
        YES,
    ),
    flag(
        "norm_before_residual",
        "takes its first residual after the norm",
        no("takes it before the norm"),
        no("takes it before the norm"),
        YES,
        YES,
    ),
    flag(
        "norm_before_fc",
        "normalises the boundaries together before its fusion layer",
        no("leaves that norm out"),
        since("0.5.23"),
        YES,
        since("0.5.0"),
    ),
    flag(
        "fc_norm",
        "normalises each boundary before its fusion layer",
        no("leaves those norms out"),
        since("0.5.23"),
        YES,
        since("0.8.1"),
    ),
    flag(
        "norm_output",
        "feeds back its state after the final norm",
        no("feeds it back before the norm"),
        since("0.5.23"),
        since("0.33.0"),
        since("0.8.1"),
    ),
    flag(
        "qk_norm",
        "normalises queries and keys",
        no("leaves those norms out"),
        no("leaves those norms out"),
        no("has no such layer in this layout"),
        only("without mlp_bias", lambda case: not case.config.mlp_bias, "has no layer with both these and `mlp_bias`"),
    ),
    flag(
        "attention_bias",
        "has biases in its attention",
        no("leaves biases out"),
        no("leaves biases out"),
        YES,
        YES,
    ),
    flag(
        "qkv_bias",
        "has biases of queries, keys and values",
        no("leaves biases out"),
        no("leaves biases out"),
        Cell("yes, with zeros as the output's"),
        Cell("yes, with zeros as the output's"),
    ),
    flag("mlp_bias", "has biases in its MLP", no("leaves biases out"), no("leaves biases out"), YES, YES),
    flag(
        "sliding_window",
        "sees back a window of {window} positions",
        no("lets heads see back everything"),
        no("takes a window from `--speculative-draft-window-size` only"),
        since("0.33.0"),
        since("0.8.1"),
    ),
    flag(
        "reads_last_hidden_state",
        "reads the target's last hidden state",
        no("runs such heads through a fusion layer that they do not have"),
        since("0.5.23"),
        since("0.33.0"),
        no("has no such heads"),
    ),
    Convention(
        ("num_hidden_layers",),
        "has {layers} layers",
        lambda case: case.config.num_hidden_layers > 1,
        (no("reads one"), no("names further layers differently from version to version"), YES, YES),
    ),
    Convention(
        ("hidden_act",),
        "has the activation {activation}",
        lambda case: case.config.hidden_act != "silu",
        (YES, no("knows silu only"), no("knows silu only"), YES),
    ),
    Convention(
        ("draft_vocab_size",),
        "proposes every token of the target",
        lambda case: case.config.draft_vocab_size == case.config.vocab_size,
        (YES, YES, YES, YES),
    ),
    *ROPE,
)
_TENSORS = (
    r"(embed_tokens|input_norm|fc_norm\.\d+|fc|norm|lm_head)\.weight|d2t|t2d"
    r"|layers\.\d+\.((input_layernorm|hidden_norm|post_attention_layernorm|self_attn\.[qk]_norm)\.weight"
    r"|(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.(weight|bias))"
)

EAGLE3 = Table(Eagle3Config, LAYOUTS, _CONVENTIONS, _TENSORS)
