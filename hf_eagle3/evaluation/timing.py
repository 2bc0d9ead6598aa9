"""One generation, counted and timed: plain, with a head, or with transformers' prompt lookup.

The clock runs around `model.generate` and nothing else. Target forwards are seen where they happen, by a hook, which
keeps what it saw for later: nothing is computed, and no device waited for, while the clock runs. What the tokens mean,
and whether two runs agree, is not known here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from .positions import Rounds

LOOKUP_TOKENS = 10
_WARM_UP_TOKENS = 8
# Sampling from all of the target's distribution, as the papers do. By itself `generate` keeps the 50 likeliest tokens,
# or what the target's own generation config says, and from fewer tokens drafts are accepted more often.
WHOLE_DISTRIBUTION: Mapping[str, Any] = {"top_k": 0, "top_p": 1.0}


@dataclass(frozen=True)
class Settings:
    """What a run is asked for.

    Args:
        max_new_tokens: the length limit.
        temperature: 0 is greedy.
        seed: set before each run, so that a sampled run can be repeated.
        tree: `num_assistant_tokens`, `tree_depth`, `tree_top_k` and `assistant_confidence_threshold`, as far as they
            differ from the head's own.
        sampling: what else sampled answers are drawn with, such as `WHOLE_DISTRIBUTION`; for the rest, the target's
            own generation config holds.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    tree: Mapping[str, float] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"The temperature is {self.temperature}; give 0 for greedy answers or a positive number.")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def keywords(self) -> dict[str, Any]:
        """What every mode gives to `generate`."""
        sampled = {"do_sample": True, "temperature": self.temperature, **self.sampling}
        choice = {"do_sample": False} if self.greedy else sampled
        return {"max_new_tokens": self.max_new_tokens, "return_dict_in_generate": True, **choice}


@dataclass(frozen=True)
class Run:
    """What came out of one generation.

    Args:
        tokens: the new tokens, without the prompt.
        seconds: from the call of `generate` to its return.
        forwards: forwards of the target, the prefill included.
        acceptance_lengths: for each verification the accepted drafts plus the bonus token; empty without a head.
        tree_levels: for each verification the drafted levels of its tree.
    """

    tokens: list[int]
    seconds: float
    forwards: int
    acceptance_lengths: list[int] = field(default_factory=list)
    tree_levels: list[int] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / self.seconds if self.seconds else 0.0

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification, bonus included (the papers' tau); 1.0 when nothing was drafted."""
        return sum(self.acceptance_lengths) / len(self.acceptance_lengths) if self.acceptance_lengths else 1.0

    @property
    def rounds(self) -> Rounds:
        """The verifications, for acceptance by position."""
        return Rounds(self.acceptance_lengths, self.tree_levels, len(self.tokens))


def run_plain(
    model: PreTrainedModel, inputs: Mapping[str, Any], settings: Settings, streamer: BaseStreamer | None = None
) -> Run:
    """Plain `generate`."""
    return _timed(model, inputs, settings, {"streamer": streamer})


def run_drafted(
    model: PreTrainedModel,
    head: PreTrainedModel,
    inputs: Mapping[str, Any],
    settings: Settings,
    streamer: BaseStreamer | None = None,
) -> Run:
    """`generate(assistant_model=head)`."""
    return _timed(model, inputs, settings, {"assistant_model": head, "streamer": streamer, **settings.tree})


def run_lookup(model: PreTrainedModel, inputs: Mapping[str, Any], settings: Settings) -> Run:
    """transformers' own prompt lookup, which drafts without any head: the thing to beat."""
    return _timed(model, inputs, settings, {"prompt_lookup_num_tokens": LOOKUP_TOKENS})


def run_modes(
    model: PreTrainedModel,
    head: PreTrainedModel,
    inputs: Mapping[str, Any],
    settings: Settings,
    turn: int = 0,
    lookup: bool = False,
) -> dict[str, Run]:
    """The same question in every mode, one after the other: "plain", "drafted" and, on request, "lookup".

    Args:
        turn: which mode begins; counting it up from question to question spreads slow drifts of the machine evenly.
    """
    modes = {
        "plain": lambda: run_plain(model, inputs, settings),
        "drafted": lambda: run_drafted(model, head, inputs, settings),
    }
    if lookup:
        modes["lookup"] = lambda: run_lookup(model, inputs, settings)
    names = list(modes)
    first = turn % len(names)
    return {name: modes[name]() for name in names[first:] + names[:first]}


def warm_up(
    model: PreTrainedModel, head: PreTrainedModel | None, inputs: Mapping[str, Any], settings: Settings
) -> None:
    """A few tokens in each mode: first calls allocate, choose kernels, probe the target: none of it is to be timed."""
    short = replace(settings, max_new_tokens=min(settings.max_new_tokens, _WARM_UP_TOKENS))
    run_plain(model, inputs, short)
    if head is not None:
        run_drafted(model, head, inputs, short)


@contextmanager
def seen_forwards(model: PreTrainedModel) -> Iterator[list[torch.Tensor | None]]:
    """A list that grows with every forward of `model`, by the position ids that it was given."""
    seen: list[torch.Tensor | None] = []

    def look(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs.get("position_ids"))

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def tree_levels(seen: Sequence[torch.Tensor | None], verifications: int) -> list[int]:
    """The drafted levels of the trees that the last `verifications` forwards of `seen` ran over.

    A verification gives each node the root's position plus its depth. How deep a tree is cannot be known beforehand:
    the best nodes are kept, wherever they stand, and near the end of the target's context fewer levels fit.
    """
    trees = seen[len(seen) - verifications :]
    return [0 if positions is None else int((positions - positions[..., :1]).max()) for positions in trees]


def _timed(model: PreTrainedModel, inputs: Mapping[str, Any], settings: Settings, keywords: Mapping[str, Any]) -> Run:
    given = {name: value for name, value in keywords.items() if value is not None}
    prompt_length = inputs["input_ids"].shape[1]
    generate: Any = model.generate
    torch.manual_seed(settings.seed)
    with seen_forwards(model) as seen:
        finish_device_work(model)
        start = time.perf_counter()
        out = generate(**inputs, **settings.keywords(), **given)
        finish_device_work(model)
        seconds = time.perf_counter() - start
    lengths = (getattr(out, "acceptance_lengths", None) or [[]])[0]
    tokens = out.sequences[0, prompt_length:].tolist()
    return Run(tokens, seconds, len(seen), list(lengths), tree_levels(seen, len(lengths)))


def finish_device_work(model: PreTrainedModel) -> None:
    """Wait for the model's device: its work goes on after a call has returned."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
