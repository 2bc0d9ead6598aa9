"""The head under examination, opened piece by piece: what cannot be read is a finding, and the rest is still there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .. import checkpoint, head_files, layouts
from ..configuration_eagle3 import Eagle3Config
from ..head_files import Tensors
from ..loading import load_head
from ..modeling_eagle3 import Eagle3DraftModel
from .findings import Finding, Severity


@dataclass
class Subject:
    """
    A head as it lies on disk.

    Args:
        source: where it came from.
        fields: its config.json as it is.
        layout: the family that the config announces, or `None`.
        tensors: canonical names, as stored, unchecked; empty where they could not be read.
        config: what our loader takes the files for; `None` where it refuses.
        findings: what went wrong on the way.
        hub: the Hub's arguments that it was read with; all of its files come from one commit.
        other: a head of another kind than EAGLE-3, loaded; it is examined only as far as every head can be.
    """

    source: str
    fields: dict[str, Any]
    layout: layouts.Layout | None = None
    tensors: Tensors = field(default_factory=dict)
    config: Eagle3Config | None = None
    findings: list[Finding] = field(default_factory=list)
    other: PreTrainedModel | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the weights as stored; that of the output rows where they differ."""
        found = self.tensors.get("lm_head.weight")
        found = next(iter(self.tensors.values()), None) if found is None else found
        return None if found is None else found.dtype


def open_subject(source: str | os.PathLike, hub: Mapping[str, Any] | None = None) -> Subject:
    """Read what can be read of a head.

    Raises:
        OSError: if there is no such folder or repository, or no config.json in it: nothing can be said then.
    """
    hub = head_files.hub_arguments(source, dict(hub or {}))
    subject = Subject(str(source), head_files.read_config(source, hub), hub=hub)
    subject.layout = layouts.recognise(subject.fields)
    if layouts.only_tensors_tell(subject.fields):
        _read_whole(subject, hub, "layout")
    elif subject.layout is None:
        _fault(
            subject,
            "layout",
            f"The config has model_type {subject.fields.get('model_type')!r} and architectures "
            f"{subject.fields.get('architectures')}, which is no draft head that is known here.",
            "Name a head saved by hf-eagle3 or released in a layout of the EAGLE-3 family.",
        )
    elif subject.layout.refused:
        _fault(subject, "layout", f"It {subject.layout.refused}.", "Name an EAGLE-3 head.")
    else:
        _read(subject, hub)
    return subject


def _read(subject: Subject, hub: Mapping[str, Any]) -> None:
    layout: Any = subject.layout
    try:
        tensors = head_files.read_tensors(subject.source, hub, head_files.WEIGHT_FILES)
    except OSError as error:
        _fault(subject, "weights", str(error), "Nothing of the weights was checked.")
        return
    subject.tensors = checkpoint.canonical(tensors, layout)
    reason = ""
    try:
        config: Any = checkpoint.MAKERS[layout.heads](subject.fields, subject.tensors, layout, subject.source)
    except (ValueError, *checkpoint.UNUSABLE) as error:
        config, reason = None, _sentence(error)
    if isinstance(config, Eagle3Config) and not config.parallel_drafting:
        subject.config = config
    else:
        _read_whole(subject, hub, "config", reason)


def _read_whole(subject: Subject, hub: Mapping[str, Any], check: str, reason: str = "") -> None:
    """A head that drafts no chain of an EAGLE-3 layer: of EAGLE-1, or in parallel. Loaded by the loader, or not."""
    try:
        subject.other = load_head(subject.source, **hub)
    except (ValueError, OSError, *checkpoint.UNUSABLE) as error:
        _fault(subject, check, reason or _sentence(error), "The conventions of this head were not checked.")


def complete(tensors: Tensors, config: Eagle3Config) -> Tensors:
    """The tensors with both vocabulary maps, derived from one another where one is missing; wrong ones stay wrong.

    Rows of `d2t` that point outside of the target's vocabulary are simply not in `t2d`.
    """
    tensors = dict(tensors)
    draft_ids = torch.arange(int(config.draft_vocab_size or 0))
    if config.draft_vocab_size == config.vocab_size or "d2t" not in tensors:
        tensors["d2t"] = torch.zeros_like(draft_ids)
    tensors["d2t"] = tensors["d2t"].to(torch.long)
    if tensors["d2t"].shape == draft_ids.shape:
        ids = draft_ids + tensors["d2t"]
        inside = ids[(ids >= 0) & (ids < config.vocab_size)]
        tensors["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool).index_fill_(0, inside, True)
    return tensors


def expected_shapes(config: Eagle3Config) -> dict[str, tuple[int, ...]]:
    """Canonical names of the tensors of a head of this config, and their shapes."""
    with torch.device("meta"):
        head = Eagle3DraftModel(config)
    return {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}


def assemble(config: Eagle3Config, tensors: Tensors) -> Eagle3DraftModel:
    """A head around these very tensors: nothing is copied, so that many readings of one head cost no memory.

    Raises:
        RuntimeError: if the tensors are not exactly those that the config needs.
    """
    with torch.device("meta"):
        head = Eagle3DraftModel(config)
    head.load_state_dict(tensors, assign=True)
    # Frequencies are computed, not stored, and were made on "meta" like everything else.
    head.rotary_emb = LlamaRotaryEmbedding(config).to(head.lm_head.weight.device)
    return head.eval()


def moved(tensors: Tensors, dtype: torch.dtype, device: torch.device) -> Tensors:
    """The tensors where a head is to run; those that count or mask keep their dtype."""
    return {
        name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in tensors.items()
    }


def _fault(subject: Subject, check: str, seen: str, advice: str = "") -> None:
    subject.findings.append(Finding(check, Severity.fault, seen, advice))


def _sentence(error: Exception) -> str:
    """The first line of what was raised; validators of configs add a trace of their own below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) if lines else type(error).__name__
