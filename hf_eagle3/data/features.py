"""What training needs of the target over a conversation: the captured states, and how logits come from them.

Full logits are never kept: they are one product away from the last hidden state. Knows nothing of heads or of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..configuration_eagle3 import LAST_HIDDEN_STATE
from ..states import capturing

Row = tuple[Sequence[int], Sequence[bool]]  # token ids and loss mask of one conversation
# Padded tokens of a forward, and rows of full logits (512 are 100 MB for a vocabulary of 50,000 in float32): on a CPU
# more at once leave its caches (4,096 tokens took a quarter longer than 1,024), elsewhere fewer leave the device
# waiting for Python.
_TOKENS_ON_CPU, _TOKENS = 1024, 16384
_ROWS_ON_CPU, _ROWS = 512, 4096


@dataclass
class Example:
    """One conversation ready for training: all tensors are over its `tokens`.

    `ids` int64; `answers` bool; `features [tokens, boundaries * hidden]`; `last_hidden [tokens, hidden]`, after the
    final norm, and the very same tensor as `features` where that is what a head reads; `best` int64, the target's
    argmax for the next token, -1 where that is no answer token.
    """

    ids: torch.Tensor
    answers: torch.Tensor
    features: torch.Tensor
    last_hidden: torch.Tensor
    best: torch.Tensor


def predicting(answers: torch.Tensor) -> torch.Tensor:
    """Positions whose NEXT token is an answer token, bool like `answers [..., tokens]`."""
    shifted = torch.zeros_like(answers)
    shifted[..., :-1] = answers[..., 1:]
    return shifted


@dataclass
class LogitRule:
    """How a target makes logits of its last hidden state `h`: `cap * tanh(scale * (weight @ h + bias) / cap)`.

    `weight [tokens, hidden]`, `bias [tokens]` or None; without a `cap` nothing is capped.
    """

    weight: torch.Tensor
    scale: float = 1.0
    cap: float | None = None
    bias: torch.Tensor | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[..., tokens]` of `hidden [..., hidden]`, in the dtype of the weight."""
        logits = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def rows(self, vocabulary: torch.Tensor) -> LogitRule:
        """The rule for the tokens `vocabulary` (int64 `[kept]`) alone."""
        bias = None if self.bias is None else self.bias[vocabulary]
        return replace(self, weight=self.weight[vocabulary], bias=bias)


@torch.no_grad()
def logit_rule(model: Any) -> LogitRule:
    """The rule of `model`, found in its config and checked against its logits on a few tokens.

    Raises:
        ValueError: if its logits are not its output embeddings times its last hidden state, scaled by a constant and
            softly capped at the most.
    """
    plain = _output_matrix(model)
    text = model.config.get_text_config(decoder=True)
    ids = torch.arange(3, 19, device=model.device)[None] % text.vocab_size
    out = model(input_ids=ids, output_hidden_states=[text.num_hidden_layers], use_cache=False)
    hidden, expected = out.hidden_states[text.num_hidden_layers][0], out.logits[0].float()
    cap = getattr(text, "final_logit_softcapping", None)
    for scale in _scales(model.config, text):
        rule = replace(plain, scale=scale, cap=cap)
        if (rule.logits(hidden).float() - expected).abs().max() <= 0.02 * expected.abs().max():
            return rule
    raise ValueError(
        f"The logits of {type(model).__name__} are not its output embeddings times its last hidden state, scaled or "
        "softly capped: no teacher can be made of its states, so a head cannot be trained for it."
    )


def _scales(*configs: Any) -> list[float]:
    """Factors that a config may name: Cohere's multiplies the logits, Granite's divides them."""
    found = [1.0]
    for config in configs:
        found += [float(getattr(config, "logit_scale", None) or 1.0)]
        found += [1.0 / float(getattr(config, "logits_scaling", None) or 1.0)]
    return sorted(set(found), key=lambda scale: abs(scale - 1.0), reverse=True)


def _output_matrix(model: Any) -> LogitRule:
    """The output embeddings as a dense matrix: what a quantised module makes of the unit vectors."""
    module = model.get_output_embeddings()
    if module is None:
        raise ValueError(f"{type(model).__name__} has no output embeddings: a head cannot be trained for it.")
    weight, bias = module.weight.detach(), getattr(module, "bias", None)
    bias = None if bias is None else bias.detach()
    if type(module) is nn.Linear and weight.is_floating_point():
        return LogitRule(weight, bias=bias)
    units = torch.eye(model.config.get_text_config(decoder=True).hidden_size, device=model.device, dtype=model.dtype)
    columns = module(units)
    return LogitRule((columns - bias if bias is not None else columns).T.contiguous(), bias=bias)


class TargetStates:
    """Runs a target over conversations and gives what training needs of it, on the target's device and in its dtype.

    Args:
        model: a decoder-only causal LM, quantised ones and those with an adapter included.
        boundaries: the captured boundaries, ascending, or `[LAST_HIDDEN_STATE]` alone.
        batch_tokens: how many padded tokens go through the target at once; by the device, if not given.

    Raises:
        ValueError: if no [`LogitRule`] describes the target.
    """

    def __init__(self, model: Any, boundaries: list[int], batch_tokens: int | None = None) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        on_cpu = self.model.device.type == "cpu"
        self.boundaries = list(boundaries)
        self.batch_tokens = batch_tokens or (_TOKENS_ON_CPU if on_cpu else _TOKENS)
        self._rows_at_once = _ROWS_ON_CPU if on_cpu else _ROWS
        self.logit_rule = logit_rule(self.model)

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        """One example for each `(ids, loss mask)`, in the order given."""
        made: dict[int, Example] = {}
        for group in self._groups([len(ids) for ids, _ in rows]):
            for index, example in zip(group, self._run([rows[index] for index in group]), strict=True):
                made[index] = example
        return [made[index] for index in range(len(rows))]

    def _groups(self, lengths: list[int]) -> Iterator[list[int]]:
        """Indices of rows that go through together: the longest first, so that too large a batch shows at once."""
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        while order:
            count = max(1, self.batch_tokens // max(lengths[order[0]], 1))
            yield order[:count]
            order = order[count:]

    @torch.no_grad()
    def _run(self, rows: Sequence[Row]) -> list[Example]:
        """One forward over right-padded rows; padding comes later than every real token, so none of them sees it."""
        device = self.model.device
        ids = [torch.as_tensor(row, dtype=torch.long) for row, _ in rows]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in ids], device=device)
        mask = (torch.arange(padded.shape[1], device=device) < lengths[:, None]).long()
        wanted = [boundary for boundary in self.boundaries if boundary != LAST_HIDDEN_STATE]
        with capturing(self.model, [*wanted, LAST_HIDDEN_STATE]) as capture:
            out = self.model.base_model(input_ids=padded, attention_mask=mask, use_cache=False, **capture.asked)
        *read, hidden = capture.states(out.hidden_states)
        features = torch.cat(read, dim=-1) if read else None
        answered = [torch.as_tensor(mask, dtype=torch.bool) for _, mask in rows]
        answers = nn.utils.rnn.pad_sequence(answered, batch_first=True).to(device)
        best = self._best(hidden, predicting(answers))
        examples = []
        for number, length in enumerate(map(len, ids)):
            states = hidden[number, :length]
            fused = states if features is None else features[number, :length]
            row = padded[number, :length], answers[number, :length]
            examples.append(Example(*row, fused, states, best[number, :length]))
        return examples

    def _best(self, hidden: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        best = torch.full(where.shape, -1, dtype=torch.long, device=where.device)
        parts = [logits.argmax(-1) for logits in self.full_logits(hidden[where])]
        best[where] = torch.cat(parts) if parts else best[where]
        return best

    def full_logits(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits over the whole vocabulary of `hidden [positions, hidden]`, in pieces that fit in memory."""
        for chunk in hidden.split(self._rows_at_once) if len(hidden) else ():
            yield self.logit_rule.logits(chunk)

    @torch.no_grad()
    def mass_of(self, example: Example) -> torch.Tensor:
        """Summed probability of each token over the positions that predict an answer token, float32 `[vocab]`."""
        mass = torch.zeros(len(self.logit_rule.weight), device=example.last_hidden.device)
        for logits in self.full_logits(example.last_hidden[predicting(example.answers)]):
            mass += logits.softmax(-1, dtype=torch.float32).sum(0)
        return mass.cpu()


def token_mass(
    states: TargetStates,
    rows: Iterable[Row],
    limit_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """The target's summed probability of each token over all answers of `rows`, float32 `[vocab]`.

    Args:
        limit_tokens: stop after so many tokens (prompts included): a sample ranks the vocabulary well enough.
        progress: called with the tokens done.
    """
    mass, done = torch.zeros(len(states.logit_rule.weight)), 0
    for group in _grouped(rows, states.batch_tokens):
        for example in states.examples(group):
            mass += states.mass_of(example)
            done += len(example.ids)
        if progress is not None:
            progress(done)
        if limit_tokens is not None and done >= limit_tokens:
            break
    return mass


def _grouped(rows: Iterable[Row], tokens: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if sum(len(ids) for ids, _ in group) >= 4 * tokens:
            yield group
            group = []
    if group:
        yield group
