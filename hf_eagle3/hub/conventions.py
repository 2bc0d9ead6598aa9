"""The words in which it is told what each layout can say of a head: heads, cells, conventions, and tables of them.

A table has conventions as rows and layouts as columns; each kind of head has one (`conventions_eagle3`,
`conventions_eagle1`), `export_check` obeys it, and the docs print it. A cell says yes, no, or on which condition. It
says yes only if everything that reads the layout then computes what the head computes; what a reader would pass over
in silence is a no, or asks for a version that does not. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..configuration_eagle import EagleConfig
from ..configuration_eagle3 import Eagle3Config
from .export_target import Target

HeadConfig = Eagle3Config | EagleConfig

LAYOUTS = ("eagle", "sglang", "vllm", "speculators")
READERS = {
    "eagle": "the official EAGLE program",
    "sglang": "SGLang",
    "vllm": "vLLM",
    "speculators": "the speculators library",
}


@dataclass(frozen=True)
class Case:
    """A head that is to be exported: its config (a `HeadConfig`), canonical tensors, and the target it is for, where
    that was given."""

    config: Any
    tensors: Mapping[str, torch.Tensor]
    dtype: torch.dtype
    target: Target | None = None
    tree_depth: int | None = None

    @property
    def boundaries(self) -> list[int] | None:
        """The boundaries as numbers, if config or target tell them."""
        if self.target is not None and not self.config.reads_last_hidden_state:
            return self.config.boundaries_for(self.target.num_layers)
        return getattr(self.config, "target_boundaries", None)


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
    """One way in which heads differ, and a cell for each of `LAYOUTS`, or for the first of them.

    Args:
        fields: the fields of a head's config that it is written in.
        told: what such a head does, in words that follow on "This head".
        holds: whether a head follows it.
    """

    fields: tuple[str, ...]
    told: str
    holds: Callable[[Case], bool]
    cells: tuple[Cell, ...]

    def cell(self, layout: str) -> Cell:
        return self.cells[LAYOUTS.index(layout)]


@dataclass(frozen=True)
class Table:
    """What layouts can say of heads of one kind.

    Args:
        kind: the class of their configs.
        layouts: the first of `LAYOUTS`: those that there are for them.
        conventions: the rows.
        tensors: a pattern of the names of all tensors that the rows speak of.
    """

    kind: type[HeadConfig]
    layouts: tuple[str, ...]
    conventions: tuple[Convention, ...]
    tensors: str

    @property
    def fields(self) -> frozenset[str]:
        """The fields of a config that have a place in the table, or need none."""
        return frozenset(PLAIN_FIELDS).union(*(convention.fields for convention in self.conventions))


YES = Cell("yes")


def no(why: str) -> Cell:
    return Cell("no", lambda case: why)


def since(version: str) -> Cell:
    return Cell(f"from {version}", since=version)


def only(says: str, holds: Callable[[Case], bool], why: str) -> Cell:
    return Cell(says, lambda case: "" if holds(case) else why)


def flag(name: str, told: str, *cells: Cell) -> Convention:
    return Convention((name,), told, lambda case: bool(getattr(case.config, name)), cells)


# ---------------------------------------------------------------------------------------------- conditions

# Parameters of RoPE of a kind: those that it needs and those that it may have. Every reader computes these alike.
_ROPE: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set()),
    "yarn": ({"factor", "original_max_position_embeddings"}, {"beta_fast", "beta_slow"}),
}


def rope_kind(config: HeadConfig) -> str:
    """ "default", "linear", "llama3", "yarn", or "other" for what depends on more, or on the length of the text."""
    rope: Any = config.rope_parameters or {}
    kind, given = rope.get("rope_type", "default"), rope.keys() - {"rope_type", "rope_theta"}
    if kind not in _ROPE:
        return "other"
    needed, possible = _ROPE[kind]
    return kind if needed <= given <= needed | possible else "other"


def _theta(config: HeadConfig) -> float:
    rope: Any = config.rope_parameters or {}
    return float(rope.get("rope_theta") or config.default_theta)


def has_own_head_dim(case: Case) -> bool:
    """Whether the width of attention heads has to be told, because it does not follow from the head's."""
    return case.config.head_dim * case.config.num_attention_heads != case.config.hidden_size


def brings_targets_embeddings(case: Case) -> bool:
    if case.config.target_hidden_size != case.config.hidden_size:
        return True
    own = case.tensors["embed_tokens.weight"]
    return case.target is not None and torch.equal(own.cpu(), case.target.embeddings().to("cpu", own.dtype))


# ---------------------------------------------------------------------------------------------- rows of every kind

_ALIKE = "is not known to rotate alike"
ROPE = (
    Convention(
        ("rope_parameters",),
        "rotates with RoPE of the kind linear",
        lambda case: rope_kind(case.config) == "linear",
        (
            only("base 10000", lambda case: _theta(case.config) == 10000.0, "has base 10000 for that kind"),
            YES,
            YES,
            YES,
        ),
    ),
    Convention(
        ("rope_parameters",),
        "rotates with RoPE of the kind llama3",
        lambda case: rope_kind(case.config) == "llama3",
        (no("knows the kinds default and linear only"), YES, YES, YES),
    ),
    Convention(
        ("rope_parameters",),
        "rotates with RoPE of the kind yarn",
        lambda case: rope_kind(case.config) == "yarn",
        (no("knows the kinds default and linear only"), YES, YES, YES),
    ),
    Convention(
        ("rope_parameters",),
        "rotates with RoPE {rope}",
        lambda case: rope_kind(case.config) == "other",
        (no(_ALIKE), no(_ALIKE), no(_ALIKE), no(_ALIKE)),
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
