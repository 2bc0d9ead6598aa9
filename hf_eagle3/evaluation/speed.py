"""Paired speed: every question plain and drafted, in the same process, one right after the other.

Only ratios are summarised: seconds belong to one machine at one moment.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .lossless import Judge, Verdict
from .positions import acceptance_counts, acceptance_rates
from .questions import Question, encode_chat
from .shares import Shares
from .timing import Run, Settings, run_modes, warm_up


@dataclass(frozen=True)
class Trial:
    """One question, answered in each mode; `verdict` is None for sampled answers, whose tokens need not agree."""

    question: Question
    runs: Mapping[str, Run]
    verdict: Verdict | None

    def ratio(self, mode: str = "drafted") -> float:
        """Tokens per second of `mode` over those of plain `generate`."""
        return self.runs[mode].tokens_per_second / self.runs["plain"].tokens_per_second


@dataclass(frozen=True)
class Speed:
    """What the trials of one file, or of all files together, come to.

    Args:
        acceptance_length: tokens per verification, bonus included, over all verifications.
        ratio: wall-clock ratio to plain `generate`, the median of the pairs.
        low, high: the quartiles of the pairs.
        total_ratio: the same from the sums of tokens and seconds, where long answers weigh more.
        lookup_ratio: the median ratio of prompt lookup; None when it was not run.
        identical, near_ties, mismatches: verdicts on the answers; all zero for sampled ones.
        temperature: of the answers.
        tokens_per_second, plain_tokens_per_second: of all tokens over all seconds; only beside the machine's name.
        acceptance_rates: 0-alpha, 1-alpha, ..., see [`positions.acceptance_counts`].
        acceptance_counts: what they are made of: for each position the drafts accepted, and the verifications that
            tell of it.
        shares: where the time goes, if it was measured.
    """

    name: str
    questions: int
    acceptance_length: float
    ratio: float
    low: float
    high: float
    total_ratio: float
    lookup_ratio: float | None
    identical: int
    near_ties: int
    mismatches: int
    temperature: float = 0.0
    tokens_per_second: float = 0.0
    plain_tokens_per_second: float = 0.0
    acceptance_rates: list[float] = field(default_factory=list)
    acceptance_counts: list[tuple[int, int]] = field(default_factory=list)
    shares: Shares | None = None


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    head: PreTrainedModel,
    questions: Sequence[Question],
    settings: Settings,
    lookup: bool = False,
    there: Mapping[int, Trial] = MappingProxyType({}),
    done: Callable[[int, Trial], None] = lambda number, trial: None,
) -> list[Trial]:
    """Answers each question in each mode, after a warm-up on the first one.

    Args:
        there: trials of an earlier sitting, by the number of their question, which are taken as they are.
        done: hears of each further trial.
    """
    trials = dict(there)
    judge, warm = Judge(model, head), False
    for number, question in enumerate(questions):
        if number in there:
            continue
        inputs = encode_chat(tokenizer, question.text, model.device)
        if not warm:
            warm_up(model, head, inputs, settings)
            warm = True
        trials[number] = _try_out(model, head, question, inputs, settings, judge, number, lookup)
        done(number, trials[number])
    return [trials[number] for number in range(len(questions))]


def summarise(name: str, trials: Sequence[Trial], temperature: float = 0.0, shares: Shares | None = None) -> Speed:
    """The figures of one row.

    Args:
        temperature: of the answers.
        shares: where the time went, measured apart.

    Raises:
        ValueError: there are no trials.
    """
    if not trials:
        raise ValueError(f"There is no question to summarise for {name}: at least one is needed.")
    ratios = [trial.ratio() for trial in trials]
    low, high = quartiles(ratios)
    runs = [trial.runs["drafted"] for trial in trials]
    lengths = [length for run in runs for length in run.acceptance_lengths]
    counts = acceptance_counts(run.rounds for run in runs)
    verdicts = [trial.verdict for trial in trials if trial.verdict is not None]
    with_lookup = [trial.ratio("lookup") for trial in trials if "lookup" in trial.runs]
    return Speed(
        name=name,
        questions=len(trials),
        acceptance_length=sum(lengths) / len(lengths) if lengths else 1.0,
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        total_ratio=_overall_rate(trials, "drafted") / _overall_rate(trials, "plain"),
        lookup_ratio=statistics.median(with_lookup) if with_lookup else None,
        identical=sum(verdict.identical for verdict in verdicts),
        near_ties=sum(verdict.lossless and not verdict.identical for verdict in verdicts),
        mismatches=sum(not verdict.lossless for verdict in verdicts),
        temperature=temperature,
        tokens_per_second=_overall_rate(trials, "drafted"),
        plain_tokens_per_second=_overall_rate(trials, "plain"),
        acceptance_rates=acceptance_rates(counts),
        acceptance_counts=counts,
        shares=shares,
    )


def _try_out(
    model: PreTrainedModel,
    head: PreTrainedModel,
    question: Question,
    inputs: Mapping[str, Any],
    settings: Settings,
    judge: Judge,
    turn: int,
    lookup: bool,
) -> Trial:
    runs = run_modes(model, head, inputs, settings, turn, lookup)
    verdict = None
    if settings.greedy:
        verdict = judge.rule(inputs, settings, runs["plain"].tokens, runs["drafted"].tokens)
    return Trial(question, runs, verdict)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third; of a single value, that value twice."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _overall_rate(trials: Sequence[Trial], mode: str) -> float:
    return sum(len(trial.runs[mode].tokens) for trial in trials) / sum(trial.runs[mode].seconds for trial in trials)
