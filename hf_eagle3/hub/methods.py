"""What a card calls a head: the method that it drafts by, and what differs from one to another on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import layouts
from ..configuration_eagle import EagleConfig


@dataclass(frozen=True)
class Method:
    """
    Args:
        name: as it stands in "a draft head for ... speculative decoding".
        tag: for the Hub.
        also: a further sentence on such heads; empty where there is nothing to say.
        engines: the layouts that its page names, see `export_layouts`; empty if there is none for such heads.
        citation: key, title, number on arXiv and year of its paper, whose authors are those of all of them.
    """

    name: str
    tag: str
    engines: tuple[str, ...]
    citation: tuple[str, str, str, str]
    also: str = ""


_EAGLE3_PAPER = (
    "li2025eagle3",
    "{EAGLE-3}: Scaling up Inference Acceleration of Large Language Models via Training-Time Test",
    "2503.01840",
    "2025",
)
EAGLE3 = Method("EAGLE-3", "eagle3", ("sglang", "vllm", "speculators"), _EAGLE3_PAPER)
PARALLEL = Method(
    "EAGLE-3",
    "eagle3",
    (),
    _EAGLE3_PAPER,
    also="It drafts all levels of its tree in one forward of its own (P-EAGLE, arXiv:2602.01469).",
)
EAGLE1 = Method(
    "EAGLE-1",
    "eagle",
    ("sglang", "vllm", "eagle"),
    ("li2024eagle", "{EAGLE}: Speculative Sampling Requires Rethinking Feature Uncertainty", "2401.15077", "2024"),
    also="Its tree is grown as in EAGLE-2 (arXiv:2406.16858), or is one that is named (`draft_tree`).",
)


def method_of(config: Mapping[str, Any], adapter: bool = False) -> Method:
    """The method of the head that a config.json is of, in whichever layout; or an adapter_config.json.

    An adapter names its head's class where peft could tell it, and else is taken for one of EAGLE-3's.
    """
    if adapter:
        base = (config.get("auto_mapping") or {}).get("base_model_class")
        return EAGLE1 if base == "EagleDraftModel" else EAGLE3
    if config.get("parallel_drafting"):
        return PARALLEL
    # It is a head's, so where only tensors could tell it from a plain model's, they would.
    layout = layouts.recognise(config, {"fc.weight"})
    return EAGLE1 if layout is not None and layout.heads == EagleConfig.model_type else EAGLE3


__all__ = ["EAGLE1", "EAGLE3", "PARALLEL", "Method", "method_of"]
