"""What each layout can say of a head: a table of conventions by layouts; `export_check` obeys it, the docs print it.

A cell says yes, no, or on which condition. It says yes only if everything that reads the layout then computes what the
head computes; what a reader would pass over in silence is a no, or asks for a version that does not. The cells follow
the loaders of SGLang 0.5.6 and 0.5.23, vLLM 0.33.0, speculators 0.5.0 to 0.9.0 and the official program of
SafeAILab/EAGLE (cb7e084). Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..configuration_eagle3 import Eagle3Config
from .export_target import Target

LAYOUTS = ("eagle", "sglang", "vllm", "speculators")
READERS = {
    "eagle": "the official EAGLE program",
    "sglang": "SGLang",
    "vllm": "vLLM",
    "speculators": "the speculators library",
}


@dataclass(frozen=True)
class Case:
    """A head that is to be exported: its config, canonical tensors, and the target it is for, where that was given."""

    config: Eagle3Config
    tensors: Mapping[str, torch.Tensor]
    dtype: torch.dtype
    target: Target | None = None
    tree_depth: int | None = None

    @property
    def boundaries(self) -> list[int] | None:
        """The boundaries as numbers, if config or target tell them."""
        if self.target is not None and not self.config.reads_last_hidden_state:
            return self.config.boundaries_for(self.target.num_layers)
        return self.config.target_boundaries


@dataclass(frozen=True)
class Cell:
    """Whether a layout can say a convention.

    Args:
        says: as the docs print it.
        problem: why not, in words that follow on "which"; empty if it can say it of this head.
        since: the version from which on readers heed the convention; older ones pass over it in silence.
    """

    says: str
    problem: Callable[[Case], str] = lambda case: ""
    since: str = ""


@dataclass(frozen=True)
class Convention:
    """One way in which heads differ, and a cell for each of `LAYOUTS`.

    Args:
        fields: the fields of `Eagle3Config` that it is written in.
        told: what such a head does, in words that follow on "This head".
        holds: whether a head follows it.
    """

    fields: tuple[str, ...]
    told: str
    holds: Callable[[Case], bool]
    cells: tuple[Cell, Cell, Cell, Cell]

    def cell(self, layout: str) -> Cell:
        return self.cells[LAYOUTS.index(layout)]


YES = Cell("yes")


def _no(why: str) -> Cell:
    return Cell("no", lambda case: why)


def _since(version: str) -> Cell:
    return Cell(f"from {version}", since=version)


def _only(says: str, holds: Callable[[Case], bool], why: str) -> Cell:
    return Cell(says, lambda case: "" if holds(case) else why)


def _flag(name: str, told: str, *cells: Cell) -> Convention:
    return Convention((name,), told, lambda case: bool(getattr(case.config, name)), cells)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- conditions

# Parameters of RoPE of a kind: those that it needs and those that it may have. Every reader computes these alike.
_ROPE: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set()),
    "yarn": ({"factor", "original_max_position_embeddings"}, {"beta_fast", "beta_slow"}),
}


def rope_kind(config: Eagle3Config) -> str:
    """ "default", "linear", "llama3", "yarn", or "other" for what depends on more, or on the length of the text."""
    rope: Any = config.rope_parameters or {}
    kind, given = rope.get("rope_type", "default"), rope.keys() - {"rope_type", "rope_theta"}
    if kind not in _ROPE:
        return "other"
    needed, possible = _ROPE[kind]
    return kind if needed <= given <= needed | possible else "other"


def _theta(config: Eagle3Config) -> float:
    rope: Any = config.rope_parameters or {}
    return float(rope.get("rope_theta") or config.default_theta)


def _official_boundaries(case: Case) -> bool:
    """Whether they are the official program's own: `[2, L // 2, L - 3]` of the target, or of some target at least."""
    found = case.boundaries
    if found is None:
        return case.config.num_target_boundaries == 3
    layers = case.target.num_layers if case.target is not None else found[-1] + 3
    return layers >= 7 and found == [2, layers // 2, layers - 3]


def _first_boundary(case: Case) -> int | None:
    return case.boundaries[0] if case.boundaries else None


def _brings_targets_embeddings(case: Case) -> bool:
    if case.config.target_hidden_size != case.config.hidden_size:
        return True
    own = case.tensors["embed_tokens.weight"]
    return case.target is not None and torch.equal(own.cpu(), case.target.embeddings().to("cpu", own.dtype))


# ---------------------------------------------------------------------------------------------- the table

_ALIKE = "is not known to rotate alike"
_WHICH = "has no default for that many (load it with `target_boundaries=[...]`)"
CONVENTIONS = (
    Convention(
        ("target_boundaries",),
        "does not say which boundaries it reads, which are {count}",
        lambda case: (
            case.boundaries is None
            and not case.config.reads_last_hidden_state
            and case.config.num_target_boundaries != 3
        ),
        (_no(_WHICH), _no(_WHICH), _no(_WHICH), _no(_WHICH)),
    ),
    Convention(
        ("target_boundaries",),
        "reads the target's boundaries {boundaries}",
        lambda case: not case.config.reads_last_hidden_state,
        (
            _only("[2, L//2, L-3]", _official_boundaries, "always reads [2, L//2, L-3] of the target's L layers"),
            # Most targets of SGLang take ids as layers' outputs, some only if the first is 1 (sglang#25454).
            _only(
                "the first is 2",
                lambda case: _first_boundary(case) in (None, 2),
                "reads such ids in two ways, depending on the target, unless the first boundary is 2",
            ),
            _only(
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
            _no("always reads [2, L//2, L-3] of the target's L layers"),
            _no("does so for some targets only"),
            _no("is not known to capture that state"),
            _no("is not known to capture that state"),
        ),
    ),
    Convention(
        ("num_target_boundaries",),
        "reads {count} boundaries",
        lambda case: not case.config.reads_last_hidden_state and case.config.num_target_boundaries != 3,
        (_no("always reads three"), YES, YES, YES),
    ),
    Convention(
        ("target_hidden_size",),
        "is not as wide as its target",
        lambda case: case.config.target_hidden_size != case.config.hidden_size,
        (YES, YES, YES, _no("builds its fusion layer for a target as wide as the head")),
    ),
    Convention(
        ("head_dim",),
        "has attention heads of another width than hidden_size / num_attention_heads",
        lambda case: case.config.head_dim * case.config.num_attention_heads != case.config.hidden_size,  # type: ignore[operator]
        (_no("derives that width"), YES, YES, YES),
    ),
    _flag(
        "own_embeddings",
        "brings token embeddings of its own",
        YES,
        _only(
            "the target's, or of another width",
            _brings_targets_embeddings,
            "drafts with the target's in their place; pass the `target` if they are the same",
        ),
        YES,
        YES,
    ),
    _flag(
        "norm_before_residual",
        "takes its first residual after the norm",
        _no("takes it before the norm"),
        _no("takes it before the norm"),
        YES,
        YES,
    ),
    _flag(
        "norm_before_fc",
        "normalises the boundaries together before its fusion layer",
        _no("leaves that norm out"),
        _since("0.5.23"),
        YES,
        _since("0.5.0"),
    ),
    _flag(
        "fc_norm",
        "normalises each boundary before its fusion layer",
        _no("leaves those norms out"),
        _since("0.5.23"),
        YES,
        _since("0.8.1"),
    ),
    _flag(
        "norm_output",
        "feeds back its state after the final norm",
        _no("feeds it back before the norm"),
        _since("0.5.23"),
        _since("0.33.0"),
        _since("0.8.1"),
    ),
    _flag(
        "qk_norm",
        "normalises queries and keys",
        _no("leaves those norms out"),
        _no("leaves those norms out"),
        _no("has no such layer in this layout"),
        _only(
            "without mlp_bias", lambda case: not case.config.mlp_bias, "has no layer with both these and `mlp_bias`"
        ),
    ),
    _flag(
        "attention_bias",
        "has biases in its attention",
        _no("leaves biases out"),
        _no("leaves biases out"),
        YES,
        YES,
    ),
    _flag(
        "qkv_bias",
        "has biases of queries, keys and values",
        _no("leaves biases out"),
        _no("leaves biases out"),
        Cell("yes, with zeros as the output's"),
        Cell("yes, with zeros as the output's"),
    ),
    _flag("mlp_bias", "has biases in its MLP", _no("leaves biases out"), _no("leaves biases out"), YES, YES),
    _flag(
        "sliding_window",
        "sees back a window of {window} positions",
        _no("lets heads see back everything"),
        _no("takes a window from `--speculative-draft-window-size` only"),
        _since("0.33.0"),
        _since("0.8.1"),
    ),
    _flag(
        "reads_last_hidden_state",
        "reads the target's last hidden state",
        _no("runs such heads through a fusion layer that they do not have"),
        _since("0.5.23"),
        _since("0.33.0"),
        _no("has no such heads"),
    ),
    Convention(
        ("num_hidden_layers",),
        "has {layers} layers",
        lambda case: case.config.num_hidden_layers > 1,
        (_no("reads one"), _no("names further layers differently from version to version"), YES, YES),
    ),
    Convention(
        ("hidden_act",),
        "has the activation {activation}",
        lambda case: case.config.hidden_act != "silu",
        (YES, _no("knows silu only"), _no("knows silu only"), YES),
    ),
    Convention(
        ("draft_vocab_size",),
        "proposes every token of the target",
        lambda case: case.config.draft_vocab_size == case.config.vocab_size,
        (YES, YES, YES, YES),
    ),
    Convention(
        ("rope_parameters",),
        "rotates with RoPE of the kind linear",
        lambda case: rope_kind(case.config) == "linear",
        (
            _only("base 10000", lambda case: _theta(case.config) == 10000.0, "has base 10000 for that kind"),
            YES,
            YES,
            YES,
        ),
    ),
    Convention(
        ("rope_parameters",),
        "rotates with RoPE of the kind llama3",
        lambda case: rope_kind(case.config) == "llama3",
        (_no("knows the kinds default and linear only"), YES, YES, YES),
    ),
    Convention(
        ("rope_parameters",),
        "rotates with RoPE of the kind yarn",
        lambda case: rope_kind(case.config) == "yarn",
        (_no("knows the kinds default and linear only"), YES, YES, YES),
    ),
    Convention(
        ("rope_parameters",),
        "rotates with RoPE {rope}",
        lambda case: rope_kind(case.config) == "other",
        (_no(_ALIKE), _no(_ALIKE), _no(_ALIKE), _no(_ALIKE)),
    ),
)

# Fields that every layout writes as they are, or that say nothing of how a trained head computes.
PLAIN_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "attention_dropout",
)
